//! Priorities: the most urgent request comes first, and none starves.

use async_nats::HeaderMap;
use contract::Amount;
use contract::facts::{self, Stored};
use contract::queues::{Acknowledgment, REQUESTS, Request};
use serde_json::json;
use testkit::eventually::eventually;
use testkit::process::logged;
use workqueue::topology::Limits;
use workqueue::{JobId, Priority, now};

use crate::deployment::{Deployment, LIMITS, PATIENT, Service, publication, ready, succeeded};

/// The number of all requests that were answered before the last of these.
async fn rank(deployment: &Deployment, ids: &[JobId]) -> usize {
    let mut at = Vec::new();
    for id in ids {
        at.push(deployment.stored(*id).await.unwrap().generated_at);
    }
    let last = at.into_iter().max().unwrap();
    let mut before = 0;
    let bucket = deployment.nats().get_stream(facts::STORED.stream).await.unwrap();
    for sequence in 1..=bucket.cached_info().state.last_sequence {
        let stored = bucket.get_raw_message(sequence).await.unwrap();
        let stored: Acknowledgment = serde_json::from_slice(&stored.payload).unwrap();
        before += usize::from(stored.generated_at < last);
    }
    before
}

#[tokio::test]
async fn most_urgent_request_is_answered_first_and_none_starves() {
    let deployment = Deployment::with(&PATIENT).await;
    let low = deployment.submit(Priority::Low, 20).await;
    let normal = deployment.submit(Priority::Normal, 20).await;
    let high = deployment.submit(Priority::High, 20).await;
    // One after another, and slowly enough that each lane has a message when a slot is free.
    let slow = [("CONCURRENCY", "1"), ("WORK_TIME", "50ms")];
    let _generator = deployment.run(Service::Generator, "generator", &slow).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    deployment.facts_reach(facts::RECEIVED, 60).await;
    // Before the last high request came the other high ones, each tenth slot for one that waited longer, and perhaps one
    // that was there first.
    let last_high = rank(&deployment, &high).await;
    assert!((19..=19 + 3).contains(&last_high), "{last_high}");
    let last_normal = rank(&deployment, &normal).await;
    assert!((39..=39 + 5).contains(&last_normal), "{last_normal}");
    let first_low = rank(&deployment, &low[..1]).await;
    assert!(first_low <= 10, "{first_low}");
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.redeliveries()), (60, 0), "{verdict}");
}

#[tokio::test]
async fn urgent_request_passes_a_backlog_that_is_in_flight() {
    let deployment = Deployment::with(&PATIENT).await;
    deployment.submit(Priority::Low, 100).await;
    let slow = [("CONCURRENCY", "4"), ("WORK_TIME", "100ms")];
    let _generator = deployment.run(Service::Generator, "generator", &slow).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    deployment.facts_reach(facts::STORED, 10).await;
    let high = deployment.submit(Priority::High, 1).await;
    deployment.fact_eventually::<Stored>(high[0]).await;
    let stored = deployment.facts(facts::STORED).await;
    assert!(stored < 100, "the backlog was done before it: {stored}");
}

#[tokio::test]
async fn queue_without_lanes_works_and_is_adjusted_in_place() {
    let deployment = Deployment::bare().await;
    let limits = Limits { queue_limit: 1000, ..LIMITS };
    // As an earlier version declared it, without priorities.
    let before = workqueue::Queue::new(REQUESTS.stream, REQUESTS.root).consumer(REQUESTS.consumer);
    let known = workqueue::KnownStreams::default();
    let topology = workqueue::topology::Topology::new(&[before], &[]);
    workqueue::topology::declare(deployment.nats(), &known, &topology, &limits).await.unwrap();
    let old = Request::new(JobId::new(), Amount::new(1, 8).unwrap(), "by hand", now());
    let subject = before.subject(old.id);
    deployment.publish_raw(&subject, HeaderMap::new(), &publication(&old).body).await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    logged(&generator, "filter_subjects is").await;
    ready(&generator).await;
    succeeded(
        &mut deployment.run(Service::Requestor, "requestor", &[("REQUEST_TOTAL", "0")]).await,
    )
    .await;
    let new = deployment.submit(Priority::Normal, 1).await[0];
    let _requestor = deployment.run(Service::Requestor, "storing", &[("REQUEST_RATE", "0")]).await;
    deployment.fact_eventually::<Stored>(old.id).await;
    let (status, said) = deployment.decoupled(["declare"]).await;
    assert_eq!(status, Some(0), "{said}");
    for changed in ["stream REQUESTS: subjects", "consumer generator of stream REQUESTS: filter"] {
        assert!(said.contains(changed), "{said}");
    }
    deployment.fact_eventually::<Stored>(new).await;
    let filters = REQUESTS.lane(Priority::Normal).filters();
    let state = deployment.queue_state(REQUESTS).await;
    let (_, consumer) = state.lanes.iter().find(|(lane, _)| lane.priority.is_normal()).unwrap();
    assert_eq!(consumer.config.filter_subjects, filters);
}

#[tokio::test]
async fn each_program_shows_the_lanes() {
    let deployment = Deployment::start().await;
    deployment.submit(Priority::High, 2).await;
    deployment.submit(Priority::Low, 3).await;
    let snapshot = async || {
        let queue = observe::queue(deployment.connection(), REQUESTS).await.unwrap();
        let lanes = serde_json::to_value(&queue.lanes).unwrap();
        let lane =
            |priority, waiting| json!({"priority": priority, "waiting": waiting, "in_flight": 0});
        let expected = json!([lane("high", 2), lane("normal", 0), lane("low", 3)]);
        if lanes == expected { Ok(queue.waiting) } else { Err(lanes) }
    };
    assert_eq!(eventually("the lanes are told", snapshot).await, 5);
    let (_, said) = deployment.decoupled(["queues", "list"]).await;
    for line in ["  high", "  normal", "  low"] {
        assert!(said.lines().any(|shown| shown.starts_with(line)), "{said}");
    }
}
