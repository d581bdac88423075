//! The HTTP API when something is full, away, hostile, or about to stop.

use std::time::Duration;

use contract::facts::{IDEMPOTENCY, RECEIVED, REQUESTED};
use contract::queues::REQUESTS;
use contract::topology::Limits;
use futures_util::future::join_all;
use serde_json::json;
use testkit::eventually::eventually;
use testkit::http::Answer;
use testkit::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::api::{accepted, get, post, requestor};
use crate::deployment::{
    Deployment, PATIENT, Side, admin, api_addr, ended, ready, run, soon, succeeded,
};

/// So long that an answer which took longer would have waited for something.
const AT_ONCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn when_the_queue_is_full_nothing_of_the_request_remains() {
    const ROOM: u64 = 3;
    let deployment = Deployment::with(&Limits { queue_limit: ROOM, ..PATIENT }).await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    for _ in 0..ROOM {
        accepted(&post(api, None, &json!({})).await);
    }
    // The key has its id already, and another requestor may find room for it.
    for (key, outcome) in [(None, "not-asked"), (Some("key"), "unknown"), (Some("key"), "unknown")]
    {
        let answer = post(api, key, &json!({})).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        let problem = answer.json();
        assert_eq!(problem["type"], "/openapi.json#queue-full", "{problem}");
        assert_eq!(problem["outcome"], outcome, "{problem}");
    }
    assert_eq!(deployment.depth(REQUESTS).await, ROOM);
    assert_eq!(deployment.facts(REQUESTED).await, ROOM);
    // The key has its id, and that is all.
    assert_eq!(deployment.facts(IDEMPOTENCY).await, 1);
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    deployment.facts_reach(RECEIVED, ROOM).await;
    accepted(&post(api, Some("key"), &json!({})).await);
    deployment.facts_reach(RECEIVED, ROOM + 1).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.complete, usize::try_from(ROOM).unwrap() + 1, "{verdict}");
}

#[tokio::test]
async fn when_there_is_no_room_for_a_key_nothing_is_asked_and_one_that_stands_is_answered() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    let id = accepted(&post(api, Some("first"), &json!({})).await);
    let context = async_nats::jetstream::new(deployment.nats().client().clone());
    let mut config =
        context.get_stream(IDEMPOTENCY.stream).await.unwrap().get_info().await.unwrap().config;
    config.max_messages = 1;
    context.update_stream(config).await.unwrap();
    let answer = post(api, Some("second"), &json!({})).await;
    let problem = answer.json();
    assert_eq!((answer.status, &problem["outcome"]), (503, &json!("not-asked")), "{answer:?}");
    assert_eq!(problem["type"], "/openapi.json#queue-full", "{answer:?}");
    assert_eq!(accepted(&post(api, Some("first"), &json!({})).await), id);
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    assert_eq!(deployment.facts(IDEMPOTENCY).await, 1);
}

fn unknown(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["type"], "/openapi.json#broker-away", "{problem}");
    assert_eq!(problem["outcome"], "unknown", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("unknown"), "{problem}");
}

#[tokio::test]
async fn without_a_broker_the_answer_is_that_nobody_knows_and_the_key_may_be_tried_again() {
    let mut deployment = Deployment::with(&PATIENT).await;
    let (requestor, api) = requestor(&deployment, "requestor").await;
    deployment.broker.kill().await.unwrap();
    let begun = Instant::now();
    unknown(&post(api, Some("key"), &json!({})).await);
    assert!(begun.elapsed() < AT_ONCE);
    let answer = get(api, "/requests").await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (503, &json!(null)), "{answer:?}");
    let before = requestor.memory();
    for _ in 0..20 {
        for answer in join_all((0..50).map(async |_| post(api, None, &json!({})).await)).await {
            unknown(&answer);
        }
    }
    // A leak of four kilobytes a time would reach this.
    if let (Some(before), Some(after)) = (before, requestor.memory()) {
        assert!(after < before + 4_096, "from {before} kB to {after} kB");
    }
    deployment.broker.restart().await.unwrap();
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
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
async fn while_the_network_hangs_nothing_piles_up_and_what_got_through_is_done_once() {
    let deployment = Deployment::with(&PATIENT).await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let requestor = run(Side::Requestor, &proxy.url(), deployment.log("requestor"), &[]).await;
    ready(&requestor).await;
    let api = api_addr(&requestor).await;
    proxy.hang();
    let begun = Instant::now();
    unknown(&post(api, Some("key"), &json!({})).await);
    let answer = get(api, "/requests").await;
    let what = (answer.status, &answer.json()["type"]);
    assert_eq!(what, (503, &json!("/openapi.json#broker-away")), "{answer:?}");
    assert!(begun.elapsed() < AT_ONCE);
    for _ in 0..5 {
        for answer in join_all((0..100).map(async |_| post(api, None, &json!({})).await)).await {
            assert_eq!(answer.status, 503, "{answer:?}");
        }
    }
    if let Some(memory) = requestor.memory() {
        assert!(memory < 64 * 1024, "{memory} kB");
    }
    // Somebody who watches over the process is answered all the same.
    assert_eq!(admin(&requestor, "/livez").await.0, 200);
    proxy.mend();
    let _generator = deployment.run(Side::Generator, "generator", &[]).await;
    let answer = eventually("the same key is accepted", async || {
        let answer = post(api, Some("key"), &json!({})).await;
        if answer.status == 202 { Ok(answer) } else { Err(answer) }
    })
    .await;
    assert_eq!(accepted(&post(api, Some("key"), &json!({})).await), accepted(&answer));
    deployment.facts_reach(RECEIVED, 1).await;
    let verdict = deployment.verdict().await;
    // What was given up may have been stored all the same: nobody was told that it is accepted.
    assert!(verdict.is_clean() && verdict.complete == verdict.requested, "{verdict}");
}

#[tokio::test]
async fn before_there_is_a_broker_the_api_says_that_it_is_away() {
    let deployment = Deployment::bare().await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    proxy.cut();
    let mut requestor = run(Side::Requestor, &proxy.url(), deployment.log("early"), &[]).await;
    let api = api_addr(&requestor).await;
    unknown(&post(api, None, &json!({})).await);
    assert_eq!(get(api, "/requests").await.status, 503);
    assert_eq!(get(api, "/openapi.json").await.status, 200);
    proxy.mend();
    ready(&requestor).await;
    accepted(&post(api, None, &json!({})).await);
    requestor.terminate().unwrap();
    succeeded(&mut requestor).await;
}

#[tokio::test]
async fn whoever_waits_when_it_stops_is_told_how_far_it_has_come() {
    let deployment = Deployment::with(&PATIENT).await;
    let (mut requestor, api) = requestor(&deployment, "requestor").await;
    let id = accepted(&post(api, None, &json!({})).await);
    let path = format!("/requests/{id}?wait=60s");
    let waiting = tokio::spawn(async move { get(api, &path).await });
    eventually("somebody waits", async || {
        let (_, metrics) = admin(&requestor, "/metrics").await;
        if metrics.contains("requestor_api_in_flight 1") { Ok(()) } else { Err(metrics) }
    })
    .await;
    // One that is silent is not waited for.
    let mut idle = TcpStream::connect(api).await.unwrap();
    requestor.terminate().unwrap();
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("queued")), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    succeeded(&mut requestor).await;
    soon("it is closed", idle.read_to_end(&mut Vec::new())).await.unwrap();
}

#[tokio::test]
async fn silent_and_slow_clients_keep_nobody_from_an_answer() {
    let deployment = Deployment::with(&PATIENT).await;
    let (requestor, api) = requestor(&deployment, "requestor").await;
    let mut silent = Vec::new();
    for number in 0..600 {
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
    // When all connections are taken by those who keep back the rest of a body, others are answered.
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
    // It is closed, at the latest when the head has not come in time.
    let _ = soon("it is closed", first.read_to_end(&mut Vec::new())).await;
    if let Some(memory) = requestor.memory() {
        assert!(memory < 64 * 1024, "{memory} kB");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    let mut client = TcpStream::connect(api).await.unwrap();
    let head = "POST /requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 20\r\n\r\n{";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    soon("an answer", client.read_to_end(&mut answer)).await.unwrap();
    let answer = Answer::read(&answer).unwrap();
    assert_eq!((answer.status, &answer.json()["type"]), (408, &json!("/openapi.json#slow")));
    assert_eq!(deployment.facts(REQUESTED).await, 0);
}

#[tokio::test]
async fn one_whose_address_is_taken_says_what_to_do() {
    let deployment = Deployment::with(&PATIENT).await;
    let (_requestor, api) = requestor(&deployment, "requestor").await;
    let addr = api.to_string();
    let settings = [("API_ADDR", addr.as_str())];
    let mut second = deployment.run(Side::Requestor, "second", &settings).await;
    assert_eq!(ended(&mut second).await.code(), Some(1));
    let log = second.log_text();
    assert!(log.contains(&format!("API_ADDR is {addr}, which cannot be listened on")), "{log}");
    assert!(log.contains("API_ADDR=127.0.0.1:0"), "{log}");
}
