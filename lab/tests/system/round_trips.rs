//! A round trip, from the request to the mark.

use contract::Amount;
use contract::facts::{RECEIVED, REQUESTED, Received, STORED};
use contract::queues::{self, REQUESTS, RESPONSES, Request};
use futures_util::StreamExt;
use testkit::eventually::eventually;
use testkit::process::logged;
use workqueue::JobId;
use workqueue::topology::Limits;

use crate::deployment::{
    Deployment, LIMITS, PATIENT, Service, publication, ready, soon, succeeded,
};

pub fn request() -> Request {
    Request::new(JobId::new(), Amount::new(2, 16).unwrap(), "by hand", workqueue::now())
}

#[tokio::test]
async fn round_trip_stores_and_marks_the_same_strings() {
    let deployment = Deployment::start().await;
    let _generator =
        deployment.run(Service::Generator, "generator", &[("INSTANCE", "generator-1")]).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("INSTANCE", "requestor-1")]).await;
    let request = request();
    deployment.publish(&publication(&request)).await;

    let received: Received = deployment.fact_eventually(request.id).await;
    let stored = deployment.stored(request.id).await.unwrap();
    assert_eq!(received.values, stored.values);
    assert_eq!(stored.values.as_slice().len(), 2);
    assert!(stored.values.as_slice().iter().all(|string| string.len() == 16));
    assert_eq!(stored.requested_at, request.requested_at);
    assert_eq!(stored.requestor, "requestor-1");
    assert_eq!([stored.generator, received.marked_by], ["generator-1", "generator-1"]);
}

#[tokio::test]
async fn requestor_may_start_long_before_any_generator() {
    let deployment = Deployment::bare().await;
    let mut requestor = deployment.ask(100).await;
    eventually("all requests wait", async || {
        match workqueue::topology::stream_state(deployment.nats(), REQUESTS.stream).await {
            Ok(stream) if stream.state.messages == 100 => Ok(()),
            state => Err(state.map(|stream| stream.state.messages)),
        }
    })
    .await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    succeeded(&mut requestor).await;
    assert_eq!(deployment.verdict().await.complete, 100);
}

#[tokio::test]
async fn generator_may_start_long_before_any_requestor() {
    let deployment = Deployment::bare().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    let mut requestor = deployment.ask(100).await;
    succeeded(&mut requestor).await;
    assert_eq!(deployment.verdict().await.complete, 100);
}

#[tokio::test]
async fn hundred_thousand_requests_are_neither_lost_nor_doubled() {
    let deployment = Deployment::start().await;
    let _generators = [
        deployment.run(Service::Generator, "generator-1", &[]).await,
        deployment.run(Service::Generator, "generator-2", &[]).await,
    ];
    let mut requestor = deployment.ask(100_000).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (100_000, 100_000), "{verdict}");
    for bucket in [REQUESTED, STORED, RECEIVED] {
        assert_eq!(deployment.facts(bucket).await, 100_000, "{}", bucket.name);
    }
    for queue in queues::ALL {
        deployment.drained(queue).await;
    }
}

#[tokio::test]
async fn requestor_counts_requests_that_another_replica_has_stored() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let other = deployment.run(Service::Requestor, "other", &[]).await;
    ready(&other).await;
    let mut requestor = deployment.ask(2_000).await;
    succeeded(&mut requestor).await;
    assert_eq!(deployment.verdict().await.complete, 2_000);
}

#[tokio::test]
async fn killed_and_restarted_broker_loses_nothing() {
    const TOTAL: u64 = 3_000;
    let mut deployment = Deployment::start().await;
    // Slow enough that the kills fall midway.
    let slow = [("WORK_TIME", "20ms"), ("CONCURRENCY", "20")];
    let _generator = deployment.run(Service::Generator, "generator", &slow).await;
    let mut requestor = deployment.ask(TOTAL).await;
    for total in [500, 1_500] {
        let received = deployment.facts_reach(RECEIVED, total).await;
        assert!(received < TOTAL, "there is nothing left to kill the broker for");
        deployment.broker.kill().await.unwrap();
        deployment.broker.restart().await.unwrap();
    }
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    let total = usize::try_from(TOTAL).unwrap();
    assert_eq!((verdict.requested, verdict.complete), (total, total), "{verdict}");
}

#[tokio::test]
async fn broker_restarted_empty_gets_its_queues_again() {
    let mut deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _busy = deployment.run(Service::Requestor, "busy", &[("REQUEST_RATE", "max")]).await;
    deployment.facts_reach(RECEIVED, 500).await;
    deployment.broker.kill().await.unwrap();
    deployment.broker.wipe().unwrap();
    deployment.broker.restart().await.unwrap();
    let mut requestor = deployment.ask(100).await;
    succeeded(&mut requestor).await;
}

#[tokio::test]
async fn full_queue_delays_the_generator_and_spends_no_attempt() {
    let deployment = Deployment::with(&Limits { queue_limit: 10, ..PATIENT }).await;
    let once = [("MAX_ATTEMPTS", "1")];
    let generator = deployment.run(Service::Generator, "generator", &once).await;
    let mut asked = 0;
    eventually("the responses and the requests are full", async || {
        let publication = publication(&request());
        asked += u64::from(deployment.publish_unless_full(&publication).await);
        let depths = (deployment.depth(REQUESTS).await, deployment.depth(RESPONSES).await);
        // With fewer requests, some are in both: their responses are stored, and their acks are on the way.
        if depths == (10, 10) && asked == 20 { Ok(()) } else { Err((depths, asked)) }
    })
    .await;
    logged(&generator, r#"waiting to publish; nothing is dropped stream="RESPONSES""#).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    eventually("all of it is received", async || {
        let received = deployment.facts(RECEIVED).await;
        if received == asked { Ok(()) } else { Err((received, asked)) }
    })
    .await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.redeliveries(), 0, "{verdict}");
    deployment.dead_letters(0).await;
}

#[tokio::test]
async fn full_queue_slows_the_requestor_and_drops_nothing() {
    let deployment = Deployment::with(&Limits { queue_limit: 10, ..LIMITS }).await;
    let mut requestor = deployment.ask(100).await;
    logged(&requestor, "waiting to publish; nothing is dropped").await;
    assert_eq!(deployment.depth(REQUESTS).await, 10);
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (100, 100), "{verdict}");
}

#[tokio::test]
async fn trace_follows_the_request_through_all_queues() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let deployment = Deployment::start().await;
    let mut deliveries = deployment.nats().client().subscribe("acknowledgments.*").await.unwrap();
    deployment.nats().client().flush().await.unwrap();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let mut publication = publication(&request());
    publication.headers.insert("traceparent", TRACE);
    publication.headers.insert("tracestate", "vendor=value");
    deployment.publish(&publication).await;
    let acknowledgment = soon("the acknowledgment", deliveries.next()).await.unwrap();
    let headers = acknowledgment.headers.unwrap();
    assert_eq!(headers.get("traceparent").unwrap().as_str(), TRACE);
    assert_eq!(headers.get("tracestate").unwrap().as_str(), "vendor=value");
}
