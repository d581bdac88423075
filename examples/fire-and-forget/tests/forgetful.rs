//! Plain publish and subscribe, with real processes and a real broker: answered, lost and doubled requests.

use std::path::Path;

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

#[tokio::test]
async fn each_request_is_answered_and_marked_while_all_run() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let generator = generator(&broker, directory.path(), "generator").await;
    let tally =
        tally(requestor(&broker, directory.path(), &["--total", "50", "--timeout", "5s"])).await;
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
    let asked =
        tally(requestor(&broker, directory.path(), &["--total", "5", "--timeout", "5s"])).await;
    assert_eq!(asked["answered"], 5, "{asked}");
    assert_eq!(generator.log_text().matches("made ").count(), 5);
}

#[tokio::test]
async fn two_generators_both_answer_each_request() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let _one = generator(&broker, directory.path(), "one").await;
    let _two = generator(&broker, directory.path(), "two").await;
    let tally =
        tally(requestor(&broker, directory.path(), &["--total", "20", "--timeout", "5s"])).await;
    assert_eq!((&tally["answered"], &tally["doubled"]), (&20.into(), &20.into()), "{tally}");
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
