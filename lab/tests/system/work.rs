//! Work that is slow, or fails, or exceeds the concurrency of the workers.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use contract::facts::{Received, Stored};
use contract::queues::REQUESTS;
use futures_util::StreamExt;
use serde_json::Value;
use testkit::eventually::eventually;
use testkit::process::Process;
use workqueue::topology::Limits;

use crate::deployment::{
    Deployment, LIMITS, PATIENT, Service, admin, creation, publication, soon, succeeded,
};
use crate::foreign_messages::acknowledgment;
use crate::round_trips::request;

#[tokio::test]
async fn work_longer_than_ack_wait_is_not_redelivered() {
    let limits = Limits { ack_wait: Duration::from_secs(5), ..LIMITS };
    let deployment = Deployment::with(&limits).await;
    // Two generators, so that another replica could take the request.
    let slow = [("WORK_TIME", "12s"), ("MAX_ATTEMPTS", "1")];
    let _generators = [
        deployment.run(Service::Generator, "generator-1", &slow).await,
        deployment.run(Service::Generator, "generator-2", &slow).await,
    ];
    let mut requestor = deployment.ask(20).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (20, 20), "{verdict}");
    let requests = verdict.redelivered.iter().find(|queue| queue.queue == REQUESTS.stream);
    assert_eq!(requests.unwrap().deliveries, 0, "{verdict}");
}

#[tokio::test]
async fn failing_jobs_are_retried_with_growing_random_delays() {
    const REQUESTED: usize = 30;
    let deployment = Deployment::with(&PATIENT).await;
    // The naks of the workers, with their delays.
    let client = deployment.nats().client();
    let mut answers = client.subscribe("$JS.ACK.>").await.unwrap();
    client.flush().await.unwrap();
    let failing = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "5")];
    let _generator = deployment.run(Service::Generator, "generator", &failing).await;
    let _requestor = deployment.ask(REQUESTED as u64).await;
    let mut delays: BTreeMap<i64, Vec<Duration>> = BTreeMap::new();
    let mut settled = 0;
    while settled < REQUESTED {
        let mut message = soon("an answer", answers.next()).await.unwrap();
        let payload = message.payload.clone();
        // The subject of an answer identifies its delivery.
        message.reply = Some(message.subject.clone());
        let context = deployment.nats().clone();
        let answered = jetstream::Message { message, context };
        let attempt = answered.info().unwrap().delivered;
        let answer = std::str::from_utf8(&payload).unwrap();
        if let Some(options) = answer.strip_prefix("-NAK") {
            let options: Value = serde_json::from_str(options).unwrap();
            let delay = Duration::from_nanos(options["delay"].as_u64().unwrap());
            delays.entry(attempt).or_default().push(delay);
        } else {
            assert_eq!((answer, attempt), ("+ACK", 5), "only a dead letter is acked");
            settled += 1;
        }
    }
    assert_eq!(delays.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    for ((attempt, delays), ceiling) in delays.iter().zip([100, 200, 400, 800]) {
        let ceiling = Duration::from_millis(ceiling);
        assert_eq!(delays.len(), REQUESTED, "each is tried for the {attempt}th time once");
        assert!(delays.iter().all(|delay| !delay.is_zero() && *delay <= ceiling), "{delays:?}");
        // Uniform random delays: some are long, and few are equal.
        assert!(delays.iter().any(|delay| *delay > ceiling / 2), "{delays:?}");
        let mut different = delays.clone();
        different.sort();
        different.dedup();
        assert!(different.len() > 10, "{delays:?}");
    }
}

#[tokio::test]
async fn work_that_fails_half_of_the_time_is_done_in_the_end() {
    let deployment = Deployment::with(&PATIENT).await;
    let failing = [("FAILURE_RATE", "0.5"), ("MAX_ATTEMPTS", "100")];
    let _generator = deployment.run(Service::Generator, "generator", &failing).await;
    let mut requestor = deployment.ask(30).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (30, 30), "{verdict}");
    deployment.dead_letters(0).await;
    assert!(verdict.redeliveries() > 0, "nothing has failed: {verdict}");
}

/// Waits until this many requests are in flight, and this many wait.
pub async fn in_flight(deployment: &Deployment, flying: u64, waiting: u64) {
    eventually("all slots are taken", async || {
        let state = deployment.queue_state(REQUESTS).await;
        let state = (state.in_flight(), state.waiting());
        if state == (flying, waiting) { Ok(()) } else { Err(state) }
    })
    .await;
}

/// Makes the generators mark something, which they do beside the requests. By then a generator has had the time to take
/// another request.
async fn something_else_happens(deployment: &Deployment) {
    let other = request();
    let stored = acknowledgment(&other, "aaaa");
    deployment.publish(&creation(&Stored::Strings(stored.clone()))).await;
    deployment.publish(&publication(&stored)).await;
    deployment.fact_eventually::<Received>(other.id).await;
}

async fn has_in_flight(generator: &Process, count: usize) {
    let (_, metrics) = admin(generator, "/metrics").await;
    let line = format!(r#"generator_in_flight{{queue="REQUESTS"}} {count}"#);
    assert!(metrics.lines().any(|shown| shown == line), "{line} is missing:\n{metrics}");
}

#[tokio::test]
async fn replica_has_no_more_in_flight_than_its_concurrency() {
    let deployment = Deployment::with(&PATIENT).await;
    let _requestor = deployment.ask(100).await;
    let settings = [("WORK_TIME", "1h"), ("CONCURRENCY", "32")];
    let first = deployment.run(Service::Generator, "first", &settings).await;
    in_flight(&deployment, 32, 68).await;
    something_else_happens(&deployment).await;
    in_flight(&deployment, 32, 68).await;
    let second = deployment.run(Service::Generator, "second", &settings).await;
    in_flight(&deployment, 64, 36).await;
    something_else_happens(&deployment).await;
    in_flight(&deployment, 64, 36).await;
    for replica in [&first, &second] {
        has_in_flight(replica, 32).await;
    }
}
