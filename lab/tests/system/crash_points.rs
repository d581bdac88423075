//! SIGKILL at each crash point of the guaranteed order of steps. A proxy between the victim and the broker withholds the
//! next step, so that the kill always comes just before it.

use contract::facts::{RECEIVED, Received, STORED};
use contract::queues;
use testkit::eventually::eventually;
use testkit::proxy::Proxy;

use crate::deployment::{Deployment, Service, admin, publication, ready, run, soon, succeeded};
use crate::round_trips::request;

const REQUESTS: u64 = 50;

/// Kills the victim when it is about to publish to a subject that begins with `step`, replaces it,
/// and expects no effect on the result. Returns the number of requests that went through.
async fn killed_before(victim: Service, step: &str) -> u64 {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    proxy.hold(step);
    let total = REQUESTS.to_string();
    let asking = [("REQUEST_TOTAL", total.as_str()), ("REQUEST_RATE", "max")];
    let log = deployment.log("victim");
    match victim {
        Service::Generator => {
            let mut requestor = deployment.ask(REQUESTS).await;
            let mut generator = run(Service::Generator, &proxy.url(), log, &[]).await;
            soon("the victim is about to publish", proxy.held()).await;
            generator.kill().await.unwrap();
            let _successor = deployment.run(Service::Generator, "successor", &[]).await;
            succeeded(&mut requestor).await;
            // The requestor has ended after its last request, and may leave second responses to redelivered requests.
            let _another =
                deployment.run(Service::Requestor, "another", &[("REQUEST_RATE", "0")]).await;
            settled(&deployment).await;
        }
        Service::Requestor => {
            let generator = deployment.run(Service::Generator, "generator", &[]).await;
            ready(&generator).await;
            let mut requestor = run(Service::Requestor, &proxy.url(), log, &asking).await;
            soon("the victim is about to publish", proxy.held()).await;
            requestor.kill().await.unwrap();
            let _successor = deployment.run(Service::Requestor, "successor", &[]).await;
            settled(&deployment).await;
        }
    }
    deployment.facts(RECEIVED).await
}

/// Asserts that nothing is pending, lost or doubled, and that the facts of both services agree.
async fn settled(deployment: &Deployment) {
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.pending, verdict.dead_lettered), (0, 0), "{verdict}");
    assert_eq!(verdict.complete, verdict.requested, "{verdict}");
    assert_eq!(deployment.facts(STORED).await, deployment.facts(RECEIVED).await);
    for queue in queues::ALL {
        deployment.drained(queue).await;
    }
}

#[tokio::test]
async fn requestor_killed_before_publishing_accepts_nothing() {
    assert_eq!(killed_before(Service::Requestor, "requests.").await, 0);
}

#[tokio::test]
async fn requestor_killed_before_accepting_is_answered() {
    assert!(killed_before(Service::Requestor, "$KV.requested.").await > 0);
}

#[tokio::test]
async fn generator_killed_before_answering_is_redelivered() {
    let received = killed_before(Service::Generator, "responses.").await;
    assert_eq!(received, REQUESTS);
}

#[tokio::test]
async fn generator_killed_after_answering_answers_once() {
    let received = killed_before(Service::Generator, "$JS.ACK.REQUESTS.").await;
    assert_eq!(received, REQUESTS);
}

#[tokio::test]
async fn requestor_killed_before_storing_is_redelivered() {
    assert!(killed_before(Service::Requestor, "$KV.stored.").await > 0);
}

#[tokio::test]
async fn requestor_killed_after_storing_still_acknowledges() {
    assert!(killed_before(Service::Requestor, "acknowledgments.").await > 0);
}

#[tokio::test]
async fn requestor_killed_after_acknowledging_stores_once() {
    assert!(killed_before(Service::Requestor, "$JS.ACK.RESPONSES.").await > 0);
}

#[tokio::test]
async fn generator_killed_before_marking_is_redelivered() {
    let received = killed_before(Service::Generator, "$KV.received.").await;
    assert_eq!(received, REQUESTS);
}

#[tokio::test]
async fn generator_killed_after_marking_marks_once() {
    let received = killed_before(Service::Generator, "$JS.ACK.ACKNOWLEDGMENTS.").await;
    assert_eq!(received, REQUESTS);
}

/// How a victim is halted.
#[derive(Clone, Copy, Debug)]
enum Halt {
    /// The process is paused.
    Paused,
    /// Its network hangs.
    Hung,
}

/// Halts the victim when it is about to create a fact, lets a successor do all of its work, and then lets the victim
/// continue. The broker refuses its fact, without an effect on the result.
async fn halted_before(victim: Service, halt: Halt) {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let (bucket, other) = match victim {
        Service::Requestor => (STORED, Service::Generator),
        Service::Generator => (RECEIVED, Service::Requestor),
    };
    proxy.hold(format!("$KV.{}.", bucket.name));
    let _other = deployment.run(other, "other", &[]).await;
    let log = deployment.log("victim");
    let mut late = run(victim, &proxy.url(), log, &[]).await;
    let request = request();
    deployment.publish(&publication(&request)).await;
    soon("the victim is about to create the fact", proxy.held()).await;
    match halt {
        Halt::Paused => late.pause().unwrap(),
        Halt::Hung => proxy.hang(),
    }
    let _successor = deployment.run(victim, "successor", &[]).await;
    let received: Received = deployment.fact_eventually(request.id).await;
    settled(&deployment).await;

    proxy.release();
    match halt {
        Halt::Paused => late.resume().unwrap(),
        Halt::Hung => proxy.mend(),
    }
    let (name, stream) = (victim.name(), bucket.stream);
    let refused = format!("{name}_publishes_total{{stream=\"{stream}\",outcome=\"exists\"}} ");
    eventually("the late fact is refused", async || {
        let (_, metrics) = admin(&late, "/metrics").await;
        let count = metrics.lines().find_map(|line| line.strip_prefix(&refused)?.parse().ok());
        if count.is_some_and(|count: u64| count > 0) { Ok(()) } else { Err(metrics) }
    })
    .await;
    settled(&deployment).await;
    assert_eq!(deployment.fact::<Received>(request.id).await.unwrap(), received);
    late.terminate().unwrap();
    succeeded(&mut late).await;
}

#[tokio::test]
async fn requestor_that_wakes_up_late_stores_nothing_twice() {
    halted_before(Service::Requestor, Halt::Paused).await;
}

#[tokio::test]
async fn generator_that_wakes_up_late_marks_nothing_twice() {
    halted_before(Service::Generator, Halt::Paused).await;
}

#[tokio::test]
async fn requestor_whose_network_hangs_stores_nothing_twice() {
    halted_before(Service::Requestor, Halt::Hung).await;
}

#[tokio::test]
async fn generator_whose_network_hangs_marks_nothing_twice() {
    halted_before(Service::Generator, Halt::Hung).await;
}
