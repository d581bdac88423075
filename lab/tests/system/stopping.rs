//! Stopping in order, with work in hand.

use contract::facts::STORED;
use contract::queues::REQUESTS;
use lab::eventually::eventually;

use crate::deployment::{Deployment, Side, admin, logged, succeeded};

/// Waits until some requests are in the hands of a generator.
async fn in_hand(deployment: &Deployment) -> usize {
    eventually("requests are in flight", async || {
        let (_, consumer) =
            contract::topology::queue_state(deployment.nats(), REQUESTS).await.unwrap();
        match consumer.num_ack_pending {
            0 => Err("none"),
            in_flight => Ok(in_flight),
        }
    })
    .await
}

async fn redelivered(deployment: &Deployment) -> u64 {
    let verdict = deployment.verdict().await;
    verdict.redelivered.iter().map(|queue| queue.deliveries).sum()
}

#[tokio::test]
async fn a_stop_under_load_finishes_what_it_has_pulled() {
    let deployment = Deployment::start().await;
    let mut requestor = deployment.ask(3_000).await;
    let slow = [("WORK_TIME", "20ms"), ("CONCURRENCY", "64"), ("ACK_WAIT", "1s")];
    let mut first = deployment.run(Side::Generator, "first", &slow).await;
    eventually("the loop runs", async || match deployment.facts(STORED).await {
        stored if stored >= 500 => Ok(()),
        stored => Err(stored),
    })
    .await;
    in_hand(&deployment).await;
    first.terminate().unwrap();
    succeeded(&mut first).await;
    let _second = deployment.run(Side::Generator, "second", &[]).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (3_000, 3_000), "{verdict}");
    assert_eq!(redelivered(&deployment).await, 0, "what fits the drain is not given back");
}

#[tokio::test]
async fn a_stopping_requestor_finishes_what_it_has_pulled() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    let asking = [("REQUEST_RATE", "max")];
    let mut first = deployment.run(Side::Requestor, "first", &asking).await;
    eventually("the loop runs", async || match deployment.facts(STORED).await {
        stored if stored >= 500 => Ok(()),
        stored => Err(stored),
    })
    .await;
    first.terminate().unwrap();
    succeeded(&mut first).await;
    let _second = deployment.run(Side::Requestor, "second", &[]).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.complete, verdict.requested, "{verdict}");
    assert_eq!(redelivered(&deployment).await, 0, "what fits the drain is not given back");
}

#[tokio::test]
async fn what_outlives_the_drain_is_given_back_to_whoever_is_there() {
    let deployment = Deployment::start().await;
    let mut requestor = deployment.ask(10).await;
    // An hour for a string, and for a delivery: if it comes again, it was given back.
    let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "500ms")];
    let mut first = deployment.run(Side::Generator, "first", &stuck).await;
    eventually("all requests are in flight", async || match in_hand(&deployment).await {
        10 => Ok(()),
        some => Err(some),
    })
    .await;
    first.terminate().unwrap();
    succeeded(&mut first).await;
    let _second = deployment.run(Side::Generator, "second", &[]).await;
    succeeded(&mut requestor).await;
    assert_eq!(redelivered(&deployment).await, 10);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let deployment = Deployment::start().await;
    let _requestor = deployment.ask(1).await;
    let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "1h")];
    let mut generator = deployment.run(Side::Generator, "generator", &stuck).await;
    in_hand(&deployment).await;
    generator.terminate().unwrap();
    logged(&generator, "stopping").await;
    assert_eq!(admin(&generator, "/readyz").await.0, 503);
    assert_eq!(admin(&generator, "/livez").await.0, 200);
    generator.terminate().unwrap();
    let status = crate::deployment::ended(&mut generator).await;
    assert_eq!(status.code(), Some(128 + 15), "{}", generator.log_text());
}
