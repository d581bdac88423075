//! The HTTP API: submitting requests, and their states.

use std::net::SocketAddr;
use std::time::Duration;

use contract::facts::{Asked, IDEMPOTENCY, RECEIVED, REQUESTED, Received, STORED, Stored};
use contract::queues::{Acknowledgment, REQUESTS, Request};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::eventually::eventually;
use testkit::http::{self, HttpResponse};
use testkit::process::{Process, logged};
use testkit::proxy::Proxy;
use tokio::time::Instant;
use workqueue::{JobId, Priority};

use crate::deployment::{self, Deployment, PATIENT, Service, api_addr, creation, soon};
use crate::foreign_messages::acknowledgment;
use crate::round_trips::request;

/// The log line of a gateway once it accepts requests.
pub const ACCEPTS: &str = "accepting requests";

/// Submits a request, with a key if there is one.
pub async fn post(addr: SocketAddr, key: Option<&str>, body: &Value) -> HttpResponse {
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(key.map(|key| ("Idempotency-Key", key)));
    let body = body.to_string();
    let asked = http::ask(addr, "POST", "/requests", &headers, &body);
    soon("an answer", asked).await.unwrap()
}

pub async fn get(addr: SocketAddr, path: &str) -> HttpResponse {
    soon("an answer", http::ask(addr, "GET", path, &[], "")).await.unwrap()
}

/// The id of the accepted request.
pub fn accepted(answer: &HttpResponse) -> JobId {
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(answer.header("location"), Some(format!("requests/{id}").as_str()));
    id
}

/// Starts a gateway, and returns its address once it accepts requests.
pub async fn gateway(deployment: &Deployment, name: &str) -> (Process, SocketAddr) {
    let gateway = deployment.gateway(name, &[("INSTANCE", name)]).await;
    logged(&gateway, ACCEPTS).await;
    let addr = api_addr(&gateway).await;
    (gateway, addr)
}

/// Asserts that this many requests were made, and all are complete.
async fn complete(deployment: &Deployment, count: usize) {
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.requested, verdict.complete), (count, count), "{verdict}");
}

#[tokio::test]
async fn request_shows_each_step() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let deployment = Deployment::with(&PATIENT).await;
    let mut responses = deployment.nats().client().subscribe("responses.*").await.unwrap();
    let (_gateway, api) = gateway(&deployment, "gateway-1").await;
    let headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("traceparent", TRACE),
        ("tracestate", "vendor=value"),
    ];
    let body = json!({"count": 2, "length": 8}).to_string();
    let answer = http::ask(api, "POST", "/requests", &headers, &body).await.unwrap();
    let id = accepted(&answer);
    // Once the answer is here, the request is in the queue, and accepted.
    let request: Request = deployment.fact(id).await.unwrap();
    assert_eq!((request.amount.count(), request.amount.length()), (2, 8));
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    let state = get(api, &format!("/requests/{id}")).await.json();
    assert_eq!(state["status"], "queued", "{state}");
    assert_eq!(state["requested_by"], "gateway-1", "{state}");
    assert_eq!(state.get("values"), None, "{state}");

    let name = [("INSTANCE", "generator-1")];
    let _generator = deployment.run(Service::Generator, "generator", &name).await;
    let name = [("INSTANCE", "requestor-1")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &name).await;
    let state = get(api, &format!("/requests/{id}?wait=60s")).await.json();
    assert!(["stored", "received"].contains(&state["status"].as_str().unwrap()), "{state}");
    assert_eq!(state["values"].as_array().unwrap().len(), 2, "{state}");
    let state = eventually("it is received", async || {
        let state = get(api, &format!("/requests/{id}")).await.json();
        if state["status"] == "received" { Ok(state) } else { Err(state) }
    })
    .await;
    let times = ["requested_at", "started_at", "generated_at", "stored_at", "received_at"];
    let times = times.map(|name| state[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap());
    assert!(times.is_sorted(), "{state}");
    let by = ["generated_by", "stored_by", "received_by"].map(|name| state[name].as_str());
    let by: Vec<&str> = by.into_iter().flatten().collect();
    assert_eq!(by, ["generator-1", "requestor-1", "generator-1"], "{state}");
    let response = soon("the response", responses.next()).await.unwrap().headers.unwrap();
    assert_eq!(response.get("traceparent").unwrap().as_str(), TRACE);
    assert_eq!(response.get("tracestate").unwrap().as_str(), "vendor=value");
    complete(&deployment, 1).await;
}

#[tokio::test]
async fn request_waits_in_the_lane_of_its_priority() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    for priority in Priority::ALL {
        let asked = json!({ "priority": priority });
        let answer = post(api, Some(priority.as_str()), &asked).await;
        let id = accepted(&answer);
        assert_eq!(answer.json()["priority"], priority.as_str(), "{answer:?}");
        let subject = REQUESTS.lane(priority).subject(id);
        let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
        stream.get_last_raw_message_by_subject(&subject).await.unwrap();
        let state = get(api, &format!("/requests/{id}")).await.json();
        assert_eq!(state["priority"], priority.as_str(), "{state}");
        let list = get(api, "/requests?limit=1").await.json();
        assert_eq!(list["requests"][0]["priority"], priority.as_str(), "{list}");
        // The same request again, and another one under the same key.
        assert_eq!(accepted(&post(api, Some(priority.as_str()), &asked).await), id);
        let other = json!({ "priority": if priority.is_normal() { "low" } else { "normal" } });
        let answer = post(api, Some(priority.as_str()), &other).await;
        assert_eq!(answer.status, 409, "{answer:?}");
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains(&format!("priority {priority}")), "{detail}");
    }
    let answer = post(api, None, &json!({ "priority": "urgent" })).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.body.contains("the priorities are high, normal and low"), "{answer:?}");
}

#[tokio::test]
async fn wait_ends_once_the_strings_are_stored_or_its_time_is_over() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_first, first) = gateway(&deployment, "first").await;
    let (_second, second) = gateway(&deployment, "second").await;
    let id = accepted(&post(first, None, &json!({})).await);
    let state = get(first, &format!("/requests/{id}?wait=50ms")).await.json();
    assert_eq!(state["status"], "queued", "{state}");

    // Through both replicas of the gateway, without a requestor.
    let waiting = [first, second].map(|api| {
        let begun = Instant::now();
        tokio::spawn(async move {
            let state = get(api, &format!("/requests/{id}?wait=60s")).await.json();
            (state, begun.elapsed())
        })
    });
    waits_for(&deployment, id, 2).await;
    let request: Request = deployment.fact(id).await.unwrap();
    deployment.publish(&creation(&Stored::Strings(acknowledgment(&request, "aaaa")))).await;
    for waiting in waiting {
        let (state, took) = waiting.await.unwrap();
        assert_eq!((&state["status"], &state["values"]), (&json!("stored"), &json!(["aaaa"])));
        assert!(took < Duration::from_secs(50), "it has waited for its time");
    }
    // The gateway does not subscribe to requests without a waiter.
    waits_for(&deployment, id, 0).await;
}

/// Waits until this many clients wait for the strings of this request.
async fn waits_for(deployment: &Deployment, id: JobId, count: usize) {
    let subject = STORED.subject(id);
    let monitor = deployment.broker.monitor_url();
    let monitor = monitor.trim_start_matches("http://").parse().unwrap();
    eventually("all listen", async || {
        let (_, connections) = http::get(monitor, "/connz?subs=true").await.unwrap();
        match connections.matches(&subject).count() {
            listening if listening == count => Ok(()),
            _ => Err(connections),
        }
    })
    .await;
}

#[tokio::test]
async fn requests_are_accepted_while_both_services_are_away() {
    let deployment = Deployment::bare().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let id = accepted(&post(api, None, &json!({"count": 2})).await);
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    assert_eq!(get(api, &format!("/requests/{id}")).await.json()["status"], "queued");
    let page = get(api, "/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let history = get(api, &format!("/api/requests/{id}")).await.json();
    assert_eq!(history["queues"], json!(["REQUESTS"]), "{history}");

    let waiting = tokio::spawn(async move { get(api, &format!("/requests/{id}?wait=60s")).await });
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let state = waiting.await.unwrap().json();
    assert_eq!(state["values"].as_array().map(Vec::len), Some(2), "{state}");
    deployment.facts_reach(RECEIVED, 1).await;
    complete(&deployment, 1).await;
}

#[tokio::test]
async fn concurrent_requests_under_one_key_submit_once() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_first, first) = gateway(&deployment, "first").await;
    let (_second, second) = gateway(&deployment, "second").await;
    let body = json!({"count": 3});
    let asking = [first, second].repeat(25).into_iter().map(|api| post(api, Some("käse"), &body));
    let answers = join_all(asking).await;
    let id = accepted(&answers[0]);
    for answer in &answers {
        assert_eq!(accepted(answer), id);
        assert_eq!(answer.body, answers[0].body);
    }
    // The same request, written differently.
    let again = post(second, Some("käse"), &json!({"length": 64, "count": 3.0})).await;
    assert_eq!(accepted(&again), id);
    let other = post(first, Some("käse"), &json!({"count": 4})).await;
    assert_eq!((other.status, &other.json()["type"]), (409, &json!("openapi.json#key-taken")));
    assert_ne!(accepted(&post(first, Some("Käse"), &body).await), id);

    assert_eq!(deployment.facts(IDEMPOTENCY).await, 2);
    assert_eq!(deployment.facts(REQUESTED).await, 2);
    // A gateway that finds a key before its request is accepted publishes the request again, under the same subject.
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    assert_eq!(stream.cached_info().state.subjects_count, 2);
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    deployment.facts_reach(RECEIVED, 2).await;
    // Also after the request is complete.
    assert_eq!(accepted(&post(second, Some("käse"), &body).await), id);
    deployment.drained(REQUESTS).await;
    complete(&deployment, 2).await;
}

/// Submits a request under a key, kills the gateway when it is about to publish to a subject that begins with `step`,
/// and submits the request to the next gateway under the same key.
async fn killed_before(step: &str) {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let log = deployment.log("victim");
    let mut victim = deployment::gateway(&proxy.url(), log, &[]).await;
    logged(&victim, ACCEPTS).await;
    let api = api_addr(&victim).await;
    proxy.hold(step);
    let body = json!({});
    let (subject, answer) = tokio::join!(proxy.held(), post(api, Some("key"), &body));
    // The outcome is unknown, and the answer says so.
    assert_eq!((answer.status, &answer.json()["outcome"]), (503, &json!("unknown")), "{answer:?}");
    victim.kill().await.unwrap();
    let (_successor, api) = gateway(&deployment, "successor").await;
    let id = accepted(&post(api, Some("key"), &json!({})).await);
    assert!(subject.ends_with(&id.to_string()), "{subject}: {id}");
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    deployment.facts_reach(RECEIVED, 1).await;
    assert_eq!(accepted(&post(api, Some("key"), &json!({})).await), id);
    complete(&deployment, 1).await;
}

#[tokio::test]
async fn key_keeps_its_id_through_a_kill_before_the_publish() {
    killed_before("requests.").await;
}

#[tokio::test]
async fn key_keeps_its_id_through_a_kill_before_the_acceptance() {
    killed_before("$KV.requested.").await;
}

#[tokio::test]
async fn key_that_was_never_accepted_expires() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let mut request = request();
    request.requested_at = workqueue::now() - Duration::from_hours(25);
    let (count, length) = (request.amount.count(), request.amount.length());
    let asked = Asked { key: "old".parse().unwrap(), request, not_before: None, delay_ms: None };
    deployment.publish(&creation(&asked)).await;
    let answer = post(api, Some("old"), &json!({"count": count, "length": length})).await;
    assert_eq!((answer.status, &answer.json()["type"]), (409, &json!("openapi.json#key-expired")));
    assert_eq!(deployment.depth(REQUESTS).await, 0);
    assert_eq!(deployment.facts(REQUESTED).await, 0);
}

#[tokio::test]
async fn dead_letter_has_its_reason_until_it_is_replayed() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let mut generator = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    let state = get(api, &format!("/requests/{id}?wait=60s")).await.json();
    assert_eq!(state["status"], "dead-lettered", "{state}");
    let dead = &state["dead_letter"];
    assert_eq!((&dead["queue"], &dead["attempts"]), (&json!("REQUESTS"), &json!(1)), "{state}");
    assert!(dead["reason"].as_str().unwrap().starts_with("failed"), "{state}");
    generator.kill().await.unwrap();

    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let dead = workqueue::dead_letters::list(deployment.nats(), None).await.unwrap();
    assert_eq!(cli::dead_letters::replay(deployment.connection(), &dead).await.unwrap(), 0);
    eventually("it is received", async || {
        let state = get(api, &format!("/requests/{id}")).await.json();
        if state["status"] == "received" { Ok(()) } else { Err(state) }
    })
    .await;
    complete(&deployment, 1).await;
}

#[tokio::test]
async fn strings_received_with_other_values_are_doubled() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let request = request();
    let Acknowledgment { id, values, .. } = acknowledgment(&request, "other");
    let received_at = workqueue::now();
    let received = Received { id, values, marked_by: "by hand".to_owned(), received_at };
    deployment.publish(&creation(&request)).await;
    deployment.publish(&creation(&received)).await;
    // Nothing is stored, so the request has not come to its end.
    for status in ["queued", "doubled"] {
        let state = get(api, &format!("/requests/{id}")).await.json();
        assert_eq!(state["status"], status, "{state}");
        let list = get(api, "/requests").await.json();
        assert_eq!(list["requests"][0]["status"], status, "{list}");
        let history = get(api, &format!("/api/requests/{id}")).await.json();
        assert_eq!(history["request"]["status"], status, "{history}");
        if status == "queued" {
            deployment.publish(&creation(&Stored::Strings(acknowledgment(&request, "aaaa")))).await;
        }
    }
    assert_eq!(deployment.verdict().await.ids.doubled, [id.to_string()]);
}

#[tokio::test]
async fn list_has_the_requests_of_all_replicas_newest_first() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_first, first) = gateway(&deployment, "first").await;
    let (_second, second) = gateway(&deployment, "second").await;
    assert_eq!(get(first, "/requests").await.json(), json!({"requests": []}));
    let mut ids = Vec::new();
    for api in [first, second, first, second, first] {
        ids.push(accepted(&post(api, None, &json!({"count": 2})).await).to_string());
    }
    ids.reverse();
    let list = get(second, "/requests?limit=3").await.json();
    let listed = |list: &Value| -> Vec<String> {
        let requests = list["requests"].as_array().unwrap().iter();
        requests.map(|request| request["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&list), ids[..3], "{list}");
    let newest = &list["requests"][0];
    assert_eq!((&newest["status"], &newest["count"]), (&json!("queued"), &json!(2)), "{list}");
    assert_eq!(newest["requested_by"], "first", "{list}");
    assert_eq!(listed(&get(first, "/requests").await.json()), ids);
}

#[tokio::test]
async fn id_that_was_not_accepted_is_not_found() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    for query in ["", "?wait=60s"] {
        let answer = get(api, &format!("/requests/{}{query}", JobId::new())).await;
        assert_eq!(answer.status, 404, "{answer:?}");
        assert_eq!(answer.json()["type"], "../openapi.json#no-request");
    }
}
