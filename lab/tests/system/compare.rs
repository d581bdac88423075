//! `cargo lab compare` as a program: the results that hold on any machine. No test checks times.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use roxmltree::Document;
use serde_json::Value;
use testkit::eventually::eventually;
use testkit::process::{Process, logged};

fn compare(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    // The broker redelivers the requests of a killed generator after this time.
    command.arg("compare").args(arguments).env("ACK_WAIT", "2s");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The figures of one pair.
fn pair<'a>(report: &'a Value, design: &str) -> &'a Value {
    let pairs = report["pairs"].as_array().unwrap();
    pairs.iter().find(|pair| pair["design"] == design).unwrap()
}

/// The outcomes of the requests of one pair.
fn figure(report: &Value, design: &str, name: &str) -> u64 {
    let pair = pair(report, design);
    pair[name].as_u64().unwrap_or_else(|| panic!("{design} has no {name}: {pair}"))
}

#[test]
fn queue_loses_nothing_that_the_others_lose() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("picture.svg");
    // For two and a half seconds there is no generator, and no caller tries for that long.
    let arguments = ["--for", "10s", "--rate", "20", "--seed", "1", "--json", "--svg"];
    let output = compare(&[&arguments[..], &[picture.to_str().unwrap()]].concat());
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}\n{}", text(&output.stdout));
    for event in ["SIGKILL to the generators", "SIGSTOP to the generators", "The picture is in "] {
        assert!(told.contains(event), "{event}: {told}");
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for design in ["coupled", "coupled-with-breaker", "fire-and-forget", "queue"] {
        let of = |name| figure(&report, design, name);
        assert_eq!(of("asked"), 200, "{design}: {report}");
        assert_eq!(of("asked"), of("at_once") + of("late") + of("failed"), "{design}: {report}");
    }
    assert_eq!(figure(&report, "queue", "failed"), 0, "{report}");
    assert_eq!(figure(&report, "queue", "doubled"), 0, "{report}");
    assert_eq!((&report["clean"], &report["verdict"]["complete"]), (&true.into(), &200.into()));
    // The difference of the two is the cost of the hop.
    for design in ["coupled", "queue"] {
        assert!(pair(&report, design)["calm_median_ms"].as_f64() > Some(0.0), "{report}");
    }
    let coupled = |name| figure(&report, "coupled", name);
    assert!(coupled("failed") + coupled("late") > 0, "{report}");
    assert!(figure(&report, "coupled-with-breaker", "failed") > 0, "{report}");
    assert!(figure(&report, "fire-and-forget", "failed") > 0, "{report}");
    judge_picture(&std::fs::read_to_string(picture).unwrap());
}

fn judge_picture(svg: &str) {
    let document = Document::parse(svg).unwrap();
    let root = document.root_element();
    assert_eq!((root.tag_name().name(), root.attribute("role")), ("svg", Some("img")));
    for part in root.attribute("aria-labelledby").unwrap().split(' ') {
        let labels = root.children().find(|it| it.attribute("id") == Some(part)).unwrap();
        assert!(labels.text().is_some_and(|text| text.len() > 20), "{part}: {svg}");
    }
    let strips = root.descendants().filter(|it| it.attribute("class") == Some("strip"));
    assert_eq!(strips.count(), 4, "{svg}");
    assert!(svg.contains("prefers-color-scheme: dark"), "{svg}");
}

#[tokio::test]
async fn stopped_comparison_covers_the_requests_so_far() {
    // The first time this includes a build.
    testkit::programs::build_with_examples().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut command = testkit::process::bound_to_this(env!("CARGO_BIN_EXE_lab"));
    command.args(["compare", "--for", "1h", "--seed", "1"]).env("ACK_WAIT", "2s");
    // So that the requestor of the queue logs the accepted requests.
    command.env("RUST_LOG", "info,requestor=debug");
    let mut lab = Process::spawn(command, directory.path().join("log")).unwrap();
    logged(&lab, "logs and queues are in ").await;
    let said = lab.log_text();
    let (_, logs) = said.split_once("logs and queues are in ").unwrap();
    let logs = PathBuf::from(logs.lines().next().unwrap());
    for (name, sign) in [
        ("coupled", "answered"),
        ("breaker", "answered"),
        ("forgetful", "answered"),
        ("queue", "accepted"),
    ] {
        let log = logs.join(format!("{name}-requestor.log"));
        let has = async || match std::fs::read_to_string(&log) {
            Ok(text) if text.contains(sign) => Ok(()),
            other => Err(other),
        };
        eventually(&format!("{name} has asked"), has).await;
    }
    lab.terminate().unwrap();
    let status = lab.wait().await.unwrap();
    let said = lab.log_text();
    assert!(status.success(), "{status}: {said}");
    for pair in ["coupled ", "coupled, breaker", "fire and forget", "queue "] {
        assert!(said.lines().any(|line| line.starts_with(pair)), "{pair}: {said}");
    }
    assert!(said.contains("lost 0, doubled 0"), "{said}");
    assert!(!Path::new(&logs).exists(), "{}", logs.display());
}

#[test]
fn too_short_comparison_is_refused() {
    let output = compare(&["--for", "4s"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("it takes 5s or more"), "{}", text(&output.stderr));
}
