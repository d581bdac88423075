//! `cargo lab chaos` as a program: its output, and both of its verdicts.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lab::chaos::plan::{FaultTarget, Plan};
use serde_json::Value;

const EVERYTHING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/plans/everything.json");

fn chaos(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.arg("chaos").args(arguments).envs(environment.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

#[test]
fn all_faults_at_once_break_no_guarantee() {
    let output = chaos(&["--plan", EVERYTHING, "--rate", "500", "--json"], &[]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}\n{}", text(&output.stdout));
    let report = report(&output);
    assert_eq!(report["clean"], true);
    assert_eq!(report["garbage"], 4);
    assert_eq!(report["verdict"]["complete"], report["verdict"]["requested"]);
    assert!(report["verdict"]["complete"].as_u64().unwrap() > 100, "{report}");
    let plan = Plan::from_json(&std::fs::read_to_string(EVERYTHING).unwrap()).unwrap();
    for fault in &plan.faults {
        let back =
            matches!(fault.to, FaultTarget::Broker(_)).then(|| format!("{} is back", fault.to));
        for line in [Some(fault.to_string()), back.or(fault.end())].into_iter().flatten() {
            assert!(told.lines().any(|told| told.ends_with(&line)), "{line}:\n{told}");
        }
    }
}

#[test]
fn chaos_without_a_reader_stops_gracefully() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    // It would run for an hour if the lab did not notice.
    command.args(["chaos", "--for", "1h", "--seed", "1"]);
    let mut chaos = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(chaos.stdout.take().unwrap()).lines();
    assert!(events.any(|event| event.unwrap().contains("s  requested ")));
    drop(events);
    let output = chaos.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn chaos_without_requests_has_no_verdict() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["chaos", "--for", "1h", "--seed", "1", "--rate", "0"]);
    let mut chaos = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(chaos.stdout.take().unwrap()).lines().map_while(Result::ok);
    let named = "logs and queues are in ";
    let directory = events.find_map(|event| Some(event.split_once(named)?.1.to_owned())).unwrap();
    assert!(events.any(|event| event.contains("s  requested ")));
    let id = i32::try_from(chaos.id()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::SIGTERM).unwrap();
    events.for_each(drop);
    let output = chaos.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("stopped before the first request"), "{said}");
    assert!(!Path::new(&directory).exists(), "{directory}");
}

#[test]
fn healthy_dead_letter_breaks_a_guarantee() {
    let plan = r#"{"for": "1s", "cast": {"requestors": 1, "generators": 1, "brokers": 1},
        "faults": [{"at": "100ms", "do": "poison", "to": "REQUESTS"}]}"#;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("plan.json");
    std::fs::write(&file, plan).unwrap();
    let arguments = ["--plan", file.to_str().unwrap(), "--rate", "50"];
    let output = chaos(
        &arguments,
        &[("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1"), ("REQUEST_TOTAL", ""), ("ACK_WAIT", "")],
    );
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}\n{}", text(&output.stderr));
    assert!(told.contains("NOT CLEAN: a healthy message is a dead letter: "), "{told}");
    assert!(told.contains("Guarantees were broken."), "{told}");
    // The logs and stores are kept, and named.
    let kept = told.lines().find_map(|line| line.split_once("logs and queues are in ")).unwrap().1;
    assert!(Path::new(kept).join("generator-1.1.log").exists(), "{kept}");
    std::fs::remove_dir_all(kept).unwrap();
}

#[test]
fn same_seed_prints_the_same_plan() {
    let plan = || {
        let output = chaos(&["--seed", "7", "--for", "60s", "--print-plan"], &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let first = plan();
    assert_eq!(first, plan());
    let faults = serde_json::from_str::<Value>(&first).unwrap()["faults"].as_array().unwrap().len();
    assert!(faults > 20, "{first}");
}

#[test]
fn impossible_plan_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("plan.json");
    let plan = r#"{"for": "1s", "cast": {"requestors": 1, "generators": 1, "brokers": 1},
        "faults": [{"at": "100ms", "do": "kill", "to": "generator-2"}]}"#;
    std::fs::write(&file, plan).unwrap();
    let output = chaos(&["--plan", file.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("there is no generator-2 in the cast"), "{told}");
    assert!(told.contains("fault 1 (SIGKILL generator-2)"), "{told}");
}
