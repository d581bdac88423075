//! The HTTP API with full queues, without a broker, with hostile clients, and during its stop.

use std::time::Duration;

use contract::facts::{IDEMPOTENCY, RECEIVED, REQUESTED};
use contract::queues::{REQUESTS, RESPONSES};
use futures_util::future::join_all;
use serde_json::json;
use testkit::eventually::eventually;
use testkit::http::HttpResponse;
use testkit::process::logged;
use testkit::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::Instant;
use workqueue::topology::Limits;

use crate::api::{ACCEPTS, accepted, gateway, get, post};
use crate::deployment::{
    self, Deployment, PATIENT, Service, admin, api_addr, ended, programs, soon, succeeded,
};

/// An answer that takes longer than this has waited for something.
const AT_ONCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn full_queue_leaves_nothing_of_a_request() {
    const ROOM: u64 = 3;
    let deployment = Deployment::with(&Limits { queue_limit: ROOM, ..PATIENT }).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    for _ in 0..ROOM {
        accepted(&post(api, None, &json!({})).await);
    }
    // The key has its id already, and another gateway may find room for the request.
    for (key, outcome) in [(None, "not-asked"), (Some("key"), "unknown"), (Some("key"), "unknown")]
    {
        let answer = post(api, key, &json!({})).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        let problem = answer.json();
        assert_eq!(problem["type"], "openapi.json#queue-full", "{problem}");
        assert_eq!(problem["outcome"], outcome, "{problem}");
    }
    assert_eq!(deployment.depth(REQUESTS).await, ROOM);
    assert_eq!(deployment.facts(REQUESTED).await, ROOM);
    // Only the key is stored, with its id.
    assert_eq!(deployment.facts(IDEMPOTENCY).await, 1);
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    deployment.facts_reach(RECEIVED, ROOM).await;
    // A message leaves its queue with its ack, which may come after the facts.
    eventually("the queue has room", async || {
        let depth = deployment.depth(REQUESTS).await;
        if depth < ROOM { Ok(()) } else { Err(depth) }
    })
    .await;
    accepted(&post(api, Some("key"), &json!({})).await);
    deployment.facts_reach(RECEIVED, ROOM + 1).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.complete, usize::try_from(ROOM).unwrap() + 1, "{verdict}");
}

#[tokio::test]
async fn key_without_room_publishes_nothing_and_an_old_one_works() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let id = accepted(&post(api, Some("first"), &json!({})).await);
    let context = async_nats::jetstream::new(deployment.nats().client().clone());
    let mut config =
        context.get_stream(IDEMPOTENCY.stream).await.unwrap().get_info().await.unwrap().config;
    config.max_messages = 1;
    context.update_stream(config).await.unwrap();
    let answer = post(api, Some("second"), &json!({})).await;
    let problem = answer.json();
    assert_eq!((answer.status, &problem["outcome"]), (503, &json!("unknown")), "{answer:?}");
    assert_eq!(problem["type"], "openapi.json#queue-full", "{answer:?}");
    assert_eq!(accepted(&post(api, Some("first"), &json!({})).await), id);
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    assert_eq!(deployment.facts(IDEMPOTENCY).await, 1);
}

fn unknown(answer: &HttpResponse) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["type"], "openapi.json#broker-away", "{problem}");
    assert_eq!(problem["outcome"], "unknown", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("unknown"), "{problem}");
}

#[tokio::test]
async fn outcome_without_a_broker_is_unknown_and_a_key_is_safe() {
    let mut deployment = Deployment::with(&PATIENT).await;
    let (gateway, api) = gateway(&deployment, "gateway").await;
    deployment.broker.kill().await.unwrap();
    let begun = Instant::now();
    unknown(&post(api, Some("key"), &json!({})).await);
    assert!(begun.elapsed() < AT_ONCE);
    let answer = get(api, "/requests").await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (503, &json!(null)), "{answer:?}");
    let before = gateway.memory();
    for _ in 0..20 {
        for answer in join_all((0..50).map(async |_| post(api, None, &json!({})).await)).await {
            unknown(&answer);
        }
    }
    // A leak of four kilobytes for each request would exceed this.
    if let (Some(before), Some(after)) = (before, gateway.memory()) {
        assert!(after < before + 4_096, "from {before} kB to {after} kB");
    }
    deployment.broker.restart().await.unwrap();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let answer = eventually("the same key is accepted", async || {
        let answer = post(api, Some("key"), &json!({})).await;
        if answer.status == 202 { Ok(answer) } else { Err(answer) }
    })
    .await;
    deployment.facts_reach(RECEIVED, 1).await;
    assert_eq!(accepted(&post(api, Some("key"), &json!({})).await), accepted(&answer));
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean() && verdict.complete == 1, "{verdict}");
}

#[tokio::test]
async fn hanging_network_piles_up_and_doubles_nothing() {
    let deployment = Deployment::with(&PATIENT).await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let gateway = deployment::gateway(&proxy.url(), deployment.log("gateway"), &[]).await;
    logged(&gateway, ACCEPTS).await;
    let api = api_addr(&gateway).await;
    proxy.hang();
    let begun = Instant::now();
    unknown(&post(api, Some("key"), &json!({})).await);
    let answer = get(api, "/requests").await;
    let what = (answer.status, &answer.json()["type"]);
    assert_eq!(what, (503, &json!("openapi.json#broker-away")), "{answer:?}");
    assert!(begun.elapsed() < AT_ONCE);
    for _ in 0..5 {
        let asking = (0..100).map(async |number| {
            let key = (number % 2 == 0).then_some("key");
            (key, post(api, key, &json!({})).await)
        });
        for (key, answer) in join_all(asking).await {
            assert_eq!(answer.status, 503, "{answer:?}");
            // Also if it has waited for its turn, and not for the broker.
            assert!(key.is_none() || answer.json()["outcome"] == "unknown", "{answer:?}");
        }
    }
    if let Some(memory) = gateway.memory() {
        assert!(memory < 64 * 1024, "{memory} kB");
    }
    // It still answers liveness probes.
    assert_eq!(admin(&gateway, "/livez").await.0, 200);
    proxy.mend();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let answer = eventually("the same key is accepted", async || {
        let answer = post(api, Some("key"), &json!({})).await;
        if answer.status == 202 { Ok(answer) } else { Err(answer) }
    })
    .await;
    assert_eq!(accepted(&post(api, Some("key"), &json!({})).await), accepted(&answer));
    deployment.facts_reach(RECEIVED, 1).await;
    let verdict = deployment.verdict().await;
    // A request that timed out may have been stored, but no client was told that it is accepted.
    assert!(verdict.is_clean() && verdict.complete == verdict.requested, "{verdict}");
}

#[tokio::test]
async fn api_reports_an_absent_broker_before_its_first_start() {
    let deployment = Deployment::bare().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    proxy.cut();
    let mut gateway = deployment::gateway(&proxy.url(), deployment.log("early"), &[]).await;
    let api = api_addr(&gateway).await;
    unknown(&post(api, None, &json!({})).await);
    assert_eq!(get(api, "/requests").await.status, 503);
    assert_eq!(get(api, "/openapi.json").await.status, 200);
    proxy.mend();
    logged(&gateway, ACCEPTS).await;
    accepted(&post(api, None, &json!({})).await);
    gateway.terminate().unwrap();
    succeeded(&mut gateway).await;
}

#[tokio::test]
async fn queue_that_is_not_declared_asks_the_client_to_retry() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    deployment.nats().delete_stream(RESPONSES.stream).await.unwrap();
    for path in ["/queues", "/queues/RESPONSES"] {
        let answer = get(api, path).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
        assert!(answer.body.contains("is not there"), "{answer:?}");
    }
}

#[tokio::test]
async fn shutdown_answers_waiters_and_closes_silent_clients() {
    let deployment = Deployment::with(&PATIENT).await;
    let (mut gateway, api) = gateway(&deployment, "gateway").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let path = format!("/requests/{id}?wait=60s");
    let waiting = tokio::spawn(async move { get(api, &path).await });
    eventually("a client waits", async || {
        let (_, metrics) = admin(&gateway, "/metrics").await;
        if metrics.contains("gateway_api_in_flight 1") { Ok(()) } else { Err(metrics) }
    })
    .await;
    // It does not wait for a silent client.
    let mut idle = TcpStream::connect(api).await.unwrap();
    gateway.terminate().unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("queued")), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    succeeded(&mut gateway).await;
    soon("it is closed", idle.read_to_end(&mut Vec::new())).await.unwrap();
}

#[tokio::test]
async fn silent_and_slow_clients_do_not_block_other_clients() {
    let deployment = Deployment::with(&PATIENT).await;
    let (gateway, api) = gateway(&deployment, "gateway").await;
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut client = TcpStream::connect(api).await.unwrap();
        let sent = match number % 3 {
            0 => "POST /requests HTTP/1.1\r\nHost: loc",
            1 => "",
            _ => "POST /requests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
        };
        client.write_all(sent.as_bytes()).await.unwrap();
        silent.push(client);
    }
    accepted(&post(api, None, &json!({})).await);
    // Other clients are answered even if clients that withhold the rest of a body take all connections.
    for _ in 0..200 {
        let head = "POST /requests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{";
        let mut client = TcpStream::connect(api).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        silent.push(client);
    }
    for answer in join_all((0..20).map(async |_| post(api, None, &json!({})).await)).await {
        accepted(&answer);
    }
    let mut first = silent.swap_remove(0);
    // The connection is closed, at the latest when the head has not arrived in time.
    let _ = soon("it is closed", first.read_to_end(&mut Vec::new())).await;
    if let Some(memory) = gateway.memory() {
        assert!(memory < 64 * 1024, "{memory} kB");
    }
}

#[tokio::test]
async fn body_has_a_time_limit() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let mut client = TcpStream::connect(api).await.unwrap();
    let head = "POST /requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 20\r\n\r\n{";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon("an answer", client.read_to_end(&mut answer)).await.unwrap();
    let answer = HttpResponse::read(&answer).unwrap();
    assert_eq!((answer.status, &answer.json()["type"]), (408, &json!("openapi.json#slow")));
    assert_eq!(deployment.facts(REQUESTED).await, 0);
}

#[tokio::test]
async fn taken_address_is_an_error_with_a_hint() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_gateway, api) = gateway(&deployment, "gateway").await;
    let addr = api.to_string();
    let settings = [("GATEWAY_ADDR", addr.as_str())];
    let mut second = deployment.gateway("second", &settings).await;
    assert_eq!(ended(&mut second).await.code(), Some(1));
    let log = second.log_text();
    assert!(log.contains(&format!("cannot listen on {addr} (GATEWAY_ADDR)")), "{log}");
    assert!(log.contains("GATEWAY_ADDR=127.0.0.1:0"), "{log}");
}

#[tokio::test]
async fn each_retired_setting_is_refused_with_its_successor() {
    let programs = programs().await;
    for (setting, successor) in [
        ("API_ADDR", "set GATEWAY_ADDR for the gateway"),
        ("API_HOSTS", "set GATEWAY_HOSTS for the gateway"),
        ("API_URL", "remove it"),
        ("VIEWER_ADDR", "set GATEWAY_ADDR for the gateway"),
        ("VIEWER_HOSTS", "set GATEWAY_HOSTS for the gateway"),
        ("VIEWER_PASSWORD", "set GATEWAY_PASSWORD"),
        ("VIEWER_PORT", "set GATEWAY_PORT"),
        ("KEEPER_PASSWORD", "set BACKUP_PASSWORD"),
        ("REPLAYER_PASSWORD", "set OPERATOR_PASSWORD"),
        ("REPLAY", "set CONTROL for the gateway"),
        ("REPLAY_USER", "set CONTROL_USER for the gateway"),
        ("REPLAY_PASSWORD", "set CONTROL_PASSWORD for the gateway"),
        ("REPLAY_INBOX_PREFIX", "set CONTROL_INBOX_PREFIX for the gateway"),
    ] {
        for program in [&programs.gateway, &programs.requestor] {
            let mut command = Command::new(program);
            command.env_clear().env(setting, "127.0.0.1:1").arg("healthcheck");
            let output = soon("it ends", command.output()).await.unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{setting}: {error}");
            assert!(error.contains(setting) && error.contains(successor), "{error}");
            // An empty variable counts as not set.
            command.env(setting, "").env("ADMIN_ADDR", "127.0.0.1:1");
            let output = soon("it ends", command.output()).await.unwrap();
            assert_eq!(output.status.code(), Some(1), "{setting}");
        }
    }
}
