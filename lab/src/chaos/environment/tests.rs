use std::fs;
use std::net::Ipv4Addr;

use tempfile::TempDir;
use testkit::eventually::eventually;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::chaos::plan::Plan;

const CAST: Cast = Cast { requestors: 1, generators: 1, brokers: 1 };
const MEMBER: Member = Member { side: Side::Generator, number: 1 };

/// A fault that a plan names so.
fn fault(fault: &str) -> Fault {
    let plan = format!(
        r#"{{"for": "1s", "cast": {{"requestors": 1, "generators": 1, "brokers": 1}},
        "faults": [{{"at": "0s", {fault}}}]}}"#
    );
    Plan::from_json(&plan).unwrap().faults.remove(0)
}

/// Programs that wait until they are told to stop, and a broker that says nothing.
async fn equipment() -> (Equipment, TempDir, TcpListener) {
    let directory = tempfile::tempdir().unwrap();
    let idle = directory.path().join("idle");
    let script = "#!/bin/sh\ntrap 'exit 0' TERM\necho ready\nwhile :; do :; done\n";
    fs::write(&idle, script).unwrap();
    let mut permissions = fs::metadata(&idle).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(&idle, permissions).unwrap();
    let broker = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let equipment = Equipment {
        programs: Programs {
            requestor: idle.clone(),
            generator: idle.clone(),
            gateway: idle.clone(),
            decoupled: idle,
        },
        directory: directory.path().to_owned(),
        brokers: vec![broker.local_addr().unwrap().port()],
        copies: 1,
        rate: requestor::Rate::Zero,
    };
    (equipment, directory, broker)
}

/// Which process the generator is, if it runs.
fn id(stage: &Stage<'_>) -> Option<u32> {
    stage.slots[&MEMBER].replica.as_ref().map(Replica::id)
}

/// Waits until the generator has begun to wait for its end.
async fn is_ready(stage: &Stage<'_>) {
    eventually("the generator is ready", async || {
        let replica = stage.slots[&MEMBER].replica.as_ref();
        let log = replica.map(|replica| replica.process.log_text()).unwrap_or_default();
        if log.contains("ready") { Ok(()) } else { Err(log) }
    })
    .await;
}

async fn has_connections(stage: &Stage<'_>, wanted: usize) {
    eventually("the generator has as many connections as expected", async || {
        let connections = stage.slots[&MEMBER].network[0].connections();
        if connections == wanted { Ok(()) } else { Err(connections) }
    })
    .await;
}

async fn done(stage: &mut Stage<'_>, text: &str) -> Fault {
    is_ready(stage).await;
    let fault = fault(text);
    stage.begin(&fault).await.unwrap();
    fault
}

#[tokio::test]
async fn fault_of_a_process_is_really_done_and_undone() {
    let (equipment, _directory, _broker) = equipment().await;
    let log = EventLog::new(true);
    let mut stage = Stage::start(&equipment, CAST, &log).await.unwrap();
    let first = id(&stage).unwrap();

    let paused = done(&mut stage, r#""do": "pause", "to": "generator-1""#).await;
    let status = || fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
    if cfg!(target_os = "linux") {
        eventually("it is stopped", async || match status() {
            seen if seen.contains(") T ") => Ok(()),
            seen => Err(seen),
        })
        .await;
    }
    stage.end(&paused).await.unwrap();
    if cfg!(target_os = "linux") {
        eventually("it goes on", async || match status() {
            seen if seen.contains(") T ") => Err(seen),
            _ => Ok(()),
        })
        .await;
    }

    let killed = done(&mut stage, r#""do": "kill", "to": "generator-1""#).await;
    assert_eq!(id(&stage), None);
    stage.end(&killed).await.unwrap();
    let second = id(&stage).unwrap();
    assert_ne!(second, first);

    let stopped = done(&mut stage, r#""do": "stop", "to": "generator-1""#).await;
    assert_eq!((id(&stage), stage.leaving.len()), (None, 1));
    stage.end(&stopped).await.unwrap();
    assert_ne!(id(&stage), Some(second));

    let count = |stage: &Stage<'_>| {
        let generators = stage.slots.iter().filter(|(member, _)| member.side == MEMBER.side);
        generators.filter(|(_, slot)| slot.replica.is_some()).count()
    };
    for replicas in [0, 3] {
        let scale = format!(r#""do": "scale", "to": "generators", "replicas": {replicas}"#);
        let scaled = done(&mut stage, &scale).await;
        assert_eq!(count(&stage), replicas);
        stage.end(&scaled).await.unwrap();
        assert_eq!(count(&stage), 1);
    }
    is_ready(&stage).await;
    assert_eq!(stage.finish().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn replica_that_ends_by_itself_is_a_failure() {
    let (equipment, _directory, _broker) = equipment().await;
    let log = EventLog::new(true);
    let mut stage = Stage::start(&equipment, CAST, &log).await.unwrap();
    is_ready(&stage).await;
    let replica = stage.slots[&MEMBER].replica.as_ref().unwrap();
    replica.process.terminate().unwrap();
    eventually("it is noticed", async || {
        stage.notice_the_fallen().unwrap();
        if stage.failures.is_empty() { Err("nothing") } else { Ok(()) }
    })
    .await;
    assert!(stage.failures[0].starts_with("generator-1 ended by itself"), "{:?}", stage.failures);
}

#[tokio::test]
async fn fault_of_a_network_is_really_done_and_undone() {
    let (equipment, _directory, broker) = equipment().await;
    let log = EventLog::new(true);
    let mut stage = Stage::start(&equipment, CAST, &log).await.unwrap();
    let url = stage.slots[&MEMBER].network[0].url().replace("nats://", "");
    for (act, survives) in [("cut", false), ("reset", false), ("hang", true), ("slow", true)] {
        let mut client = TcpStream::connect(&url).await.unwrap();
        let (mut server, _) = broker.accept().await.unwrap();
        has_connections(&stage, 1).await;
        let fault = done(&mut stage, &format!(r#""do": "{act}", "to": "generator-1""#)).await;
        if survives {
            has_connections(&stage, 1).await;
            stage.end(&fault).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut server, b"still here").await.unwrap();
            let mut told = [0; 10];
            client.read_exact(&mut told).await.unwrap();
            assert_eq!(&told, b"still here", "{act}");
        } else {
            // An end, or a reset.
            assert!(!matches!(client.read(&mut [0; 1]).await, Ok(1..)), "{act}");
            stage.end(&fault).await.unwrap();
        }
        drop((client, server));
        has_connections(&stage, 0).await;
    }
}
