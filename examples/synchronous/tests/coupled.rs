//! The coupled pair, as two processes, with and without outages of the generator.

use std::path::Path;

use serde_json::Value;
use testkit::eventually::eventually;
use testkit::process::{Process, bound_to_this, logged};
use testkit::reserved_ports::ReservedPorts;
use tokio::net::TcpListener;
use tokio::process::Command;

/// The generator, and its address.
async fn generator(directory: &Path, settings: &[&str]) -> (Process, String) {
    generator_at("127.0.0.1:0", directory, settings).await
}

async fn generator_at(addr: &str, directory: &Path, settings: &[&str]) -> (Process, String) {
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_coupled-generator"));
    command.env_clear();
    command.args(["--listen-addr", addr]).args(settings);
    let process = Process::spawn(command, directory.join("generator.log")).unwrap();
    let addr =
        eventually("it listens", async || process.logged_addr("listens on ").ok_or(())).await;
    (process, format!("http://{addr}"))
}

fn requestor(url: &str, settings: &[&str]) -> Command {
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_coupled-requestor"));
    command.env_clear();
    command.args(["--generator-url", url]).args(settings);
    command
}

/// The tally of the requestor.
async fn tally(url: &str, settings: &[&str]) -> Value {
    let output = requestor(url, settings).args(["--rate", "200"]).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    tally_of(&String::from_utf8(output.stdout).unwrap())
}

/// The last line, which counts the lines before it.
fn tally_of(said: &str) -> Value {
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (tally, ended) = lines.split_last().unwrap();
    assert_eq!(tally["asked"], ended.len(), "{said}");
    tally.clone()
}

#[tokio::test]
async fn each_request_is_answered_while_both_run() {
    let directory = tempfile::tempdir().unwrap();
    let (generator, url) = generator(directory.path(), &[]).await;
    let tally = tally(&url, &["--total", "50", "--timeout", "1m", "--breaker"]).await;
    assert_eq!((&tally["answered"], &tally["calls"]), (&50.into(), &50.into()), "{tally}");
    assert_eq!(generator.log_text().matches("made ").count(), 50);
}

#[tokio::test]
async fn each_request_fails_without_a_generator() {
    // No other process gets the port.
    let (_held, port) = ReservedPorts::free().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let settings = ["--total", "60", "--retries", "2"];
    let without = tally(&url, &settings).await;
    assert_eq!((&without["failed"], &without["calls"]), (&60.into(), &180.into()), "{without}");
    // With a breaker the callers fail sooner, and the generator gets fewer calls. It makes no more strings.
    let with = tally(&url, &[&settings[..], &["--breaker"]].concat()).await;
    let (failed, rejected) = (with["failed"].as_u64().unwrap(), with["rejected"].as_u64().unwrap());
    assert!(failed + rejected == 60 && rejected > 0, "{with}");
    assert!(with["calls"].as_u64() < without["calls"].as_u64(), "{with}");
}

/// The tally of a requestor whose generator starts once `is_time` has come, and is away before.
async fn tally_of_a_late_start(
    settings: &[&str],
    is_time: impl AsyncFn(&TcpListener, &Process),
) -> Value {
    let directory = tempfile::tempdir().unwrap();
    // Nothing accepts its connections, and no other process gets the port.
    let (_held, port) = ReservedPorts::free().unwrap();
    let addr = format!("127.0.0.1:{port}");
    let listener = TcpListener::bind(&addr).await.unwrap();
    let mut command = requestor(&format!("http://{addr}"), settings);
    command.args(["--timeout", "100ms"]);
    let mut requestor = Process::spawn(command, directory.path().join("requestor")).unwrap();
    is_time(&listener, &requestor).await;
    drop(listener);
    let _generator = generator_at(&addr, directory.path(), &[]).await;
    logged(&requestor, r#""outcome":"answered""#).await;
    requestor.interrupt().unwrap();
    assert!(requestor.wait().await.unwrap().success(), "{}", requestor.log_text());
    tally_of(&requestor.log_text())
}

#[tokio::test]
async fn retry_succeeds_once_the_generator_is_there() {
    let settings = ["--total", "1", "--retries", "20"];
    let called = async |listener: &TcpListener, _: &Process| drop(listener.accept().await.unwrap());
    let tally = tally_of_a_late_start(&settings, called).await;
    assert_eq!(
        (&tally["answered"], &tally["answered_on_retry"]),
        (&0.into(), &1.into()),
        "{tally}"
    );
}

#[tokio::test]
async fn breaker_closes_once_the_generator_is_there() {
    let settings = ["--total", "1000000", "--rate", "200", "--retries", "0", "--breaker"];
    let is_open = async |_: &TcpListener, requestor: &Process| logged(requestor, "rejected").await;
    let tally = tally_of_a_late_start(&settings, is_open).await;
    assert!(tally["answered"].as_u64() > Some(0), "{tally}");
}

#[tokio::test]
async fn answer_that_comes_too_late_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let (generator, url) = generator(directory.path(), &["--work-time", "1s"]).await;
    let tally = tally(&url, &["--total", "1", "--retries", "2", "--timeout", "100ms"]).await;
    assert_eq!((&tally["failed"], &tally["calls"]), (&1.into(), &3.into()), "{tally}");
    eventually("each attempt is worked on", async || match generator.log_text() {
        log if log.matches("made ").count() == 3 => Ok(()),
        log => Err(log),
    })
    .await;
}

#[tokio::test]
async fn interrupted_requestor_counts_its_requests() {
    let directory = tempfile::tempdir().unwrap();
    let (_generator, url) = generator(directory.path(), &[]).await;
    let command = requestor(&url, &["--total", "1000000", "--timeout", "1m"]);
    let mut requestor = Process::spawn(command, directory.path().join("requestor")).unwrap();
    logged(&requestor, "answered").await;
    requestor.interrupt().unwrap();
    assert!(requestor.wait().await.unwrap().success(), "{}", requestor.log_text());
    let tally = tally_of(&requestor.log_text());
    assert_eq!(tally["asked"], tally["answered"], "{tally}");
}
