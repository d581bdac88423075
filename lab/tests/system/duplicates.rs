//! Messages that are published twice.

use contract::facts::{RECEIVED, Received, STORED, Stored};
use contract::queues::ACKNOWLEDGMENTS;
use testkit::process::Process;
use workqueue::JobId;

use crate::deployment::{Deployment, Service, creation, publication};
use crate::foreign_messages::{acknowledgment, response};
use crate::round_trips::request;

async fn both_services(deployment: &Deployment) -> [Process; 2] {
    [
        deployment.run(Service::Generator, "generator", &[("CONCURRENCY", "1")]).await,
        deployment.run(Service::Requestor, "requestor", &[("CONCURRENCY", "1")]).await,
    ]
}

/// Sends a request behind all earlier messages, and waits until it is complete. With one slot for each queue, all
/// earlier messages are done by then.
async fn sentinel(deployment: &Deployment) -> JobId {
    let sentinel = request();
    deployment.publish(&publication(&sentinel)).await;
    deployment.fact_eventually::<Received>(sentinel.id).await;
    sentinel.id
}

/// Asserts that there are this many facts, none of them written twice, with equal strings in both.
async fn clean(deployment: &Deployment, requests: u64) {
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    for bucket in [STORED, RECEIVED] {
        assert_eq!(deployment.facts(bucket).await, requests, "{}", bucket.name);
    }
}

#[tokio::test]
async fn request_published_twice_has_one_result() {
    let deployment = Deployment::start().await;
    let request = request();
    for _ in 1..=5 {
        deployment.publish(&publication(&request)).await;
    }
    let _both = both_services(&deployment).await;
    sentinel(&deployment).await;
    clean(&deployment, 2).await;
    assert!(deployment.stored(request.id).await.is_some());
}

#[tokio::test]
async fn one_of_two_responses_is_stored_and_the_same_is_marked() {
    let deployment = Deployment::start().await;
    let request = request();
    deployment.publish(&publication(&response(&request, "aaaa"))).await;
    deployment.publish(&publication(&response(&request, "bbbb"))).await;
    let _both = both_services(&deployment).await;
    sentinel(&deployment).await;
    clean(&deployment, 2).await;
    let stored = deployment.stored(request.id).await.unwrap();
    let received: Received = deployment.fact(request.id).await.unwrap();
    assert!([["aaaa"], ["bbbb"]].iter().any(|values| *values == *stored.values.as_slice()));
    assert_eq!(received.values, stored.values);
}

#[tokio::test]
async fn acknowledgment_published_twice_is_marked_once() {
    let deployment = Deployment::start().await;
    let request = request();
    let stored = acknowledgment(&request, "aaaa");
    deployment.publish(&creation(&Stored::Strings(stored.clone()))).await;
    for _ in 1..=5 {
        deployment.publish(&publication(&stored)).await;
    }
    assert_eq!(deployment.depth(ACKNOWLEDGMENTS).await, 5);
    let _both = both_services(&deployment).await;
    sentinel(&deployment).await;
    clean(&deployment, 2).await;
    let received: Received = deployment.fact(request.id).await.unwrap();
    assert_eq!(received.values, stored.values);
}
