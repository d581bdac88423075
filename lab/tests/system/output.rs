//! Logs and results that cannot be written: a full disk, a reader that has gone, one that stalls.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;

use testkit::eventually::eventually;
use testkit::http;
use testkit::process::Process;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::deployment::{Deployment, Side, programs, run, soon, succeeded};

/// A file on a disk that is always full.
const FULL: &str = "/dev/full";

#[tokio::test]
async fn full_disk_of_the_logs_does_not_stop_the_work() {
    let mut deployment = Deployment::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin_addr = free.local_addr().unwrap();
    drop(free);
    let settings = [("ADMIN_ADDR", &*admin_addr.to_string()), ("RUST_LOG", "debug")];
    let url = deployment.url().to_owned();
    let mut generator = run(Side::Generator, &url, PathBuf::from(FULL), &settings).await;
    succeeded(&mut deployment.ask(100).await).await;
    // What a service logs of its connection goes to the same disk.
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    succeeded(&mut deployment.ask(100).await).await;
    let metrics = http::get(admin_addr, "/metrics").await.unwrap().1;
    let dropped = metrics.lines().find_map(|line| {
        line.strip_prefix("generator_log_lines_dropped_total ")?.parse::<u64>().ok()
    });
    assert!(dropped.is_some_and(|lines| lines >= 200), "{metrics}");
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean() && verdict.complete == 200, "{verdict}");
}

#[tokio::test]
async fn stalled_reader_of_the_logs_does_not_stop_the_work() {
    let deployment = Deployment::start().await;
    let mut generator = Command::new(&programs().await.generator);
    generator.env_clear().env("NATS_URL", deployment.url()).env("RUST_LOG", "debug");
    // Nothing reads this pipe, which has room for far less than is logged.
    generator.stderr(Stdio::piped()).kill_on_drop(true);
    let mut generator = generator.spawn().unwrap();
    succeeded(&mut deployment.ask(2_000).await).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean() && verdict.complete == 2_000, "{verdict}");
    let mut logs = Vec::new();
    generator.start_kill().unwrap();
    soon("the rest of the logs", generator.stderr.take().unwrap().read_to_end(&mut logs))
        .await
        .unwrap();
    assert!(logs.len() >= 4096, "the pipe was full: {} bytes", logs.len());
}

/// Runs an audit whose standard output is this; gives its exit status and what it says of errors.
async fn audit(deployment: &Deployment, output: Stdio) -> (Option<i32>, String) {
    let mut audit = Command::new(&programs().await.decoupled);
    audit.env_clear().args(["audit", "--json", "--nats-url", deployment.url()]);
    audit.stdout(output).stderr(Stdio::piped());
    let output = audit.spawn().unwrap().wait_with_output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn closed_pipe_leaves_the_verdict_in_the_exit_status() {
    let deployment = Deployment::start().await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(audit(&deployment, writer.into()).await, (Some(0), String::new()));
}

#[tokio::test]
async fn result_that_cannot_be_written_is_an_error() {
    let deployment = Deployment::start().await;
    let full = File::options().write(true).open(FULL).unwrap();
    let (status, said) = audit(&deployment, full.into()).await;
    assert_eq!(status, Some(2));
    assert!(said.starts_with("Error: cannot write to the standard output: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[tokio::test]
async fn error_that_cannot_be_written_is_in_the_exit_status() {
    let mut generator = Command::new(&programs().await.generator);
    generator.env_clear().env("ADMIN_ADDR", "192.0.2.1:1");
    let mut generator = Process::spawn(generator, FULL).unwrap();
    let status = eventually("it ends", async || generator.try_wait().unwrap().ok_or("it runs"));
    assert_eq!(status.await.code(), Some(1));
}
