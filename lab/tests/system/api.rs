//! The HTTP API: asking, and what becomes of it.

use std::net::SocketAddr;
use std::time::Duration;

use contract::RequestId;
use contract::facts::{Asked, Fact, IDEMPOTENCY, RECEIVED, REQUESTED};
use contract::queues::{REQUESTS, Request};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::eventually::eventually;
use testkit::http::{self, Answer};
use testkit::process::Process;
use testkit::proxy::Proxy;
use tokio::time::Instant;

use crate::by_hand::acknowledgment;
use crate::deployment::{Deployment, PATIENT, Side, api_addr, ready, run, soon};
use crate::loops::request;

/// Asks for strings, under a key if there is one.
pub async fn post(addr: SocketAddr, key: Option<&str>, body: &Value) -> Answer {
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(key.map(|key| ("Idempotency-Key", key)));
    let body = body.to_string();
    let asked = http::ask(addr, "POST", "/requests", &headers, &body);
    soon("an answer", asked).await.unwrap()
}

pub async fn get(addr: SocketAddr, path: &str) -> Answer {
    soon("an answer", http::ask(addr, "GET", path, &[], "")).await.unwrap()
}

/// The id of what was accepted.
pub fn accepted(answer: &Answer) -> RequestId {
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(answer.header("location"), Some(format!("/requests/{id}").as_str()));
    id
}

/// Starts a requestor that asks for nothing by itself, and gives the address of its API, once it is
/// ready.
pub async fn requestor(deployment: &Deployment, name: &str) -> (Process, SocketAddr) {
    let settings = [("INSTANCE", name)];
    let requestor = deployment.run(Side::Requestor, name, &settings).await;
    ready(&requestor).await;
    let addr = api_addr(&requestor).await;
    (requestor, addr)
}

/// All that was asked is complete, and that many times.
async fn complete(deployment: &Deployment, count: usize) {
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.requested, verdict.complete), (count, count), "{verdict}");
}

#[tokio::test]
async fn what_is_asked_for_comes_home_and_its_status_tells_each_step() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let deployment = Deployment::with(&PATIENT).await;
    let mut responses = deployment.nats().client().subscribe("responses.*").await.unwrap();
    let (_requestor, api) = requestor(&deployment, "requestor-1").await;
    let headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("traceparent", TRACE),
        ("tracestate", "vendor=value"),
    ];
    let body = json!({"count": 2, "length": 8}).to_string();
    let answer = http::ask(api, "POST", "/requests", &headers, &body).await.unwrap();
    let id = accepted(&answer);
    // It is in the queue, and said to be accepted, once the answer is here.
    let request: Request = deployment.fact(id).await.unwrap();
    assert_eq!((request.amount.count(), request.amount.length()), (2, 8));
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    let state = get(api, &format!("/requests/{id}")).await.json();
    assert_eq!(state["status"], "queued", "{state}");
    assert_eq!(state["requested_by"], "requestor-1", "{state}");
    assert_eq!(state.get("values"), None, "{state}");

    let name = [("INSTANCE", "generator-1")];
    let _generator = deployment.run(Side::Generator, "generator", &name).await;
    let state = get(api, &format!("/requests/{id}?wait=60s")).await.json();
    assert!(["stored", "received"].contains(&state["status"].as_str().unwrap()), "{state}");
    assert_eq!(state["values"].as_array().unwrap().len(), 2, "{state}");
    let state = eventually("it is received", async || {
        let state = get(api, &format!("/requests/{id}")).await.json();
        if state["status"] == "received" { Ok(state) } else { Err(state) }
    })
    .await;
    let times = ["requested_at", "generated_at", "stored_at", "received_at"];
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
async fn a_wait_ends_once_any_replica_has_stored_the_strings_or_else_after_its_time() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let state = get(api, &format!("/requests/{id}?wait=50ms")).await.json();
    assert_eq!(state["status"], "queued", "{state}");

    let begun = Instant::now();
    let waiting = tokio::spawn(async move { get(api, &format!("/requests/{id}?wait=60s")).await });
    // In the place of another replica.
    let request: Request = deployment.fact(id).await.unwrap();
    deployment.publish(&acknowledgment(&request, "aaaa").creation()).await;
    let state = waiting.await.unwrap().json();
    assert_eq!((&state["status"], &state["values"]), (&json!("stored"), &json!(["aaaa"])));
    assert!(begun.elapsed() < Duration::from_secs(50), "it has waited for its time");
}

#[tokio::test]
async fn a_key_asks_once_however_often_and_wherever_it_comes_at_the_same_moment() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_first, first) = requestor(&deployment, "first").await;
    let (_second, second) = requestor(&deployment, "second").await;
    let body = json!({"count": 3});
    let asking = [first, second].repeat(25).into_iter().map(|api| post(api, Some("käse"), &body));
    let answers = join_all(asking).await;
    let id = accepted(&answers[0]);
    for answer in &answers {
        assert_eq!(accepted(answer), id);
        assert_eq!(answer.body, answers[0].body);
    }
    // The same meaning in other words.
    let again = post(second, Some("käse"), &json!({"length": 64, "count": 3.0})).await;
    assert_eq!(accepted(&again), id);
    let other = post(first, Some("käse"), &json!({"count": 4})).await;
    assert_eq!((other.status, &other.json()["type"]), (409, &json!("/openapi.json#key-taken")));
    assert_ne!(accepted(&post(first, Some("Käse"), &body).await), id);

    assert_eq!(deployment.facts(IDEMPOTENCY).await, 2);
    assert_eq!(deployment.facts(REQUESTED).await, 2);
    assert_eq!(deployment.depth(REQUESTS).await, 2);
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    deployment.facts_reach(RECEIVED, 2).await;
    // Also when all is done, and the broker has forgotten what it has seen.
    assert_eq!(accepted(&post(second, Some("käse"), &body).await), id);
    assert_eq!(deployment.depth(REQUESTS).await, 0);
    complete(&deployment, 2).await;
}

/// Kills a requestor that was asked under a key when it is about to publish to a subject that begins
/// with `step`, and asks the next one under the same key.
async fn killed_before(step: &str) {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let log = deployment.log("victim");
    let mut victim = run(Side::Requestor, &proxy.url(), log, &[]).await;
    ready(&victim).await;
    let api = api_addr(&victim).await;
    proxy.hold(step);
    let body = json!({});
    let (subject, answer) = tokio::join!(proxy.held(), post(api, Some("key"), &body));
    // Nobody knows what became of it, and the answer says so.
    assert_eq!((answer.status, &answer.json()["outcome"]), (503, &json!("unknown")), "{answer:?}");
    victim.kill().await.unwrap();
    let (_successor, api) = requestor(&deployment, "successor").await;
    let id = accepted(&post(api, Some("key"), &json!({})).await);
    assert!(subject.ends_with(&id.to_string()), "{subject}: {id}");
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    deployment.facts_reach(RECEIVED, 1).await;
    assert_eq!(accepted(&post(api, Some("key"), &json!({})).await), id);
    complete(&deployment, 1).await;
}

#[tokio::test]
async fn a_key_whose_requestor_was_killed_before_it_asked_is_asked_under_the_same_id() {
    killed_before("requests.").await;
}

#[tokio::test]
async fn a_key_whose_requestor_was_killed_before_it_was_accepted_is_accepted_under_the_same_id() {
    killed_before("$KV.requested.").await;
}

#[tokio::test]
async fn a_key_that_was_never_accepted_and_is_too_old_is_not_asked_any_more() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    let mut request = request();
    request.requested_at = workqueue::now() - Duration::from_hours(25);
    let (count, length) = (request.amount.count(), request.amount.length());
    let asked = Asked { key: "old".parse().unwrap(), request };
    deployment.publish(&asked.creation()).await;
    let answer = post(api, Some("old"), &json!({"count": count, "length": length})).await;
    assert_eq!((answer.status, &answer.json()["type"]), (409, &json!("/openapi.json#key-expired")));
    assert_eq!(deployment.depth(REQUESTS).await, 0);
    assert_eq!(deployment.facts(REQUESTED).await, 0);
}

#[tokio::test]
async fn what_was_given_up_says_why_and_what_is_replayed_and_received_is_received() {
    let deployment = Deployment::start().await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let mut generator = deployment.run(Side::Generator, "clumsy", &clumsy).await;
    let state = get(api, &format!("/requests/{id}?wait=60s")).await.json();
    assert_eq!(state["status"], "dead-lettered", "{state}");
    let dead = &state["dead_letter"];
    assert_eq!((&dead["queue"], &dead["attempts"]), (&json!("REQUESTS"), &json!(1)), "{state}");
    assert!(dead["reason"].as_str().unwrap().starts_with("failed"), "{state}");
    generator.kill().await.unwrap();

    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    let dead = observe::dead_letters::list(deployment.nats(), None).await.unwrap();
    cli::dead_letters::replay_all(deployment.nats(), &dead).await.unwrap();
    eventually("it is received", async || {
        let state = get(api, &format!("/requests/{id}")).await.json();
        if state["status"] == "received" { Ok(()) } else { Err(state) }
    })
    .await;
    complete(&deployment, 1).await;
}

#[tokio::test]
async fn the_newest_come_first_in_the_list_whoever_has_accepted_them() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_first, first) = requestor(&deployment, "first").await;
    let (_second, second) = requestor(&deployment, "second").await;
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
async fn nobody_has_asked_for_an_id_that_was_not_accepted() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    for query in ["", "?wait=60s"] {
        let answer = get(api, &format!("/requests/{}{query}", RequestId::new())).await;
        assert_eq!(answer.status, 404, "{answer:?}");
        assert_eq!(answer.json()["type"], "/openapi.json#no-request");
    }
}
