//! Logs and results that cannot be written: a full disk, a reader that has gone, and a reader that stalls.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;

use async_nats::HeaderMap;
use contract::queues::REQUESTS;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::eventually::eventually;
use testkit::http;
use testkit::process::Process;
use testkit::reserved_ports::ReservedPorts;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use workqueue::dead_letters;

use crate::deployment::{Deployment, Service, programs, run, soon, succeeded};
use crate::unreadable::{CARRIAGE_RETURN, publish};

/// A file on a disk that is always full.
const FULL: &str = "/dev/full";

#[tokio::test]
async fn full_disk_of_the_logs_does_not_stop_the_work() {
    let mut deployment = Deployment::start().await;
    let (_held, port) = ReservedPorts::free().unwrap();
    let admin_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let settings = [("ADMIN_ADDR", &*admin_addr.to_string()), ("RUST_LOG", "debug")];
    let url = deployment.url().to_owned();
    let mut generator = run(Service::Generator, &url, PathBuf::from(FULL), &settings).await;
    succeeded(&mut deployment.ask(100).await).await;
    // The logs about the connection go to the same disk.
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
    // No process reads this pipe, and the log is much larger than its buffer.
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

#[tokio::test]
async fn service_that_fails_ends_though_its_log_reader_stalls() {
    let deployment = Deployment::start().await;
    let mut generator = Command::new(&programs().await.generator);
    generator.env_clear().env("NATS_URL", deployment.url()).env("RUST_LOG", "trace");
    generator.stderr(Stdio::piped()).kill_on_drop(true);
    let mut generator = generator.spawn().unwrap();
    succeeded(&mut deployment.ask(500).await).await;
    // The client panics because of this, and the service ends with an error. Both print something.
    publish(deployment.broker.port(), REQUESTS, CARRIAGE_RETURN).await;
    let status = soon("it ends", generator.wait()).await.unwrap();
    assert_eq!(status.code(), Some(1));
    let mut logs = String::new();
    generator.stderr.take().unwrap().read_to_string(&mut logs).await.unwrap();
    assert!(!logs.contains("Error: "), "the pipe was full: {logs}");
}

/// Runs an audit with this standard output. Returns its exit status and its standard error.
async fn audit(deployment: &Deployment, output: Stdio) -> (Option<i32>, String) {
    let mut audit = Command::new(&programs().await.decoupled);
    audit.env_clear().args(["audit", "--json", "--nats-url", deployment.url()]);
    audit.stdout(output).stderr(Stdio::piped());
    let output = audit.spawn().unwrap().wait_with_output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn closed_output_leaves_the_verdict_in_the_exit_status() {
    let deployment = Deployment::start().await;
    for closed in closed_outputs() {
        assert_eq!(audit(&deployment, closed).await, (Some(0), String::new()));
    }
}

#[tokio::test]
async fn signal_ends_a_command_whose_reader_stalls() {
    let deployment = Deployment::start().await;
    let subject = dead_letters::subject("REQUESTS", "garbage");
    // More than a pipe holds.
    deployment.publish_raw(&subject, HeaderMap::new(), "x".repeat(200_000).as_bytes()).await;
    let mut show = Command::new(&programs().await.decoupled);
    show.env_clear().args(["dead-letters", "show", "garbage", "--nats-url", deployment.url()]);
    show.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut show = show.spawn().unwrap();
    // It has begun to write, and no process reads the rest.
    soon("output", show.stdout.as_mut().unwrap().read_u8()).await.unwrap();
    let id = Pid::from_raw(show.id().unwrap().try_into().unwrap());
    kill(id, Signal::SIGTERM).unwrap();
    let status = soon("it ends", show.wait()).await.unwrap();
    assert_eq!(status.code(), Some(2));
    let mut said = String::new();
    show.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "Error: SIGTERM: ended at once, before it was done\n");
}

/// A pipe and a terminal whose readers have gone.
fn closed_outputs() -> [Stdio; 2] {
    let (_, pipe) = std::io::pipe().unwrap();
    [pipe.into(), openpty(None, None).unwrap().slave.into()]
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
async fn help_that_cannot_be_written_is_an_error() {
    let programs = programs().await;
    let services = [&programs.generator, &programs.requestor, &programs.gateway];
    for program in [services.as_slice(), &[&programs.decoupled]].concat() {
        for words in [["--help"], ["--version"]] {
            let help = async |output: Stdio| {
                let mut help = Command::new(program);
                help.env_clear().args(words).stdout(output).stderr(Stdio::piped());
                let output = help.spawn().unwrap().wait_with_output().await.unwrap();
                (output.status.code(), String::from_utf8(output.stderr).unwrap())
            };
            let (status, said) = help(File::options().write(true).open(FULL).unwrap().into()).await;
            assert_eq!(status, Some(2), "{program:?} {words:?}");
            assert!(said.starts_with("Error: cannot write to the standard output: "), "{said}");
            for closed in closed_outputs() {
                assert_eq!(help(closed).await, (Some(0), String::new()), "{program:?} {words:?}");
            }
        }
    }
}

#[tokio::test]
async fn programs_describe_their_command_lines() {
    let programs = programs().await;
    let pages = TempDir::new().unwrap();
    for (program, name, flag) in [
        (&programs.requestor, "requestor", "--request-rate"),
        (&programs.generator, "generator", "--failure-rate"),
        (&programs.gateway, "gateway", "--gateway-addr"),
        (&programs.decoupled, "decoupled", "--nats-url"),
    ] {
        let output = async |words: &[&str]| {
            Command::new(program).env_clear().args(words).output().await.unwrap()
        };
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let script = output(&["completions", shell]).await;
            let text = String::from_utf8(script.stdout).unwrap();
            assert!(script.status.success() && text.contains(&flag[2..]), "{name} {shell}: {text}");
        }
        let unknown = output(&["completions", "sh"]).await;
        assert_eq!(unknown.status.code(), Some(2), "{name}");
        let written = output(&["man", pages.path().to_str().unwrap()]).await;
        assert!(written.status.success() && written.stderr.is_empty(), "{name}: {written:?}");
        let page = if name == "decoupled" { "decoupled-audit" } else { name };
        let page = fs::read_to_string(pages.path().join(format!("{page}.1"))).unwrap();
        assert!(page.contains(&flag.replace('-', "\\-")), "{name}: {page}");
        let refused = output(&["man", FULL]).await;
        assert_eq!(refused.status.code(), Some(2), "{name}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.starts_with("Error: cannot write into /dev/full: "), "{said}");
    }
}

#[tokio::test]
async fn error_that_cannot_be_written_is_in_the_exit_status() {
    let mut generator = Command::new(&programs().await.generator);
    generator.env_clear().env("ADMIN_ADDR", "192.0.2.1:1");
    let mut generator = Process::spawn(generator, FULL).unwrap();
    let status = eventually("it ends", async || generator.try_wait().unwrap().ok_or("it runs"));
    assert_eq!(status.await.code(), Some(1));
}

/// The output of a program on a terminal, until this text is there; and the program, which ends with its handle.
async fn on_terminal(
    mut command: Command,
    settings: &[(&str, &str)],
    until: &str,
) -> (String, Child) {
    let terminal = openpty(None, None).unwrap();
    command.env_remove("NO_COLOR").env_remove("CI").env("TERM", "xterm");
    command.envs(settings.iter().copied()).stdin(Stdio::null());
    command.stdout(terminal.slave.try_clone().unwrap()).stderr(terminal.slave);
    let running = command.kill_on_drop(true).spawn().unwrap();
    drop(command);
    let mut reader = tokio::fs::File::from_std(terminal.master.into());
    let mut output = Vec::new();
    soon(until, async {
        while !String::from_utf8_lossy(&output).contains(until) {
            reader.read_buf(&mut output).await.unwrap();
        }
    })
    .await;
    (String::from_utf8_lossy(&output).into_owned(), running)
}

const ESCAPE: char = '\u{1b}';

#[tokio::test]
async fn no_color_and_dumb_terminals_get_plain_logs() {
    let programs = programs().await;
    let services = [&programs.generator, &programs.requestor, &programs.gateway].map(|it| (it, ""));
    for (program, word) in [services.as_slice(), &[(&programs.decoupled, "audit")]].concat() {
        for (name, value, colours) in [
            ("NO_COLOR", "", true),
            ("NO_COLOR", "1", false),
            ("TERM", "dumb", false),
            ("TERM", "", false),
        ] {
            let settings = (name, value);
            let mut command = Command::new(program);
            command.env_clear().args(Some(word).filter(|word| !word.is_empty()));
            command.env("NATS_URL", "nats://127.0.0.1:1").env("RUST_LOG", "info");
            let (logs, _) = on_terminal(command, &[settings], "cannot connect to the broker").await;
            assert_eq!(logs.contains(ESCAPE), colours, "{program:?} {settings:?}: {logs}");
        }
    }
}

#[tokio::test]
async fn up_shows_lines_and_moves_no_cursor_on_a_dumb_terminal() {
    for (terminal, moves) in [("xterm", true), ("dumb", false), ("", false)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(["up", "--for", "3s"]).env("NO_COLOR", "1");
        let (output, mut lab) = on_terminal(command, &[("TERM", terminal)], "Nothing lost").await;
        // The lab still has to stop its broker.
        assert!(soon("it ends", lab.wait()).await.unwrap().success());
        let picture = output.split_once("Ctrl-C here stops").unwrap().1;
        assert_eq!(picture.contains(ESCAPE), moves, "{terminal}: {picture}");
        assert!(picture.contains("REQUESTS"), "it is shown all the same: {picture}");
    }
}
