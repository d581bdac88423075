//! `cargo lab up` as a program.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use observe::Poller;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::termios::{self, Winsize};
use serde_json::Value;
use testkit::eventually::eventually;
use testkit::http;
use testkit::process::{Process, bound_to_this, logged};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;
use workqueue::NatsSettings;

async fn up(words: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command.arg("up").args(words).envs(settings.iter().copied()).env_remove("RUST_BACKTRACE");
    command.output().await.unwrap()
}

/// Starts a lab that runs for an hour and logs into this directory. Returns once both services work.
async fn running(directory: &Path, words: &[&str]) -> Process {
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command.args(["up", "--for", "1h"]).args(words).env_remove("RUST_BACKTRACE");
    let lab = Process::spawn(command, directory.join("log")).unwrap();
    logged(&lab, "REQUESTS 0 waiting").await;
    lab
}

#[tokio::test]
async fn invalid_setting_ends_up_at_once() {
    const UNIT: [&str; 2] =
        ["generator-1 cannot start", "write a number with a unit, such as 250ms"];
    for (name, value, expected) in
        [("WORK_TIME", "200", &UNIT[..]), ("REQUEST_TOTAL", "5", &["REQUEST_TOTAL is set"])]
    {
        // It would run for an hour if the error were not noticed.
        let output = up(&["--for", "1h"], &[(name, value)]).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(expected.iter().all(|words| said.contains(words)), "{said}");
    }
}

#[tokio::test]
async fn hints_name_only_what_runs() {
    let output = up(&["--requestors", "0", "--generators", "0", "--for", "100ms"], &[]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    let kills: Vec<&str> = said.lines().map(str::trim).filter(|it| it.contains(" kill ")).collect();
    assert_eq!(kills[..], ["cargo lab kill broker"]);
}

#[tokio::test]
async fn hints_fit_the_replicas_and_their_settings() {
    for (words, work_time, wrong) in [
        (["--generators=1", "--rate=0"], "1s", &["the others", "asking goes on", "fills"][..]),
        (["--generators=2", "--rate=1"], "0s", &["are redelivered"]),
    ] {
        let words = [&words[..], &["--for", "100ms"]].concat();
        let output = up(&words, &[("WORK_TIME", work_time)]).await;
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("Try in another terminal"), "{said}");
        assert!(!wrong.iter().any(|wrong| said.contains(wrong)), "{said}");
    }
}

#[tokio::test]
async fn killed_broker_is_shown_as_away() {
    let directory = tempfile::tempdir().unwrap();
    let mut lab = running(directory.path(), &[]).await;
    assert!(lab.log_text().contains("cargo lab kill broker\n"));
    command(&lab, &["kill", "broker"]).await;
    logged(&lab, "waiting for the broker and its queues").await;
    ends_without_a_verdict(&mut lab, "no broker answers any more").await;
}

/// The output of a command for this lab.
async fn command(lab: &Process, words: &[&str]) -> String {
    let (ended, said) = try_command(lab, words).await;
    assert!(ended, "{words:?}: {said}");
    said
}

/// Whether a command for this lab succeeds, and its output.
async fn try_command(lab: &Process, words: &[&str]) -> (bool, String) {
    let control = files(lab).join("control.json");
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command.args(words).env("LAB_CONTROL_FILE", control).env_remove("RUST_BACKTRACE");
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap()).concat();
    (output.status.success(), said)
}

/// The directory of the lab's logs and queues.
fn files(lab: &Process) -> PathBuf {
    let said = lab.log_text();
    let files = said.lines().find_map(|line| line.split_once("logs and queues are in ")).unwrap().1;
    Path::new(env!("CARGO_MANIFEST_DIR")).join(files)
}

/// The address of the lab's page.
fn page(lab: &Process) -> SocketAddr {
    let said = lab.log_text();
    let page = said.split_once("The page is at http://").unwrap().1;
    page.split_once('/').unwrap().0.parse().unwrap()
}

/// The numbers of replicas of each service on the lab's page, once it shows some.
async fn seen(lab: &Process) -> Option<(u64, u64)> {
    let history = http::ask(page(lab), "GET", "/api/history", &[], "").await.unwrap().json();
    let newest = history.as_array()?.last()?;
    Some((newest["requestors"].as_u64()?, newest["generators"].as_u64()?))
}

async fn sees(lab: &Process, requestors: u64, generators: u64) {
    eventually("the page sees it", async || match seen(lab).await {
        seen if seen == Some((requestors, generators)) => Ok(()),
        seen => Err(seen),
    })
    .await;
}

/// Waits until this many generators are ready, all of this version.
async fn generators_have(lab: &Process, version: &str, count: usize) {
    let control = std::fs::read(files(lab).join("control.json")).unwrap();
    let control: Value = serde_json::from_slice(&control).unwrap();
    let settings = NatsSettings::at(control["nats_url"].as_str().unwrap());
    let connection = observe::connect(&settings, "test").await.unwrap();
    let mut poller = Poller::new(&connection);
    eventually("all generators have the version", async || {
        let snapshot = poller.snapshot().await.map_err(|error| vec![error.to_string()])?;
        let replicas = snapshot.replicas.replicas.into_iter();
        let ready = replicas.filter(|it| it.service == "generator" && it.state == "ready");
        let versions: Vec<String> = ready.map(|it| it.version).collect();
        if versions == vec![version; count] { Ok(()) } else { Err(versions) }
    })
    .await;
}

#[tokio::test]
async fn newer_generator_is_rolled_out_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut lab = running(directory.path(), &[]).await;
    generators_have(&lab, env!("CARGO_PKG_VERSION"), 2).await;
    command(&lab, &["deploy", "generators", "--newer"]).await;
    generators_have(&lab, "0.3.0", 2).await;
    // Those that start later have the newer program, too.
    command(&lab, &["scale", "generators", "3"]).await;
    generators_have(&lab, "0.3.0", 3).await;
    command(&lab, &["set", "--work-time", "1ms"]).await;
    generators_have(&lab, "0.3.0", 3).await;
    command(&lab, &["deploy", "generators"]).await;
    generators_have(&lab, env!("CARGO_PKG_VERSION"), 3).await;
    lab.terminate().unwrap();
    let ended = timeout(Duration::from_mins(1), lab.wait()).await.expect("it ends").unwrap();
    assert!(ended.success(), "{}", lab.log_text());
}

#[tokio::test]
async fn commands_stop_start_scale_and_replace_replicas() {
    let directory = tempfile::tempdir().unwrap();
    let mut lab = running(directory.path(), &[]).await;
    sees(&lab, 1, 2).await;
    command(&lab, &["kill", "generators"]).await;
    sees(&lab, 1, 0).await;
    let said = command(&lab, &["start", "generators"]).await;
    assert!(said.contains("generator-2    running"), "{said}");
    sees(&lab, 1, 2).await;
    command(&lab, &["stop", "generators"]).await;
    // The second one changes nothing, and the end is as graceful as after one.
    command(&lab, &["stop", "generators"]).await;
    sees(&lab, 1, 0).await;
    let said = command(&lab, &["start", "generator-2"]).await;
    assert!(said.contains("generator-2    running"), "{said}");
    sees(&lab, 1, 1).await;
    command(&lab, &["scale", "generators", "3"]).await;
    command(&lab, &["pause", "requestor-1"]).await;
    sees(&lab, 0, 3).await;
    command(&lab, &["resume", "requestors"]).await;
    let said = command(&lab, &["deploy", "generators"]).await;
    assert!(said.contains("generator-6") && !said.contains("generator-3 "), "{said}");
    command(&lab, &["set", "--rate", "50", "--work-time", "1ms"]).await;
    sees(&lab, 1, 3).await;
    // A replica may get the name of an earlier one.
    command(&lab, &["scale", "generators", "0"]).await;
    command(&lab, &["scale", "generators", "1"]).await;
    let said = command(&lab, &["deploy", "generators"]).await;
    assert!(said.contains("generator-2 "), "{said}");
    command(&lab, &["scale", "generators", "3"]).await;
    sees(&lab, 1, 3).await;
    command(&lab, &["stop", "requestors"]).await;
    command(&lab, &["kill", "broker"]).await;
    command(&lab, &["start", "broker"]).await;
    command(&lab, &["start", "requestors"]).await;
    sees(&lab, 1, 3).await;
    let said = command(&lab, &["send", "REQUESTS", "--header", "A: b", "no request"]).await;
    assert!(said.contains("requests.normal."), "{said}");
    for (words, why) in [
        (&["kill", "gateway"][..], "such as generator-1"),
        (&["pause", "broker"], "can only be killed and started"),
        (&["kill", "generator-77"], "there is no generator-77"),
        (&["start", "generator-77"], "there is no generator-77"),
        (&["start", "broker", "--empty"], "kill one first"),
        (&["scale", "broker", "2"], "broker is not a service"),
        (&["deploy", "requestors", "--newer"], "only the generators have a newer program"),
        (&["set", "--work-time", "5"], "write a number with a unit"),
        (&["send", "NOWHERE", ""], "there is no queue NOWHERE"),
    ] {
        let (succeeded, said) = try_command(&lab, words).await;
        assert!(!succeeded && said.contains(why), "{words:?}: {said}");
    }
    lab.terminate().unwrap();
    let ended = async || lab.try_wait().unwrap().ok_or_else(|| lab.log_text());
    let status = eventually("it ends", ended).await;
    assert!(status.success(), "{}", lab.log_text());
}

#[tokio::test]
async fn commands_without_a_lab_say_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command.args(["kill", "generators"]).env("LAB_CONTROL_FILE", directory.path().join("none"));
    let output = command.env_remove("RUST_BACKTRACE").output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no lab runs: start one with `cargo lab up`"), "{said}");
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn only_the_token_of_the_page_controls_the_lab() {
    let directory = tempfile::tempdir().unwrap();
    let lab = running(directory.path(), &[]).await;
    let url = format!("http://{}/api/events", page(&lab));
    let mut events = reqwest::get(url).await.unwrap();
    let events = String::from_utf8(events.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    let about = events.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let about: Value = serde_json::from_str(about).unwrap();
    let url = about["lab"]["url"].as_str().unwrap();
    let addr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let token = format!("Bearer {}", about["lab"]["token"].as_str().unwrap());
    let origin = format!("http://{}", page(&lab));
    let answer =
        async |headers: &[(&str, &str)]| http::ask(addr, "GET", "/state", headers, "").await;
    let state = answer(&[("Authorization", &token), ("Origin", &origin)]).await.unwrap();
    assert_eq!(state.status, 200, "{}", state.body);
    assert_eq!(state.header("access-control-allow-origin"), Some(origin.as_str()));
    assert_eq!(state.json()["generators"][0]["name"], "generator-1");
    for headers in [&[][..], &[("Authorization", "Bearer wrong")]] {
        assert_eq!(answer(headers).await.unwrap().status, 401);
    }
    let foreign = [("Authorization", token.as_str()), ("Origin", "https://elsewhere.example")];
    let foreign = answer(&foreign).await.unwrap();
    assert_eq!(foreign.header("access-control-allow-origin"), None);
    let page = http::ask(page(&lab), "GET", "/", &[], "").await.unwrap();
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains(&format!("connect-src 'self' {url};")), "{policy}");
}

/// `up` does not wait for a broker that stays away.
async fn ends_without_a_verdict(lab: &mut Process, reason: &str) {
    lab.terminate().unwrap();
    let ended = async || lab.try_wait().unwrap().ok_or_else(|| lab.log_text());
    let status = eventually("it ends", ended).await;
    let said = lab.log_text();
    assert!(said.contains(&format!("Error: {reason}, so there is no verdict")), "{said}");
    assert_eq!(status.code(), Some(2), "{said}");
}

#[tokio::test]
async fn up_does_not_wait_for_paused_brokers() {
    for (words, paused, reason) in [
        (&[][..], 1, "no broker answers any more"),
        (&["--brokers", "3"], 2, "too few brokers still answer, 1 of 3"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut lab = running(directory.path(), words).await;
        let is_broker = |id: &String| {
            let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            name.starts_with("nats-server")
        };
        let brokers = children(&lab).into_iter().filter(is_broker).take(paused);
        let pause = Command::new("kill").arg("-STOP").args(brokers).status().await.unwrap();
        assert!(pause.success());
        logged(&lab, "waiting for the broker and its queues").await;
        ends_without_a_verdict(&mut lab, reason).await;
    }
}

/// The ids of the processes that this one has started.
fn children(process: &Process) -> Vec<String> {
    let children = format!("/proc/{0}/task/{0}/children", process.id());
    let children = std::fs::read_to_string(children).unwrap();
    children.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn up_without_a_reader_stops_gracefully() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command.args(["up", "--for", "1h"]).env_remove("RUST_BACKTRACE").stdout(writer);
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.spawn().unwrap().wait_with_output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("panicked") && !said.contains("Error"), "{said}");
}

#[tokio::test]
async fn everything_ends_with_a_killed_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut lab = running(directory.path(), &[]).await;
    let children = children(&lab);
    // The broker, the gateway, `declare --watch`, and the replicas of both services.
    assert!(children.len() >= 5, "{children:?}");
    let files = files(&lab);
    assert!(files.is_dir(), "{}", files.display());
    lab.kill().await.unwrap();
    let is_gone = async || if files.exists() { Err(files.display()) } else { Ok(()) };
    eventually("its files are gone", is_gone).await;
    eventually("all have ended", async || {
        let is_left = |id: &&String| {
            // An ended process stays a zombie until its exit status is collected.
            let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            !status.is_empty() && !status.contains(") Z ")
        };
        let left: Vec<_> = children.iter().filter(is_left).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// The time limit for a picture. Only a bug reaches it.
const LIMIT: Duration = Duration::from_mins(1);

/// Reads from the terminal of `lab up` until there is a whole picture with this text, and no row of it continues in the
/// next one. Returns the whole screen.
async fn picture(
    terminal: &mut File,
    parser: &mut vt100::Parser,
    says: impl Fn(&str) -> bool,
) -> String {
    let mut buffer = [0; 4096];
    let is_whole = |screen: &vt100::Screen| {
        let columns = screen.size().1.get();
        let first = screen.rows(0, columns).position(|row| row.starts_with("  queue "));
        let last = screen.rows(0, columns).position(|row| row.starts_with("  the last strings"));
        let (Some(first), Some(last)) = (first, last) else { return false };
        says(&screen.contents())
            && (first..=last).all(|row| !screen.row_wrapped(u16::try_from(row).unwrap()))
    };
    let reading = timeout(LIMIT, async {
        while !is_whole(parser.screen()) {
            let read = terminal.read(&mut buffer).await.unwrap();
            parser.process(&buffer[..read]);
        }
    });
    let in_time = reading.await.is_ok();
    let text = parser.screen().contents();
    assert!(in_time, "{text}");
    text
}

/// Resizes the terminal, and returns its new screen.
fn resize(terminal: &File, (rows, columns): (u16, u16)) -> vt100::Parser {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    termios::tcsetwinsize(terminal, size).unwrap();
    let [rows, columns] = [rows, columns].map(|count| NonZeroU16::new(count).unwrap());
    vt100::Parser::new(rows, columns, 0)
}

/// The number of requests in a picture.
fn requested(text: &str) -> String {
    let count = text.split_once("  requested ").unwrap().1;
    count.split_once(' ').unwrap().0.to_owned()
}

#[tokio::test]
async fn picture_stays_whole_when_the_terminal_changes() {
    let terminal = openpty(None, None).unwrap();
    // Otherwise it would stay open in the child processes.
    fcntl_setfd(&terminal.master, FdFlags::CLOEXEC).unwrap();
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command
        .args(["up", "--for", "1h", "--generators", "5"])
        .envs([("TERM", "xterm"), ("LC_ALL", "C")])
        .stdin(Stdio::null());
    command.stdout(terminal.slave).stderr(Stdio::null()).kill_on_drop(true);
    let mut lab = command.spawn().unwrap();
    drop(command);
    let mut terminal = File::from_std(terminal.master.into());
    for (size, has_room) in
        [((24, 80), false), ((50, 120), true), ((24, 60), false), ((50, 200), true)]
    {
        let mut parser = resize(&terminal, size);
        let text = picture(&mut terminal, &mut parser, |_| true).await;
        assert_eq!(text.contains("Try in another terminal"), has_room, "{size:?}: {text}");
        // In characters of the locale: "=" for waiting messages and "#" for those in flight.
        let bar = text.lines().find(|line| line.starts_with("  REQUESTS ")).unwrap();
        let signs = bar.chars().filter(|sign| "=#.".contains(*sign)).count();
        assert!(text.is_ascii() && signs >= 5, "{text}");
    }
    // Each Enter moves the picture up, and no part of it stays there.
    let mut parser = resize(&terminal, (50, 120));
    let mut text = picture(&mut terminal, &mut parser, |_| true).await;
    terminal.write_all(b"\n\n\n").await.unwrap();
    // The first picture may have been drawn before the change.
    for _ in 0..2 {
        let before = requested(&text);
        text = picture(&mut terminal, &mut parser, |text| requested(text) != before).await;
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("  queue ")).count(), 1, "{text}");
    // Each replica has its name there. When the terminal is gone, everything stops gracefully.
    let names = (1..=5).map(|number| format!("generator-{number} (pid "));
    let mut parser = resize(&terminal, (50, 80));
    let text = picture(&mut terminal, &mut parser, |_| true).await;
    assert!(names.into_iter().all(|name| text.contains(&name)), "{text}");
    drop(terminal);
    assert!(timeout(LIMIT, lab.wait()).await.expect("it ends").unwrap().success());
}

#[tokio::test]
async fn program_of_an_example_that_ends_is_started_again() {
    let said = String::from_utf8(up(&["--example", "hello"], &[]).await.stderr).unwrap();
    assert!(said.contains("no example hello") && said.contains("word-count"), "{said}");
    // The first time this includes a build.
    let names = ["word-count", "word-counter"];
    testkit::programs::build_only(names).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut command = bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command
        .args(["up", "--example", "word-count", "--for", "1h"])
        .env("LISTEN_ADDR", "127.0.0.1:0");
    let mut lab = Process::spawn(command, directory.path().join("log")).unwrap();
    logged(&lab, "word-counter-2 (pid ").await;
    let said = lab.log_text();
    let after = |sign: &str| said.split_once(sign).unwrap().1;
    let page = after("The page is at http://").split_once('/').unwrap().0.parse().unwrap();
    assert_eq!(http::ask(page, "GET", "/", &[], "").await.unwrap().status, 200);
    // A program that ends right after its start would end the lab.
    let pid = after("word-counter-1 (pid ").split_once(')').unwrap().0.parse().unwrap();
    eventually("it has run for a while", async || {
        let age = directory.path().join("log").metadata().unwrap().modified().unwrap().elapsed();
        if age.unwrap() > Duration::from_secs(1) { Ok(()) } else { Err(()) }
    })
    .await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    logged(&lab, "word-counter-1 (ended, signal: 9 (SIGKILL)); started again").await;
    lab.terminate().unwrap();
    let ended = timeout(Duration::from_mins(1), lab.wait()).await.expect("it ends").unwrap();
    assert!(ended.success(), "{}", lab.log_text());
}
