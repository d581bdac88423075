//! `cargo lab up` as a program.

use std::process::{Output, Stdio};

use testkit::eventually::eventually;
use testkit::process::{Process, logged};
use tokio::process::Command;

async fn up(words: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.arg("up").args(words).envs(settings.iter().copied()).env_remove("RUST_BACKTRACE");
    command.output().await.unwrap()
}

#[tokio::test]
async fn setting_that_no_service_understands_ends_it_at_once() {
    // For an hour, if the error goes unnoticed.
    let output = up(&["--for", "1h"], &[("WORK_TIME", "200")]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("generator-1 cannot start"), "{said}");
    assert!(said.contains("write a number with a unit, such as 250ms"), "{said}");
}

#[tokio::test]
async fn hints_name_only_processes_that_run() {
    let output = up(&["--requestors", "0", "--generators", "0", "--for", "100ms"], &[]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    let kills: Vec<&str> =
        said.lines().map(str::trim).filter(|line| line.starts_with("kill -")).collect();
    let [broker] = kills[..] else { panic!("{kills:?}") };
    let (signal, id) = broker.rsplit_once(' ').unwrap();
    assert_eq!(signal, "kill -9");
    assert!(id.parse::<u32>().unwrap() > 1, "{broker}");
}

#[tokio::test]
async fn a_broker_that_is_killed_as_proposed_is_shown_to_be_away() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["up", "--for", "1h"]).env_remove("RUST_BACKTRACE");
    let directory = tempfile::tempdir().unwrap();
    let mut lab = Process::spawn(command, directory.path().join("log")).unwrap();
    logged(&lab, "REQUESTS 0 waiting").await;
    let said = lab.log_text();
    let (before, _) = said.split_once("kill the broker").unwrap();
    let kill = before.lines().rfind(|line| line.contains("kill -9")).unwrap();
    let killed = Command::new("sh").args(["-c", kill]).status().await.unwrap();
    assert!(killed.success(), "{kill}");
    logged(&lab, "waiting for the broker and its queues").await;
    lab.terminate().unwrap();
    // It does not wait for a broker that does not come back.
    let status = eventually("it ends", async || lab.try_wait().unwrap().ok_or("it runs")).await;
    assert!(lab.log_text().contains("Error: no broker answers any more"), "{}", lab.log_text());
    assert_eq!(status.code(), Some(2), "{}", lab.log_text());
}

#[tokio::test]
async fn up_whose_reader_has_gone_stops_in_order() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["up", "--for", "1h"]).env_remove("RUST_BACKTRACE").stdout(writer);
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.spawn().unwrap().wait_with_output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("panicked") && !said.contains("Error"), "{said}");
}

#[tokio::test]
async fn everything_ends_with_up_that_is_killed() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["up", "--for", "1h"]).env_remove("RUST_BACKTRACE");
    let directory = tempfile::tempdir().unwrap();
    let mut lab = Process::spawn(command, directory.path().join("log")).unwrap();
    logged(&lab, "REQUESTS 0 waiting").await;
    let children = format!("/proc/{0}/task/{0}/children", lab.id());
    let children = std::fs::read_to_string(children).unwrap();
    let children: Vec<&str> = children.split_whitespace().collect();
    // A broker, the gateway, `declare --watch`, and each side.
    assert!(children.len() >= 5, "{children:?}");
    lab.kill().await.unwrap();
    eventually("all have ended", async || {
        let is_left = |id: &&&str| {
            // One that has ended stays a zombie until it is waited for.
            let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            !status.is_empty() && !status.contains(") Z ")
        };
        let left: Vec<_> = children.iter().filter(is_left).copied().collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}
