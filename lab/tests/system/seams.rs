//! SIGKILL between any two steps of the order that is the guarantee. A proxy between the victim and
//! the broker withholds the next step, so that the kill falls just before it, every time.

use contract::facts::{RECEIVED, STORED};
use contract::queues;
use lab::proxy::Proxy;

use crate::deployment::{Deployment, Side, logged, run, soon, succeeded};

const REQUESTS: u64 = 50;

/// Kills the victim when it is about to publish to a subject that begins with `step`, replaces it,
/// and expects that nobody can tell afterwards. Gives the number of requests that went through.
async fn killed_before(victim: Side, step: &str) -> u64 {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    proxy.hold(step);
    let total = REQUESTS.to_string();
    let asking = [("REQUEST_TOTAL", total.as_str()), ("REQUEST_RATE", "max")];
    let log = deployment.log("victim");
    match victim {
        Side::Generator => {
            let mut requestor = deployment.ask(REQUESTS).await;
            let mut generator = run(Side::Generator, &proxy.url(), log, &[]).await;
            soon("the victim is about to publish", proxy.held()).await;
            generator.kill().await.unwrap();
            let _successor = deployment.run(Side::Generator, "successor", &[]).await;
            succeeded(&mut requestor).await;
            settled(&deployment).await;
        }
        Side::Requestor => {
            let generator = deployment.run(Side::Generator, "generator", &[]).await;
            logged(&generator, "ready").await;
            let mut requestor = run(Side::Requestor, &proxy.url(), log, &asking).await;
            soon("the victim is about to publish", proxy.held()).await;
            requestor.kill().await.unwrap();
            let _successor = deployment.run(Side::Requestor, "successor", &[]).await;
            settled(&deployment).await;
        }
    }
    deployment.facts(RECEIVED).await
}

/// Nothing is pending, lost or doubled, and both sides say the same of each request.
async fn settled(deployment: &Deployment) {
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.pending, verdict.dead_lettered), (0, 0), "{verdict}");
    assert_eq!(verdict.complete, verdict.requested, "{verdict}");
    assert_eq!(deployment.facts(STORED).await, deployment.facts(RECEIVED).await);
    for queue in queues::ALL {
        assert_eq!(deployment.depth(queue).await, 0, "{}", queue.stream);
    }
}

#[tokio::test]
async fn a_requestor_killed_before_it_asks_has_asked_for_nothing() {
    assert_eq!(killed_before(Side::Requestor, "requests.").await, 0);
}

#[tokio::test]
async fn a_request_whose_requestor_was_killed_before_it_was_accepted_is_answered_all_the_same() {
    assert!(killed_before(Side::Requestor, "$KV.requested.").await > 0);
}

#[tokio::test]
async fn a_request_whose_generator_was_killed_before_it_answered_is_answered() {
    let received = killed_before(Side::Generator, "responses.").await;
    assert_eq!(received, REQUESTS);
}

#[tokio::test]
async fn a_request_whose_generator_was_killed_after_it_answered_is_answered_once() {
    let received = killed_before(Side::Generator, "$JS.ACK.REQUESTS.").await;
    assert_eq!(received, REQUESTS);
}

#[tokio::test]
async fn a_response_whose_requestor_was_killed_before_it_was_stored_is_stored() {
    assert!(killed_before(Side::Requestor, "$KV.stored.").await > 0);
}

#[tokio::test]
async fn a_response_whose_requestor_was_killed_after_it_was_stored_is_acknowledged() {
    assert!(killed_before(Side::Requestor, "acknowledgments.").await > 0);
}

#[tokio::test]
async fn a_response_whose_requestor_was_killed_after_it_acknowledged_is_stored_once() {
    assert!(killed_before(Side::Requestor, "$JS.ACK.RESPONSES.").await > 0);
}

#[tokio::test]
async fn an_acknowledgment_whose_generator_was_killed_before_it_was_marked_is_marked() {
    let received = killed_before(Side::Generator, "$KV.received.").await;
    assert_eq!(received, REQUESTS);
}

#[tokio::test]
async fn an_acknowledgment_whose_generator_was_killed_after_it_was_marked_is_marked_once() {
    let received = killed_before(Side::Generator, "$JS.ACK.ACKNOWLEDGMENTS.").await;
    assert_eq!(received, REQUESTS);
}
