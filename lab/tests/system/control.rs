//! Control over HTTP: queues are paused and resumed, dead letters are counted, replayed and discarded.

use std::net::SocketAddr;

use async_nats::HeaderMap;
use contract::facts::{RECEIVED, Received, STORED, Stored};
use contract::queues::{REQUESTS, RESPONSES, Request};
use futures_util::StreamExt;
use serde_json::{Value, json};
use testkit::eventually::eventually;
use testkit::http::{self, HttpResponse};
use testkit::process::{Process, logged};
use testkit::proxy::Proxy;
use workqueue::JobId;
use workqueue::dead_letters::{self, Cause, Original};

use crate::api::{ACCEPTS, accepted, get, post};
use crate::deployment::{self, Deployment, PATIENT, Service, api_addr, publication, soon};
use crate::round_trips::request;

/// Starts a gateway with `CONTROL=on`.
async fn controlling(deployment: &Deployment) -> (Process, SocketAddr) {
    controlling_through(deployment, deployment.url()).await
}

/// Starts such a gateway with this address of the broker.
async fn controlling_through(deployment: &Deployment, url: &str) -> (Process, SocketAddr) {
    let log = deployment.log("gateway");
    let gateway = deployment::gateway(url, log, &[("CONTROL", "on")]).await;
    logged(&gateway, ACCEPTS).await;
    let addr = api_addr(&gateway).await;
    eventually("it is connected to control", async || {
        let answer = act(addr, "POST", "/queues/REQUESTS/resume", &json!({})).await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
    (gateway, addr)
}

/// Sends a request that changes something.
async fn act(addr: SocketAddr, method: &str, path: &str, body: &Value) -> HttpResponse {
    let headers = [("Content-Type", "application/json")];
    soon("an answer", http::ask(addr, method, path, &headers, &body.to_string())).await.unwrap()
}

/// Publishes a dead letter with this reason by hand, from this queue, of a job whose id differs from that in its
/// subject.
async fn dead(deployment: &Deployment, queue: workqueue::Queue, reason: &str) {
    dead_under(deployment, queue, JobId::new(), reason, &request()).await;
}

/// Publishes a dead letter of this request under the subject of this id.
async fn dead_under(
    deployment: &Deployment,
    queue: workqueue::Queue,
    id: JobId,
    reason: &str,
    request: &Request,
) {
    let message = publication(request);
    let (headers, body) = (Some(&message.headers), &message.body);
    // The message id of a dead letter is its stream and its sequence there.
    let sequence = 1_000 + deployment.depth_of_dead_letters().await;
    let subject = queue.subject(id);
    let original = Original { queue, sequence, subject: &subject, headers, body };
    let cause = Cause { reason, attempts: 1, at: workqueue::now(), by: "by hand" };
    deployment.publish(&original.dead_letter(&cause)).await;
}

#[tokio::test]
async fn paused_queue_is_resumed_over_http() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = controlling(&deployment).await;
    let paused = act(api, "POST", "/queues/REQUESTS/pause", &json!({ "for": "10m" })).await;
    assert_eq!(paused.status, 200, "{paused:?}");
    assert!(paused.json()["paused_until"].is_string(), "{paused:?}");
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let none = [("REQUEST_RATE", "0")];
    let _requestor = deployment.run(Service::Requestor, "requestor", &none).await;
    for priority in ["high", "normal", "low"] {
        accepted(&post(api, None, &json!({ "priority": priority })).await);
    }
    // A later message in another queue is handled before it.
    let state = get(api, "/queues/REQUESTS").await.json();
    assert_eq!((&state["waiting"], &state["in_flight"]), (&json!(3), &json!(0)), "{state}");
    assert_eq!(state["limit"], 100_000, "{state}");
    assert!(state["oldest_at"].is_string() && state["bytes"].as_u64() > Some(0), "{state}");
    let lanes = state["lanes"].as_array().unwrap();
    let lanes: Vec<_> = lanes.iter().map(|lane| (&lane["priority"], &lane["waiting"])).collect();
    let one = json!(1);
    let names = [json!("high"), json!("normal"), json!("low")];
    assert_eq!(lanes, names.iter().map(|name| (name, &one)).collect::<Vec<_>>());
    let queues = get(api, "/queues").await.json();
    let queues = queues["queues"].as_array().unwrap();
    let paused: Vec<_> = queues.iter().map(|queue| queue["paused_until"].is_string()).collect();
    assert_eq!(paused, [false, true, false, false]);
    assert_eq!(queues[2].get("oldest_at"), None);

    let resumed = act(api, "POST", "/queues/requests/resume", &json!({})).await;
    assert_eq!((resumed.status, resumed.json().get("paused_until")), (200, None), "{resumed:?}");
    deployment.facts_reach(RECEIVED, 3).await;
}

#[tokio::test]
async fn control_is_refused_by_default() {
    let deployment = Deployment::with(&PATIENT).await;
    dead(&deployment, REQUESTS, "malformed: by hand").await;
    let gateway = deployment.gateway("gateway", &[]).await;
    logged(&gateway, ACCEPTS).await;
    let api = api_addr(&gateway).await;
    for (method, path) in [
        ("POST", "/queues/REQUESTS/pause"),
        ("POST", "/queues/REQUESTS/resume"),
        ("POST", "/dead-letters/replay"),
        ("POST", "/dead-letters/1/replay"),
        ("DELETE", "/dead-letters/1"),
        ("DELETE", "/dead-letters?reason=malformed"),
    ] {
        let answer = act(api, method, path, &json!({})).await;
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
        assert!(answer.body.contains("CONTROL=on"), "{path}: {answer:?}");
    }
    assert_eq!(deployment.depth_of_dead_letters().await, 1);
    assert_eq!(get(api, "/queues/REQUESTS").await.json().get("paused_until"), None);
}

#[tokio::test]
async fn wrong_control_is_a_problem_that_names_a_right_one() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = controlling(&deployment).await;
    for (method, path, body, status, said) in [
        ("POST", "/queues/OTHER/pause", json!({}), 404, "SCHEDULES, REQUESTS, RESPONSES and"),
        ("GET", "/queues/KV_stored", json!({}), 404, "SCHEDULES, REQUESTS, RESPONSES and"),
        ("POST", "/queues/REQUESTS/pause", json!({ "for": "0s" }), 400, "above zero"),
        ("POST", "/queues/REQUESTS/pause", json!({ "for": "soon" }), 400, "such as 250ms"),
        ("POST", "/queues/REQUESTS/pause", json!({ "for": 10 }), 400, "string"),
        ("POST", "/queues/REQUESTS/pause", json!({ "until": "10m" }), 400, "expected `for`"),
        ("POST", "/queues/REQUESTS/pause", json!(["10m"]), 400, "not a JSON object"),
        ("POST", "/queues/REQUESTS/resume", json!({ "for": "1m" }), 400, "unknown field"),
        ("DELETE", "/dead-letters", json!({}), 400, "?reason=malformed"),
        ("DELETE", "/dead-letters?reason=odd", json!({}), 400, "the reasons are malformed"),
        (
            "DELETE",
            "/dead-letters?reason=any&queue=odd",
            json!({}),
            400,
            "the queues are SCHEDULES",
        ),
        ("DELETE", "/dead-letters?queue=REQUESTS", json!({}), 400, "?reason=any"),
        ("DELETE", "/dead-letters?reason=any&from=-1", json!({}), 400, "a whole number from 0"),
        ("DELETE", "/dead-letters/7", json!({}), 404, "no dead letter 7"),
        ("POST", "/dead-letters/7/replay", json!({}), 404, "no dead letter 7"),
        ("GET", "/dead-letters/seven", json!({}), 400, "seven"),
        ("GET", "/dead-letters?limit=1001", json!({}), 400, "from 1 to 1000"),
    ] {
        let answer = act(api, method, path, &body).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(said), "{path}: {answer:?}");
    }
    // A page of another site can send only bodies without the content type of JSON.
    let answer = http::ask(api, "POST", "/queues/REQUESTS/pause", &[], "{}").await.unwrap();
    assert_eq!(answer.status, 415, "{answer:?}");
}

#[tokio::test]
async fn discard_ends_once_the_broker_is_silent() {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let (_gateway, api) = controlling_through(&deployment, &proxy.url()).await;
    let died = request();
    dead_under(&deployment, REQUESTS, died.id, "failed: by hand", &died).await;
    proxy.hold(STORED.subject(died.id));
    let discard = async || {
        let asking = http::ask(api, "DELETE", "/dead-letters/1", &[], "");
        soon("an answer", asking).await.unwrap()
    };
    let silent = discard().await;
    assert_eq!(silent.status, 503, "{silent:?}");
    assert!(silent.body.contains("it is safe to try again"), "{silent:?}");
    assert_eq!(deployment.depth_of_dead_letters().await, 1);
    proxy.release();
    let discarded = discard().await;
    assert_eq!(discarded.status, 204, "{discarded:?}");
    assert!(matches!(deployment.fact(died.id).await, Some(Stored::Cancelled(_))));
}

#[tokio::test]
async fn dead_letters_are_counted_and_discarded_by_reason() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = controlling(&deployment).await;
    for reason in ["malformed: a", "failed: b", "malformed: c", "cursed by the moon", "malformed"] {
        dead(&deployment, REQUESTS, reason).await;
    }
    dead(&deployment, RESPONSES, "failed: d").await;
    let list = get(api, "/dead-letters?limit=2").await.json();
    assert_eq!(
        (&list["total"], &list["counted"], &list["next"]),
        (&json!(6), &json!(6), &json!(3))
    );
    let counts = |malformed, failed, other| {
        let count = |reason, count| json!({ "reason": reason, "count": count });
        json!([count("malformed", malformed), count("failed", failed), count("other", other)])
    };
    assert_eq!(list["reasons"], counts(3, 2, 1), "{list}");
    let sequences = async |path: &str| {
        let list = get(api, path).await.json();
        let letters = list["dead_letters"].as_array().unwrap();
        letters.iter().map(|letter| letter["sequence"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(sequences("/dead-letters?from=3&limit=2").await, [3, 4]);
    assert_eq!(sequences("/dead-letters?reason=failed").await, [2, 6]);
    assert_eq!(sequences("/dead-letters?reason=failed&queue=responses").await, [6]);
    assert_eq!(sequences("/dead-letters?reason=other").await, [4]);
    let letter = get(api, "/dead-letters/4").await.json();
    assert_eq!(letter["reason"], "cursed by the moon", "{letter}");
    assert_eq!((&letter["kind"], &letter["queue"]), (&json!("other"), &json!("REQUESTS")));

    // Dead letters that arrive after the first page are left alone.
    let discarded = act(api, "DELETE", "/dead-letters?reason=malformed&until=3", &json!({})).await;
    assert_eq!(discarded.json()["done"], 2, "{discarded:?}");
    assert_eq!(get(api, "/dead-letters").await.json()["reasons"], counts(1, 2, 1));
    assert_eq!(act(api, "DELETE", "/dead-letters/4", &json!({})).await.status, 204);
    assert_eq!(act(api, "DELETE", "/dead-letters/4", &json!({})).await.status, 404);
    let (status, said) =
        deployment.decoupled(["dead-letters", "discard", "--queue=responses"]).await;
    assert_eq!((status, said.as_str()), (Some(0), "Discarded 1 of 1.\n"));
    let (status, said) = deployment
        .decoupled(["dead-letters", "discard", "--reason=failed", "--queue=responses"])
        .await;
    assert_eq!((status, said.as_str()), (Some(0), "There are no such dead letters.\n"));
    let (status, said) = deployment.decoupled(["dead-letters", "discard", "5"]).await;
    assert_eq!((status, said.as_str()), (Some(0), "Discarded 1 of 1.\n"));
    assert_eq!(sequences("/dead-letters").await, [2]);
    for words in [vec!["discard"], vec!["discard", "--reason=odd"], vec!["discard", "1", "--all"]] {
        let (status, said) = deployment.decoupled([vec!["dead-letters"], words].concat()).await;
        assert_eq!(status, Some(2), "{said}");
    }
}

#[tokio::test]
async fn dead_letters_of_a_reason_are_replayed_over_http() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = controlling(&deployment).await;
    dead(&deployment, REQUESTS, "expired: by hand").await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let mut clumsy = deployment.run(Service::Generator, "clumsy", &clumsy).await;
    let id = accepted(&post(api, None, &json!({})).await);
    let other = accepted(&post(api, None, &json!({})).await);
    deployment.dead_letters(3).await;
    clumsy.kill().await.unwrap();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    // A dead letter that is not replayed stays, with the reason in the answer.
    let replayed = act(api, "POST", "/dead-letters/1/replay", &json!({})).await;
    assert_eq!(replayed.status, 409, "{replayed:?}");
    let replayed = act(api, "POST", "/dead-letters/replay?reason=expired", &json!({})).await.json();
    assert_eq!((&replayed["done"], &replayed["kept"][0]["sequence"]), (&json!(0), &json!(1)));
    assert!(replayed["kept"][0]["why"].as_str().unwrap().contains("expired"), "{replayed}");
    let replayed = act(api, "POST", "/dead-letters/2/replay", &json!({})).await;
    assert_eq!(replayed.status, 204, "{replayed:?}");
    let replayed = act(api, "POST", "/dead-letters/replay?reason=failed", &json!({})).await.json();
    assert_eq!((&replayed["done"], replayed.get("next")), (&json!(1), None), "{replayed}");
    for id in [id, other] {
        let _: Received = deployment.fact_eventually(id).await;
    }
    eventually("one is left", async || match deployment.depth_of_dead_letters().await {
        1 => Ok(()),
        count => Err(count),
    })
    .await;
}

#[tokio::test]
async fn count_of_dead_letters_is_bounded_and_reported() {
    const MORE: u64 = 10;
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = controlling(&deployment).await;
    let total = dead_letters::MOST_READ as u64 + MORE;
    let publishing = (1..=total).map(async |_| {
        let subject = dead_letters::subject(REQUESTS.stream, &JobId::new().to_string());
        let publish =
            deployment.nats().publish_with_headers(subject, HeaderMap::new(), "".into()).await;
        publish.unwrap().await.unwrap();
    });
    futures_util::stream::iter(publishing).buffer_unordered(64).collect::<Vec<()>>().await;
    let list = get(api, "/dead-letters?limit=1").await.json();
    assert_eq!((&list["total"], &list["counted"]), (&json!(total), &json!(total - MORE)), "{list}");
    // A reason that none of the read dead letters has.
    let list = get(api, "/dead-letters?reason=failed").await.json();
    assert_eq!(list["dead_letters"], json!([]));
    assert_eq!(list["next"], total - MORE + 1, "{}", list["next"]);
    let list = get(api, &format!("/dead-letters?reason=failed&from={}", list["next"])).await.json();
    assert_eq!(list.get("next"), None, "{list}");
}
