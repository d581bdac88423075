//! Delayed and recurring requests, also during faults.

use std::net::SocketAddr;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;
use cli::dead_letters::replay;
use cli::declare::declare;
use contract::Amount;
use contract::facts::{RECEIVED, REQUESTED, Received, Stored};
use contract::queues::{DueRequest, REQUESTS, Request, SCHEDULES};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use testkit::eventually::eventually;
use testkit::http::{self, HttpResponse};
use testkit::proxy::Proxy;
use workqueue::dead_letters::list;
use workqueue::topology::Limits;
use workqueue::{Job, JobId, Metrics, Producer, Trace, now};

use crate::api::{accepted, gateway, get, post};
use crate::dead_letters::publish_dead_letter;
use crate::deployment::{Deployment, LIMITS, Service, creation, ready, run, soon};
use crate::foreign_messages::acknowledgment;
use crate::round_trips::request;

const SECOND: Duration = Duration::from_secs(1);

/// Submits a request that is due at this time.
async fn submit_later(deployment: &Deployment, at: Timestamp) -> JobId {
    let metrics = Metrics::new("test");
    let producer = Producer::new(deployment.connection(), LIMITS, 8, &metrics);
    let due = DueRequest::new(Amount::new(1, 8).unwrap(), "by hand");
    let due = DueRequest { not_before: Some(at), ..due };
    producer.submit_later(&due, at).await.unwrap()
}

/// The number of due messages, and that of messages that are not due yet.
async fn depths(deployment: &Deployment) -> (u64, u64) {
    let state = deployment.queue_state(SCHEDULES).await;
    (state.waiting() + state.in_flight(), state.scheduled())
}

async fn is_due(deployment: &Deployment, count: u64) {
    eventually(&format!("{count} are due"), async || match depths(deployment).await {
        (due, _) if due == count => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Asserts that all of these were submitted when they were due, and that this many requests are complete, each once.
async fn complete(deployment: &Deployment, due: &[(JobId, Timestamp)]) {
    for (id, at) in due {
        let request: Request = deployment.fact_eventually(*id).await;
        assert_eq!(request.requested_at, *at);
    }
    deployment.facts_reach(RECEIVED, due.len() as u64).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    let counts = (verdict.complete, verdict.dead_lettered, verdict.unasked, verdict.scheduled);
    assert_eq!(counts, (due.len(), 0, 0, 0), "{verdict}");
    assert_eq!(depths(deployment).await, (0, 0));
}

pub async fn put(api: SocketAddr, name: &str, body: &Value) -> HttpResponse {
    let headers = [("Content-Type", "application/json")];
    let path = format!("/schedules/{name}");
    soon("an answer", http::ask(api, "PUT", &path, &headers, &body.to_string())).await.unwrap()
}

pub async fn delete(api: SocketAddr, name: &str) -> HttpResponse {
    let path = format!("/schedules/{name}");
    soon("an answer", http::ask(api, "DELETE", &path, &[], "")).await.unwrap()
}

#[tokio::test]
async fn delayed_request_is_scheduled_and_then_answered() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let body = json!({"count": 2, "length": 8, "priority": "high", "delay": "2s"});
    let answer = post(api, Some("key"), &body).await;
    let id = accepted(&answer);
    let not_before = answer.json()["not_before"].clone();
    assert_eq!(answer.json()["requested_at"], not_before, "{answer:?}");
    let state = get(api, &format!("/requests/{id}")).await.json();
    let expected = json!({
        "id": id, "status": "scheduled", "count": 2, "length": 8, "priority": "high", "not_before": not_before,
        "requested_by": "gateway"
    });
    assert_eq!(state, expected);
    let verdict = observe::audit::audit(deployment.nats(), Duration::ZERO).await.unwrap();
    assert_eq!((verdict.requested, verdict.scheduled), (0, 1), "{verdict}");
    // The same request under its key, and requests with other times.
    let again = post(api, Some("key"), &body).await;
    assert_eq!((accepted(&again), &again.json()), (id, &answer.json()));
    for other in [json!({"delay": "3s"}), json!({"not_before": not_before}), json!({})] {
        let mut body = json!({"count": 2, "length": 8, "priority": "high"});
        body.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        let answer = post(api, Some("key"), &body).await;
        assert_eq!(answer.status, 409, "{answer:?}");
        assert!(answer.json()["detail"].to_string().contains("a delay of 2s"), "{answer:?}");
    }
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let state = get(api, &format!("/requests/{id}?wait=60s")).await.json();
    assert_eq!(state["values"].as_array().unwrap().len(), 2, "{state}");
    assert_eq!((&state["requested_at"], state.get("not_before")), (&not_before, None), "{state}");
    assert_eq!(accepted(&post(api, Some("key"), &body).await), id);
    // A request whose time has passed is submitted at once.
    let past = post(api, None, &json!({"not_before": "2020-01-01T00:00:00Z"})).await;
    assert_eq!(past.json().get("not_before"), None, "{past:?}");
    let state = get(api, &format!("/requests/{}?wait=60s", accepted(&past))).await.json();
    assert!(state["values"].is_array(), "{state}");
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean() && verdict.complete == 2 && verdict.scheduled == 0, "{verdict}");
}

#[tokio::test]
async fn impossible_time_is_refused_with_a_hint() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let far = now() + 31 * 24 * 3600 * SECOND;
    for (body, status, words) in [
        (json!({"delay": "-1s"}), 400, "such as 250ms, 10s, 5m, 24h or 30d"),
        (json!({"delay": "31d"}), 400, "not a time from 0s to 30d"),
        (json!({"not_before": far}), 422, "more than 30 days away"),
        (json!({"not_before": "tomorrow"}), 400, "such as 2026-11-21T07:00:00Z"),
        (json!({"delay": "1s", "not_before": now()}), 400, "not both"),
    ] {
        let answer = post(api, None, &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(words), "{answer:?}");
    }
    let cron = |cron: &str, zone: Option<&str>| match zone {
        Some(zone) => json!({"cron": cron, "time_zone": zone}),
        None => json!({"cron": cron}),
    };
    for (name, body, status, words) in [
        ("a.b", json!({"every": "1h"}), 400, "write 1 to 64 characters of A-Z"),
        ("a", cron("30 3 * * *", None), 400, "has 5 fields, and a cron expression has six"),
        ("a", cron("61 30 3 * * *", None), 422, "is not a cron expression that the broker accepts"),
        ("a", cron("0 30 3 * * *", Some("Mars/Base")), 422, "such as Europe/Berlin"),
        ("a", json!({"every": "0s"}), 400, "whole seconds, at least one"),
        ("a", json!({}), 400, "write either every"),
    ] {
        let answer = put(api, name, &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(words), "{answer:?}");
    }
    assert_eq!(depths(&deployment).await, (0, 0));
}

#[tokio::test]
async fn gateway_refuses_later_requests_without_room() {
    let deployment = Deployment::with(&Limits { queue_limit: 2, ..LIMITS }).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let later = json!({"delay": "1h"});
    for _ in 0..2 {
        accepted(&post(api, None, &later).await);
    }
    let full = post(api, None, &later).await;
    assert_eq!((full.status, &full.json()["outcome"]), (503, &json!("not-asked")), "{full:?}");
    assert_eq!(put(api, "often", &json!({"every": "1h"})).await.status, 503);
    let queue = get(api, "/queues/SCHEDULES").await.json();
    let shown = ["scheduled", "limit", "full", "waiting"].map(|name| queue[name].clone());
    assert_eq!(shown, [json!(2), json!(2), json!(true), json!(0)], "{queue}");
    // There is room again once the limit is higher.
    let (status, said) = deployment.decoupled(["declare", "--queue-limit=3"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(get(api, "/queues/SCHEDULES").await.json()["full"], false);
    accepted(&post(api, None, &later).await);
    assert_eq!(depths(&deployment).await, (0, 3));
}

#[tokio::test]
async fn schedule_makes_requests_until_it_is_removed() {
    let mut deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let mut requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let body = json!({"every": "1s", "count": 2, "length": 8, "priority": "low"});
    let created = put(api, "often", &body).await;
    assert_eq!((created.status, created.header("location")), (201, Some("often")), "{created:?}");
    let standing = json!({
        "name": "often", "every": "1s", "count": 2, "length": 8, "priority": "low"
    });
    assert_eq!(created.json(), standing);
    assert_eq!(put(api, "often", &body).await.status, 200);
    assert_eq!(get(api, "/schedules/often").await.json(), standing);
    assert_eq!(get(api, "/schedules").await.json(), json!({ "schedules": [standing] }));
    let (status, said) = deployment.decoupled(["schedules", "list"]).await;
    assert!(status == Some(0) && said.contains("often"), "{said}");
    deployment.facts_reach(RECEIVED, 2).await;
    // With kills of both services.
    requestor.kill().await.unwrap();
    is_due(&deployment, 2).await;
    let before = deployment.facts(REQUESTED).await;
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    let _successor = deployment.run(Service::Requestor, "successor", &[]).await;
    deployment.facts_reach(RECEIVED, before + 3).await;
    let removed = eventually("it is removed", async || match delete(api, "often").await {
        HttpResponse { status: 503, .. } => Err("the broker is away"),
        answer => Ok(answer.status),
    })
    .await;
    assert_eq!(removed, 204);
    let gone = delete(api, "often").await;
    assert_eq!((gone.status, &gone.json()["title"]), (404, &json!("There is no such schedule")));
    assert_eq!(get(api, "/schedules/often").await.status, 404);
    is_due(&deployment, 0).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.complete, verdict.unasked), (verdict.requested, 0), "{verdict}");
    assert_eq!(deployment.facts(REQUESTED).await, verdict.requested as u64);
}

#[tokio::test]
async fn request_survives_kills_before_at_and_after_it_is_due() {
    let mut deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let first = now() + SECOND;
    let mut due = Vec::new();
    for tenth in 0..40 {
        let at = first + tenth * SECOND / 10;
        due.push((submit_later(&deployment, at).await, at));
    }
    let mut requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    ready(&requestor).await;
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    deployment.facts_reach(REQUESTED, 10).await;
    deployment.broker.kill().await.unwrap();
    requestor.kill().await.unwrap();
    eventually("all are due", async || if now() > due[39].1 { Ok(()) } else { Err(now()) }).await;
    deployment.broker.restart().await.unwrap();
    let _successor = deployment.run(Service::Requestor, "successor", &[]).await;
    complete(&deployment, &due).await;
}

/// Kills the requestor when it is about to publish to a subject that begins with `step`, for a due request.
async fn killed_before(step: &str) {
    let deployment = Deployment::start().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    proxy.hold(step);
    let at = now() - SECOND;
    let due = [(submit_later(&deployment, at).await, at)];
    let mut requestor = run(Service::Requestor, &proxy.url(), deployment.log("victim"), &[]).await;
    soon("the victim is about to publish", proxy.held()).await;
    requestor.kill().await.unwrap();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _successor = deployment.run(Service::Requestor, "successor", &[]).await;
    complete(&deployment, &due).await;
    let requests = deployment.queue_state(REQUESTS).await.stream.state.last_sequence;
    assert_eq!(requests, 1, "it was asked for twice");
}

#[tokio::test]
async fn requestor_killed_before_publishing_a_due_request_asks_once() {
    killed_before("requests.").await;
}

#[tokio::test]
async fn requestor_killed_before_accepting_a_due_request_asks_once() {
    killed_before("$KV.requested.").await;
}

#[tokio::test]
async fn requestor_killed_before_settling_a_due_request_asks_once() {
    killed_before("$JS.ACK.SCHEDULES.").await;
}

#[tokio::test]
async fn full_queue_delays_due_requests_alone() {
    let deployment = Deployment::with(&Limits { queue_limit: 5, ..LIMITS }).await;
    let at = now() - SECOND;
    let settings = [("QUEUE_LIMIT", "5"), ("CONCURRENCY", "8")];
    let submitting = join_all((0..20).map(|_| submit_later(&deployment, at)));
    let working = async {
        let requestor = deployment.run(Service::Requestor, "requestor", &settings).await;
        eventually("the queue is full", async || match deployment.depth(REQUESTS).await {
            5 => Ok(()),
            other => Err(other),
        })
        .await;
        // Responses are stored, although the requestor waits for room.
        [requestor, deployment.run(Service::Generator, "generator", &settings).await]
    };
    let (ids, _services) = tokio::join!(submitting, working);
    let due: Vec<_> = ids.into_iter().map(|id| (id, at)).collect();
    complete(&deployment, &due).await;
}

#[tokio::test]
async fn smaller_limit_of_bytes_drops_no_schedule() {
    let deployment = Deployment::start().await;
    let at = now() + Duration::from_hours(1);
    for _ in 0..3 {
        submit_later(&deployment, at).await;
    }
    let smaller = Limits { max_bytes: Some(500), ..LIMITS };
    let changes = declare(deployment.nats(), &smaller).await.unwrap();
    let kept = "stream SCHEDULES holds more than a max_bytes of 500 allows: kept it at -1";
    assert!(changes.iter().any(|line| line == kept), "{changes:?}");
    let others = "changed stream REQUESTS: max_bytes from -1 to 500";
    assert!(changes.iter().any(|line| line == others), "{changes:?}");
    assert_eq!(depths(&deployment).await, (0, 3));
}

#[tokio::test]
async fn restored_broker_fires_its_schedules() {
    let deployment = Deployment::start().await;
    let at = now() + 5 * SECOND;
    let due = [(submit_later(&deployment, at).await, at)];
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("backup");
    cli::backup::backup(deployment.connection(), &directory).await.unwrap();
    let other = Deployment::bare().await;
    // It is due before the restore.
    eventually("it is due", async || if now() > at { Ok(()) } else { Err(now()) }).await;
    cli::backup::restore(other.connection(), &directory, None).await.unwrap();
    let state = other.queue_state(SCHEDULES).await;
    assert!(state.stream.config.allow_message_schedules, "{:?}", state.stream.config);
    // The restored stream has the declared settings, and still fires.
    let _generator = other.run(Service::Generator, "generator", &[]).await;
    let _requestor = other.run(Service::Requestor, "requestor", &[]).await;
    complete(&other, &due).await;
}

#[tokio::test]
async fn request_that_is_due_twice_is_answered_once() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let at = now() - SECOND;
    let id = submit_later(&deployment, at).await;
    deployment.fact_eventually::<Stored>(id).await;
    is_due(&deployment, 0).await;
    let body = json!({"count": 1, "length": 8, "requestor": "by hand", "not_before": at});
    let body = body.to_string();
    deployment.publish_raw(&SCHEDULES.subject(id), HeaderMap::new(), body.as_bytes()).await;
    complete(&deployment, &[(id, at)]).await;
    assert_eq!(deployment.queue_state(REQUESTS).await.stream.state.last_sequence, 1);
}

#[tokio::test]
async fn command_submits_for_later_and_shows_when_it_is_due() {
    let deployment = Deployment::start().await;
    let submit = ["requests", "submit", "--delay"];
    let (status, said) = deployment.decoupled(submit.iter().chain(&["745h"])).await;
    assert!(status != Some(0) && said.contains("at most 30 days"), "{status:?} {said}");
    let times = ["1h", "--expires-at", "2126-01-02T12:00:00Z", "--priority", "low"];
    let (status, id) = deployment.decoupled(submit.iter().chain(&times)).await;
    assert_eq!(status, Some(0), "{id}");
    let (_, said) = deployment.decoupled(["requests", "show", id.trim()]).await;
    for words in
        ["scheduled", "due ", "expires     2126-01-02T12:00:00Z", "1 of 64 characters, low"]
    {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(depths(&deployment).await, (0, 1));
}

#[tokio::test]
async fn equal_schedule_continues_when_another_client_sets_it() {
    let deployment = Deployment::start().await;
    let (_one, first) = gateway(&deployment, "gateway-1").await;
    let (_two, second) = gateway(&deployment, "gateway-2").await;
    let body = json!({"every": "24h", "count": 2, "length": 8});
    assert_eq!(put(first, "daily", &body).await.status, 201);
    assert_eq!(put(second, "daily", &body).await.status, 200);
    let set = ["schedules", "set", "daily", "--every", "24h", "--count", "2", "--length", "8"];
    let (status, said) = deployment.decoupled(set).await;
    assert_eq!((status, said.trim()), (Some(0), "daily is unchanged."));
    // No new message was stored, because that would begin the interval anew.
    assert_eq!(deployment.queue_state(SCHEDULES).await.stream.state.last_sequence, 1);
}

#[tokio::test]
async fn dead_lettered_due_request_is_shown_and_discarded() {
    let deployment = Deployment::start().await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    // It was due so long ago that its facts would have expired.
    let id = submit_later(&deployment, now() - 25 * 3600 * SECOND).await;
    deployment.dead_letters(1).await;
    let path = format!("/requests/{id}");
    let state = get(api, &path).await.json();
    let letter = &state["dead_letter"];
    assert_eq!(
        (&state["status"], &letter["queue"]),
        (&json!("dead-lettered"), &json!("SCHEDULES"))
    );
    assert!(letter["reason"].as_str().unwrap().starts_with("expired"), "{state}");
    assert_eq!((&state["count"], &state["requested_by"]), (&json!(1), &json!("by hand")));
    let verdict = deployment.verdict().await;
    assert_eq!(verdict.ids.dead_lettered, [id.to_string()], "{verdict}");
    let (status, said) = deployment.decoupled(["dead-letters", "discard", &id.to_string()]).await;
    assert_eq!(status, Some(0), "{said}");
    let state = get(api, &path).await.json();
    assert_eq!((&state["status"], state.get("dead_letter")), (&json!("cancelled"), None));
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean() && verdict.dead_lettered == 0, "{verdict}");
}

#[tokio::test]
async fn replayed_due_letter_that_dies_again_is_dead_lettered() {
    let deployment = Deployment::start().await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    let config = stream.cached_info().config.clone();
    // No request fits into its queue.
    deployment.nats().update_stream(Config { max_message_size: 50, ..config }).await.unwrap();
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let id = submit_later(&deployment, now() - SECOND).await;
    for sequence in [1, 2] {
        let letters = eventually("it is a dead letter", async || {
            let letters = list(deployment.nats(), None).await.unwrap();
            let sequences: Vec<u64> = letters.iter().map(|letter| letter.sequence).collect();
            if sequences == [sequence] { Ok(letters) } else { Err(letters) }
        })
        .await;
        let verdict = deployment.verdict().await;
        assert_eq!(verdict.ids.dead_lettered, [id.to_string()], "{verdict}");
        assert_eq!(verdict.unasked, 0, "{verdict}");
        assert_eq!(replay(deployment.connection(), &letters).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn discard_accepts_an_answered_request_that_was_due() {
    let deployment = Deployment::start().await;
    // The request was submitted, but the requestor died before it recorded that.
    let request = request();
    let due = DueRequest::new(request.amount, "by hand");
    let original = due.publication(request.id, &Trace::default()).unwrap();
    publish_dead_letter(&deployment, SCHEDULES, &original, "failed").await;
    let stored = acknowledgment(&request, "aaaa");
    let (id, values) = (request.id, stored.values.clone());
    let received = Received { id, values, marked_by: "by hand".to_owned(), received_at: now() };
    deployment.publish(&creation(&Stored::Strings(stored))).await;
    deployment.publish(&creation(&received)).await;
    let (status, said) = deployment.decoupled(["dead-letters", "discard", "--all"]).await;
    assert_eq!(status, Some(0), "{said}");
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.requested, verdict.complete, verdict.unasked), (1, 1, 0), "{verdict}");
    assert!(verdict.is_clean(), "{verdict}");
}

#[tokio::test]
async fn submit_on_an_empty_broker_creates_all_streams() {
    for later in [&["--delay=1h"][..], &[]] {
        let deployment = Deployment::bare().await;
        let submit = ["requests", "submit", "--ack-wait=1s"];
        let (status, said) = deployment.decoupled(submit.iter().chain(later)).await;
        assert_eq!(status, Some(0), "{said}");
        // Only the rate limits need more.
        let changes = declare(deployment.nats(), &LIMITS).await.unwrap();
        assert_eq!(changes, ["created stream RATES"]);
    }
}

#[tokio::test]
async fn operator_sets_and_removes_a_schedule() {
    let deployment = Deployment::start().await;
    let run = async |words: &[&str]| {
        let words = ["schedules"].iter().chain(words);
        deployment.decoupled(words).await
    };
    let nightly = ["set", "nightly", "--cron", "0 30 3 * * *", "--time-zone", "Europe/Berlin"];
    let hourly = ["set", "nightly", "--every", "1h", "--count", "2", "--priority", "low"];
    for (words, expected) in [
        (&nightly[..], "nightly is set: 0 30 3 * * * (Europe/Berlin)."),
        (&nightly, "nightly is unchanged."),
        (&hourly, "nightly is replaced: every 1h."),
    ] {
        let (status, said) = run(words).await;
        assert_eq!((status, said.trim_end()), (Some(0), expected));
    }
    let (_, said) = run(&["list"]).await;
    assert!(said.contains("2 of 64, low"), "{said}");
    for (wrong, words) in [
        (&["set", "a.b", "--every", "1h"][..], "A-Z, a-z, 0-9"),
        (&["set", "often", "--cron", "30 3 * * *"], "has 5 fields"),
        (
            &["set", "often", "--cron", "0 30 3 * * *", "--time-zone", "Mars/Olympus"],
            "Mars/Olympus",
        ),
        (&["set", "often", "--every", "1500ms"], "whole seconds"),
        (&["remove", "often"], "no schedule has the name often"),
    ] {
        let (status, said) = run(wrong).await;
        assert!(status != Some(0) && said.contains(words), "{status:?}: {said}");
    }
    assert_eq!(run(&["remove", "nightly"]).await, (Some(0), "nightly is removed.\n".to_owned()));
    let (_, said) = run(&["list", "--json"]).await;
    assert_eq!(said.trim_end(), "[]");
}
