//! The graceful stop of processes with work in flight.

use std::ffi::OsStr;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use contract::facts::{RECEIVED, REQUESTED, STORED, Stored};
use contract::queues::REQUESTS;
use observe::audit::Verdict;
use testkit::eventually::eventually;
use testkit::process::{Process, bound_to_this, logged};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use workqueue::topology::Limits;

use crate::deployment::{
    Deployment, LIMITS, PATIENT, Service, admin, admin_addr, creation, ended, programs,
    publication, soon, succeeded,
};
use crate::foreign_messages::{acknowledgment, response};
use crate::round_trips::request;
use crate::work::in_flight;

/// A signal that stops a process.
type Signal = fn(&Process) -> anyhow::Result<()>;

/// Waits until some requests are in flight.
async fn some_in_flight(deployment: &Deployment) {
    eventually("requests are in flight", async || {
        let flying = deployment.queue_state(REQUESTS).await.in_flight();
        if flying > 0 { Ok(()) } else { Err("none") }
    })
    .await;
}

async fn redelivered(deployment: &Deployment) -> u64 {
    deployment.verdict().await.redeliveries()
}

/// Asserts that all requests are complete, and no message was redelivered.
async fn nothing_was_given_back(deployment: &Deployment) -> Verdict {
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.complete, verdict.requested, "{verdict}");
    assert_eq!(verdict.redeliveries(), 0, "a message was given back: {verdict}");
    verdict
}

#[tokio::test]
async fn stopping_generator_finishes_its_messages() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut requestor = deployment.ask(3_000).await;
    let slow = [("WORK_TIME", "20ms"), ("CONCURRENCY", "64")];
    let mut first = deployment.run(Service::Generator, "first", &slow).await;
    deployment.facts_reach(STORED, 500).await;
    some_in_flight(&deployment).await;
    first.terminate().unwrap();
    succeeded(&mut first).await;
    let _second = deployment.run(Service::Generator, "second", &[]).await;
    succeeded(&mut requestor).await;
    assert_eq!(nothing_was_given_back(&deployment).await.requested, 3_000);
}

#[tokio::test]
async fn stopping_requestor_finishes_its_messages() {
    let deployment = Deployment::with(&PATIENT).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let asking = [("REQUEST_RATE", "max")];
    let mut first = deployment.run(Service::Requestor, "first", &asking).await;
    deployment.facts_reach(STORED, 500).await;
    first.terminate().unwrap();
    succeeded(&mut first).await;
    let _second = deployment.run(Service::Requestor, "second", &[]).await;
    nothing_was_given_back(&deployment).await;
}

#[tokio::test]
async fn work_that_outlives_the_drain_is_given_back() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut requestor = deployment.ask(10).await;
    // Both a string and ACK_WAIT take an hour, so a redelivered message was given back.
    let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "500ms")];
    let mut first = deployment.run(Service::Generator, "first", &stuck).await;
    in_flight(&deployment, 10, 0).await;
    first.terminate().unwrap();
    succeeded(&mut first).await;
    let _second = deployment.run(Service::Generator, "second", &[]).await;
    succeeded(&mut requestor).await;
    assert_eq!(redelivered(&deployment).await, 10);
}

#[tokio::test]
async fn stop_at_the_last_attempt_makes_no_dead_letter() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut requestor = deployment.ask(10).await;
    let once = ("MAX_ATTEMPTS", "1");
    for name in ["first", "second"] {
        let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "10s"), once];
        let mut stopped = deployment.run(Service::Generator, name, &stuck).await;
        in_flight(&deployment, 10, 0).await;
        stopped.terminate().unwrap();
        succeeded(&mut stopped).await;
    }
    let _last = deployment.run(Service::Generator, "last", &[once]).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.dead_lettered), (10, 0), "{verdict}");
}

#[tokio::test]
async fn stop_at_the_last_attempt_makes_no_dead_letter_of_a_bundle() {
    const ALL: u64 = 100;
    let deployment = Deployment::with(&PATIENT).await;
    let total = ALL.to_string();
    let asking = [("REQUEST_TOTAL", &*total), ("REQUEST_RATE", "max"), ("BUNDLE_LIMIT", "8")];
    let mut requestor = deployment.run(Service::Requestor, "requestor", &asking).await;
    deployment.facts_reach(REQUESTED, ALL).await;
    let once = ("MAX_ATTEMPTS", "1");
    let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "10s"), once];
    let mut stopped = deployment.run(Service::Generator, "stopped", &stuck).await;
    eventually("all are in flight, and some in bundles", async || {
        let state = deployment.queue_state(REQUESTS).await;
        let (flying, waiting) = (state.in_flight(), state.waiting());
        if waiting == 0 && (1..ALL).contains(&flying) { Ok(()) } else { Err((flying, waiting)) }
    })
    .await;
    stopped.terminate().unwrap();
    succeeded(&mut stopped).await;
    let _last = deployment.run(Service::Generator, "last", &[once]).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.dead_lettered), (100, 0), "{verdict}");
}

#[tokio::test]
async fn both_services_stopped_under_load_finish_their_messages() {
    let deployment = Deployment::with(&PATIENT).await;
    let asking = [("REQUEST_RATE", "max")];
    let mut both = [
        deployment.run(Service::Requestor, "requestor", &asking).await,
        deployment.run(Service::Generator, "generator", &[]).await,
    ];
    deployment.facts_reach(RECEIVED, 1_000).await;
    for service in &both {
        service.terminate().unwrap();
    }
    for service in &mut both {
        succeeded(service).await;
    }
    let _generator = deployment.run(Service::Generator, "next-generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "next-requestor", &[]).await;
    nothing_was_given_back(&deployment).await;
}

#[tokio::test]
async fn requestor_gives_back_responses_it_cannot_acknowledge_in_time() {
    const ROOM: u64 = 10;
    let deployment = Deployment::with(&Limits { queue_limit: ROOM, ..PATIENT }).await;
    for _ in 0..ROOM {
        let (answered, waiting) = (request(), request());
        let stored = acknowledgment(&answered, "aaaa");
        deployment.publish(&creation(&Stored::Strings(stored.clone()))).await;
        deployment.publish(&publication(&stored)).await;
        deployment.publish(&publication(&response(&waiting, "aaaa"))).await;
    }
    let brief = [("DRAIN_TIMEOUT", "500ms")];
    let mut first = deployment.run(Service::Requestor, "first", &brief).await;
    logged(&first, r#"waiting to publish; nothing is dropped stream="ACKNOWLEDGMENTS""#).await;
    deployment.facts_reach(STORED, 2 * ROOM).await;
    first.terminate().unwrap();
    succeeded(&mut first).await;
    // ACK_WAIT is an hour, so a redelivered message was given back.
    let _second = deployment.run(Service::Requestor, "second", &[]).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    deployment.facts_reach(RECEIVED, 2 * ROOM).await;
    assert_eq!(redelivered(&deployment).await, ROOM);
}

#[tokio::test]
async fn second_signal_of_either_kind_ends_a_service_at_once() {
    let (terminate, interrupt) = (Process::terminate, Process::interrupt);
    let cases: [(Signal, Signal, i32); 3] =
        [(terminate, terminate, 15), (interrupt, interrupt, 2), (terminate, interrupt, 2)];
    for (first, second, number) in cases {
        let deployment = Deployment::with(&PATIENT).await;
        let _requestor = deployment.ask(1).await;
        let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "1h")];
        let mut generator = deployment.run(Service::Generator, "generator", &stuck).await;
        some_in_flight(&deployment).await;
        first(&generator).unwrap();
        logged(&generator, "stopping").await;
        assert_eq!(admin(&generator, "/readyz").await.0, 503);
        assert_eq!(admin(&generator, "/livez").await.0, 200);
        let status = ended_by(&mut generator, second).await;
        assert_eq!(status.code(), Some(128 + number), "{}", generator.log_text());
    }
}

#[tokio::test]
async fn second_signal_ends_a_requestor_with_work_in_flight() {
    let deployment = Deployment::with(&Limits { queue_limit: 1, ..PATIENT }).await;
    deployment.publish(&publication(&acknowledgment(&request(), "aaaa"))).await;
    deployment.publish(&publication(&response(&request(), "aaaa"))).await;
    let patient = [("DRAIN_TIMEOUT", "1h")];
    let mut requestor = deployment.run(Service::Requestor, "requestor", &patient).await;
    logged(&requestor, "waiting to publish; nothing is dropped").await;
    requestor.interrupt().unwrap();
    logged(&requestor, "stopping").await;
    let status = ended_by(&mut requestor, Process::interrupt).await;
    assert_eq!(status.code(), Some(128 + 2), "{}", requestor.log_text());
}

/// Repeats this signal until the process has ended, because a signal right after the first one counts as the same.
async fn ended_by(process: &mut Process, signal: Signal) -> ExitStatus {
    eventually("a second signal ends it", async || match process.try_wait().unwrap() {
        Some(status) => Ok(status),
        None => Err(signal(process)),
    })
    .await
}

/// A command that receives SIGHUP even if these tests run under `nohup`.
fn heeding_hangups(program: impl AsRef<OsStr>) -> Command {
    let mut command = bound_to_this("/usr/bin/env");
    command.env_clear().arg("--default-signal=HUP").arg(program);
    command
}

/// Asserts that these signals, sent within a moment, stop a generator gracefully.
async fn stops_gracefully(signals: &[Signal]) {
    let deployment = Deployment::with(&PATIENT).await;
    let mut requestor = deployment.ask(200).await;
    let mut first = heeding_hangups(&programs().await.generator);
    first.envs([("NATS_URL", deployment.url()), ("WORK_TIME", "200ms"), ("CONCURRENCY", "50")]);
    first.env("LOG_FORMAT", "pretty");
    let mut first = Process::spawn(first, deployment.log("first")).unwrap();
    some_in_flight(&deployment).await;
    for signal in signals {
        signal(&first).unwrap();
    }
    succeeded(&mut first).await;
    let _second = deployment.run(Service::Generator, "second", &[]).await;
    succeeded(&mut requestor).await;
    nothing_was_given_back(&deployment).await;
}

#[tokio::test]
async fn two_signals_within_a_moment_are_one() {
    stops_gracefully(&[Process::interrupt, Process::terminate]).await;
}

#[tokio::test]
async fn ctrl_c_stops_gracefully() {
    stops_gracefully(&[Process::interrupt]).await;
}

#[tokio::test]
async fn closed_terminal_stops_gracefully() {
    stops_gracefully(&[Process::hang_up]).await;
}

#[tokio::test]
async fn service_killed_during_its_drain_loses_nothing() {
    let deployment = Deployment::with(&LIMITS).await;
    let mut requestor = deployment.ask(10).await;
    let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "1h")];
    let mut first = deployment.run(Service::Generator, "first", &stuck).await;
    some_in_flight(&deployment).await;
    first.terminate().unwrap();
    logged(&first, "stopping").await;
    first.kill().await.unwrap();
    let _second = deployment.run(Service::Generator, "second", &[]).await;
    succeeded(&mut requestor).await;
    assert_eq!(deployment.verdict().await.complete, 10);
}

#[tokio::test]
async fn service_without_a_broker_ends_within_the_drain() {
    let mut deployment = Deployment::with(&LIMITS).await;
    let _requestor = deployment.ask(1_000).await;
    let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "2s"), ("CONCURRENCY", "1000")];
    let mut generator = deployment.run(Service::Generator, "generator", &stuck).await;
    in_flight(&deployment, 1_000, 0).await;
    deployment.broker.kill().await.unwrap();
    logged(&generator, "lost the connection").await;
    let told = Instant::now();
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
    // Its drain has two seconds. Only a process that waits for something else takes longer.
    assert!(told.elapsed() < Duration::from_secs(20), "{:?}", told.elapsed());
}

#[tokio::test]
async fn stopping_requestor_does_not_wait_for_room_in_a_full_queue() {
    let deployment = Deployment::with(&Limits { queue_limit: 10, ..PATIENT }).await;
    let busy = [("REQUEST_RATE", "max"), ("DRAIN_TIMEOUT", "1h")];
    let mut requestor = deployment.run(Service::Requestor, "requestor", &busy).await;
    logged(&requestor, "waiting to publish; nothing is dropped").await;
    requestor.terminate().unwrap();
    succeeded(&mut requestor).await;
    assert_eq!(deployment.depth(REQUESTS).await, 10);
    assert_eq!(deployment.facts(contract::facts::REQUESTED).await, 10);
}

/// Asserts that a requestor has failed because it has no result for its requests, and for these reasons.
async fn failed_for(requestor: &mut Process, reasons: &[&str]) {
    let status = ended(requestor).await;
    let log = requestor.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    for reason in reasons {
        assert!(log.contains(reason), "{reason}: {log}");
    }
}

#[tokio::test]
async fn requestor_stopped_before_its_total_is_stored_fails() {
    let deployment = Deployment::with(&PATIENT).await;
    // No generator answers it.
    let mut requestor = deployment.ask(5).await;
    deployment.facts_reach(REQUESTED, 5).await;
    requestor.terminate().unwrap();
    failed_for(&mut requestor, &["stopped before it knew the end of 5 of 5 requests"]).await;
}

#[tokio::test]
async fn requestor_gives_up_a_request_whose_fact_is_malformed() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut requestor = deployment.ask(1).await;
    deployment.facts_reach(REQUESTED, 1).await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    let message = stream.get_raw_message(1).await.unwrap();
    let subject = STORED.subject_of(REQUESTS.key(&message.subject).unwrap());
    deployment.publish_raw(&subject, HeaderMap::new(), b"no fact").await;
    let reasons = ["1 of 1 requests have no result:", " the value is not a fact: bucket stored, "];
    failed_for(&mut requestor, &reasons).await;
}

#[tokio::test]
async fn requestor_gives_up_requests_older_than_their_facts() {
    let limits = Limits { facts_max_age: Duration::from_millis(1), ..PATIENT };
    let deployment = Deployment::with(&limits).await;
    // No generator answers them, and none makes a dead letter of them.
    let mut requestor = deployment.ask(2).await;
    let reasons = ["2 of 2 requests have no result:", " older than FACTS_MAX_AGE"];
    failed_for(&mut requestor, &reasons).await;
}

/// Many more connections than the admin endpoint keeps open, all silent.
async fn silent_clients(process: &Process) -> Vec<TcpStream> {
    let addr = admin_addr(process).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(soon("a connection", TcpStream::connect(addr)).await.unwrap());
    }
    silent
}

#[tokio::test]
async fn silent_admin_clients_delay_neither_a_probe_nor_the_end() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut idle = deployment.run(Service::Generator, "idle", &[]).await;
    let silent = silent_clients(&idle).await;
    assert_eq!(admin(&idle, "/livez").await.0, 200);
    idle.terminate().unwrap();
    succeeded(&mut idle).await;
    drop(silent);

    let _requestor = deployment.ask(1).await;
    let stuck = [("WORK_TIME", "1h"), ("DRAIN_TIMEOUT", "1h")];
    let busy = deployment.run(Service::Generator, "busy", &stuck).await;
    some_in_flight(&deployment).await;
    let _silent = silent_clients(&busy).await;
    busy.terminate().unwrap();
    logged(&busy, "stopping").await;
    assert_eq!(admin(&busy, "/livez").await.0, 200);
}

/// Starts an audit with this command, and sends it these signals, the last one only after the audit has shown that it
/// still runs. Returns the name of the signal that has ended it.
async fn ends_an_audit(signals: &[Signal], starter: &[&OsStr]) -> String {
    // A broker that does not answer, so that the command waits for it.
    let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", broker.local_addr().unwrap());
    let (program, words) = starter.split_first().unwrap();
    let mut audit = heeding_hangups(program);
    audit.args(words).args(["audit", "--nats-url", &url]);
    let directory = tempfile::tempdir().unwrap();
    let mut audit = Process::spawn(audit, directory.path().join("log")).unwrap();
    let _asked = broker.accept().await.unwrap();
    let (last, others) = signals.split_last().unwrap();
    for signal in others {
        signal(&audit).unwrap();
        logged(&audit, "waiting for the broker").await;
    }
    last(&audit).unwrap();
    // It ends with an exit status, and not by the signal, which has no default effect on the first process of a
    // container.
    assert_eq!(audit.wait().await.unwrap().code(), Some(2), "{}", audit.log_text());
    let text = audit.log_text();
    let (_, error) = text.rsplit_once("Error: ").unwrap();
    error.strip_suffix(": ended at once, before it was done\n").unwrap().to_owned()
}

#[tokio::test]
async fn signal_ends_a_command_with_an_exit_status() {
    let decoupled = [programs().await.decoupled.as_os_str()];
    assert_eq!(ends_an_audit(&[Process::terminate], &decoupled).await, "SIGTERM");
    assert_eq!(ends_an_audit(&[Process::hang_up], &decoupled).await, "SIGHUP");
}

#[tokio::test]
async fn nohup_keeps_a_command_alive() {
    let signals: [Signal; 2] = [Process::hang_up, Process::terminate];
    let decoupled = [OsStr::new("/usr/bin/nohup"), programs().await.decoupled.as_os_str()];
    assert_eq!(ends_an_audit(&signals, &decoupled).await, "SIGTERM");
}
