//! Cancelling: a request is either stored or cancelled, never both.

use std::net::SocketAddr;

use async_nats::jetstream::stream::Config;
use contract::Amount;
use contract::facts::{RECEIVED, REQUESTED, Received, STORED, Stored};
use contract::queues::{REQUESTS, RESPONSES, Request, SCHEDULES};
use serde_json::{Value, json};
use testkit::http;
use testkit::process::logged;
use testkit::proxy::Proxy;
use tokio::process::Command;
use workqueue::dead_letters::Reason;
use workqueue::{Bucket, JobId, Priority, now, topology};

use crate::api::{ACCEPTS, accepted, gateway, get, post};
use crate::deployment::{
    self, Deployment, PATIENT, Service, api_addr, creation, programs, publication, run, soon,
};

async fn cancel(addr: SocketAddr, id: JobId) -> Value {
    let path = format!("/requests/{id}");
    let answer = soon("an answer", http::ask(addr, "DELETE", &path, &[], "")).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Asserts that nothing is lost or doubled, and that this many of all requests were cancelled.
async fn cancelled(deployment: &Deployment, requests: usize, cancelled: usize) {
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    let counts = (verdict.requested, verdict.complete, verdict.cancelled);
    assert_eq!(counts, (requests, requests, cancelled), "{verdict}");
}

#[tokio::test]
async fn cancelled_request_leaves_its_queue_and_is_never_stored() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway-1").await;
    let mut ids = Vec::new();
    for priority in ["high", "normal", "low"] {
        ids.push(accepted(&post(api, None, &json!({ "priority": priority })).await));
    }
    for (left, id) in [2, 1, 0].into_iter().zip(&ids) {
        let state = cancel(api, *id).await;
        assert_eq!(
            (&state["status"], &state["cancelled_by"]),
            (&"cancelled".into(), &"gateway-1".into())
        );
        assert_eq!(deployment.depth(REQUESTS).await, left);
        // A repetition through another gateway has the same result.
        assert_eq!(cancel(api, *id).await, state);
        assert_eq!(get(api, &format!("/requests/{id}")).await.json(), state);
    }
    let unknown = format!("/requests/{}", JobId::new());
    let answer = http::ask(api, "DELETE", &unknown, &[], "").await.unwrap();
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(answer.json()["type"].as_str().unwrap().ends_with("#no-request"), "{answer:?}");
    cancelled(&deployment, 3, 3).await;
}

#[tokio::test]
async fn response_under_way_to_a_cancelled_request_is_not_stored() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway-1").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    deployment.drained(REQUESTS).await;
    // The requestor has the response, and is about to store it.
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    proxy.hold(STORED.subject(id));
    let _requestor = run(
        Service::Requestor,
        &proxy.url(),
        deployment.log("requestor"),
        &[("REQUEST_RATE", "0")],
    )
    .await;
    soon("the requestor is about to store", proxy.held()).await;
    assert_eq!(cancel(api, id).await["status"], "cancelled");
    proxy.release();
    deployment.drained(RESPONSES).await;
    assert!(matches!(deployment.fact::<Stored>(id).await, Some(Stored::Cancelled(_))));
    cancelled(&deployment, 1, 1).await;
    assert_eq!(deployment.facts(RECEIVED).await, 0);
}

#[tokio::test]
async fn stored_request_cannot_be_cancelled_any_more() {
    let deployment = Deployment::with(&PATIENT).await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let (_gateway, api) = gateway(&deployment, "gateway-1").await;
    let log = deployment.log("gateway-2");
    let other = deployment::gateway(&proxy.url(), log, &[]).await;
    logged(&other, ACCEPTS).await;
    let slow = api_addr(&other).await;
    let id = accepted(&post(api, None, &json!({})).await);
    // This gateway has found nothing stored, and is about to cancel. The answer to its client is that the outcome is
    // unknown, or the first decision.
    proxy.hold(STORED.subject(id));
    let path = format!("/requests/{id}");
    let cancelling = tokio::spawn(async move { http::ask(slow, "DELETE", &path, &[], "").await });
    soon("the gateway is about to cancel", proxy.held()).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    deployment.fact_eventually::<Received>(id).await;
    proxy.release();
    let answer = soon("an answer", cancelling).await.unwrap().unwrap();
    assert!([200, 503].contains(&answer.status), "{answer:?}");
    for api in [slow, api] {
        assert_eq!(cancel(api, id).await["status"], "received");
    }
    cancelled(&deployment, 1, 0).await;
}

#[tokio::test]
async fn cancelled_scheduled_request_is_never_submitted() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway-1").await;
    let id = accepted(&post(api, None, &json!({ "delay": "1h" })).await);
    assert_eq!(get(api, &format!("/requests/{id}")).await.json()["status"], "scheduled");
    assert_eq!(deployment.depth(SCHEDULES).await, 1);
    let state = cancel(api, id).await;
    assert_eq!(state["status"], "cancelled", "{state}");
    assert_eq!(deployment.depth(SCHEDULES).await, 0);
    assert_eq!(get(api, &format!("/requests/{id}")).await.json(), state);
    cancelled(&deployment, 1, 1).await;
}

#[tokio::test]
async fn gateway_killed_before_cancelling_for_later_still_cancels() {
    killed_while_cancelling_for_later(STORED).await;
}

#[tokio::test]
async fn gateway_killed_while_cancelling_for_later_loses_nothing() {
    killed_while_cancelling_for_later(REQUESTED).await;
}

/// Cancels a scheduled request, and kills the gateway when it is about to create its fact in this bucket.
async fn killed_while_cancelling_for_later(bucket: Bucket) {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway-1").await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let log = deployment.log("gateway-2");
    let mut other = deployment::gateway(&proxy.url(), log, &[]).await;
    logged(&other, ACCEPTS).await;
    let addr = api_addr(&other).await;
    // Due after all facts would have expired.
    let id = accepted(&post(api, None, &json!({ "delay": "30d" })).await);
    // It is about to create the cancellation, or has created it and is about to record the acceptance.
    proxy.hold(bucket.subject(id));
    let path = format!("/requests/{id}");
    let ask = path.clone();
    let cancelling = tokio::spawn(async move { http::ask(addr, "DELETE", &ask, &[], "").await });
    soon("the gateway is about to create the fact", proxy.held()).await;
    let is_cancelled = matches!(deployment.fact::<Stored>(id).await, Some(Stored::Cancelled(_)));
    assert_eq!(is_cancelled, bucket == REQUESTED);
    let status = if is_cancelled { "cancelled" } else { "scheduled" };
    assert_eq!(get(api, &path).await.json()["status"], status);
    other.kill().await.unwrap();
    cancelling.abort();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    deployment.fact_eventually::<Request>(id).await;
    deployment.drained(SCHEDULES).await;
    assert_eq!(get(api, &path).await.json()["status"], "cancelled");
    cancelled(&deployment, 1, 1).await;
}

#[tokio::test]
async fn discard_cancels_a_request_that_may_still_be_accepted() {
    let deployment = Deployment::with(&PATIENT).await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let _generator = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    // The process that submitted it died before it created the fact; another one creates it later.
    let request = Request::new(JobId::new(), Amount::new(1, 8).unwrap(), "by hand", now());
    deployment.publish(&publication(&request)).await;
    deployment.dead_letters(1).await;
    let id = request.id.to_string();
    let (status, said) = deployment.decoupled(["dead-letters", "discard", &id]).await;
    assert_eq!(status, Some(0), "{said}");
    deployment.publish(&creation(&request)).await;
    cancelled(&deployment, 1, 1).await;
}

#[tokio::test]
async fn cancel_command_without_room_gives_up() {
    let deployment = Deployment::with(&PATIENT).await;
    let id = deployment.submit(Priority::Normal, 1).await[0].to_string();
    let mut cancel = Command::new(&programs().await.decoupled);
    // It has no flag of this name, and does not read the variable.
    cancel.env_clear().env("CONCURRENCY", "0");
    cancel.args(["requests", "cancel", &id, "--nats-url", deployment.url()]);
    // There is no room for the cancellation.
    let config = topology::bucket_state(deployment.nats(), STORED).await.unwrap().config;
    deployment.nats().update_stream(&Config { max_bytes: 1, ..config }).await.unwrap();
    let output = soon("it ends", cancel.output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("it is away, or has no room"), "{said}");
}

#[tokio::test]
async fn request_that_expired_is_not_answered() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway-1").await;
    let over = accepted(&post(api, None, &json!({ "expires_at": "2026-01-02T12:00:00Z" })).await);
    let later = accepted(&post(api, None, &json!({ "expires_at": "2126-01-02T12:00:00Z" })).await);
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    deployment.fact_eventually::<Received>(later).await;
    let letters = deployment.dead_letters(1).await;
    assert!(letters[0].0.ends_with(&over.to_string()), "{letters:?}");
    let state = get(api, &format!("/requests/{over}")).await.json();
    assert_eq!(
        (&state["status"], &state["expires_at"]),
        (&"dead-lettered".into(), &"2026-01-02T12:00:00Z".into())
    );
    let reason = state["dead_letter"]["reason"].as_str().unwrap();
    assert!(reason.starts_with(Reason::Expired.as_str()), "{reason}");
    // The cancellation is the decision.
    assert_eq!(cancel(api, over).await["status"], "cancelled");
    cancelled(&deployment, 2, 1).await;
}
