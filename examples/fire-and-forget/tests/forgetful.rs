//! Plain publish and subscribe, with real processes and a real broker: answered, lost and doubled requests.

use std::collections::HashSet;
use std::path::Path;

use fire_and_forget::{REQUESTS, RESPONSES, Request, Response};
use futures_util::StreamExt;
use serde_json::Value;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::process::{Process, bound_to_this, logged};

async fn generator(broker: &Broker, directory: &Path, name: &str) -> Process {
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_forgetful-generator"));
    command.env_clear();
    command.args(["--nats-url", &broker.url()]);
    let process = Process::spawn(command, directory.join(name)).unwrap();
    logged(&process, "listening").await;
    process
}

fn requestor(broker: &Broker, directory: &Path, settings: &[&str]) -> Process {
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_forgetful-requestor"));
    command.env_clear();
    command.args(["--nats-url", &broker.url(), "--rate", "200"]).args(settings);
    Process::spawn(command, directory.join("requestor")).unwrap()
}

/// The tally of the requestor.
async fn tally(mut requestor: Process) -> Value {
    assert!(requestor.wait().await.unwrap().success(), "{}", requestor.log_text());
    let said = requestor.log_text();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (tally, ended) = lines.split_last().unwrap();
    assert_eq!(tally["asked"], ended.len(), "{said}");
    tally.clone()
}

/// The tally of a requestor that listens for an hour, once this many requests are answered.
async fn tally_after(answers: usize, requestor: Process) -> Value {
    eventually("the requests are answered", async || match requestor.log_text() {
        log if log.matches("answered").count() == answers => Ok(()),
        log => Err(log),
    })
    .await;
    requestor.interrupt().unwrap();
    tally(requestor).await
}

#[tokio::test]
async fn each_request_is_answered_and_marked_while_all_run() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let generator = generator(&broker, directory.path(), "generator").await;
    let requestor = requestor(&broker, directory.path(), &["--total", "50", "--timeout", "1h"]);
    let tally = tally_after(50, requestor).await;
    assert_eq!((&tally["answered"], &tally["doubled"]), (&50.into(), &0.into()), "{tally}");
    eventually("all are marked", async || match generator.log_text() {
        log if log.matches("marked ").count() == 50 => Ok(()),
        log => Err(log),
    })
    .await;
}

#[tokio::test]
async fn requests_without_a_subscriber_are_lost() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let settings = ["--total", "20", "--timeout", "10ms"];
    let asked = tally(requestor(&broker, directory.path(), &settings)).await;
    assert_eq!((&asked["lost"], &asked["answered"]), (&20.into(), &0.into()), "{asked}");
    // A later subscriber gets none of these messages.
    let generator = generator(&broker, directory.path(), "generator").await;
    let directory = tempfile::tempdir().unwrap();
    let requestor = requestor(&broker, directory.path(), &["--total", "5", "--timeout", "1h"]);
    let asked = tally_after(5, requestor).await;
    assert_eq!(asked["answered"], 5, "{asked}");
    assert_eq!(generator.log_text().matches("made ").count(), 5);
}

#[tokio::test]
async fn two_generators_both_answer_each_request() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let nats = async_nats::connect(broker.url()).await.unwrap();
    let mut requests = nats.subscribe(REQUESTS).await.unwrap();
    let mut responses = nats.subscribe(RESPONSES).await.unwrap();
    nats.flush().await.unwrap();
    let settings = ["--total", "1000000", "--timeout", "10ms"];
    let requestor = requestor(&broker, directory.path(), &settings);
    // The first request has no generator.
    let request = requests.next().await.unwrap();
    let Request { id, .. } = serde_json::from_slice(&request.payload).unwrap();
    let _one = generator(&broker, directory.path(), "one").await;
    let _two = generator(&broker, directory.path(), "two").await;
    let (mut answered, mut doubled) = (HashSet::new(), 0);
    while doubled < 20 {
        let response = responses.next().await.unwrap();
        let Response { id, .. } = serde_json::from_slice(&response.payload).unwrap();
        doubled += u64::from(!answered.insert(id));
    }
    // The requestor gets this answer after those responses.
    let answer = Response { id: id.clone(), value: String::new() };
    nats.publish(RESPONSES, serde_json::to_vec(&answer).unwrap().into()).await.unwrap();
    logged(&requestor, &id).await;
    requestor.interrupt().unwrap();
    let tally = tally(requestor).await;
    assert!(tally["doubled"].as_u64() > Some(0), "{tally}");
}

#[tokio::test]
async fn interrupted_requestor_counts_its_requests() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let _generator = generator(&broker, directory.path(), "generator").await;
    let settings = ["--total", "1000000", "--timeout", "10ms"];
    let requestor = requestor(&broker, directory.path(), &settings);
    logged(&requestor, "answered").await;
    requestor.interrupt().unwrap();
    let tally = tally(requestor).await;
    assert!(tally["answered"].as_u64() > Some(0), "{tally}");
}
