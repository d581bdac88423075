use std::fs;
use std::net::Ipv4Addr;

use tempfile::TempDir;
use testkit::eventually::eventually;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::chaos::plan::Plan;

const CAST: Cast = Cast { requestors: 1, generators: 1, brokers: 1 };
const MEMBER: Member = Member { service: Service::Generator, number: 1 };

/// The fault with this name in a plan.
fn fault(fault: &str) -> Fault {
    let plan = format!(
        r#"{{"for": "1s", "cast": {{"requestors": 1, "generators": 1, "brokers": 1}},
        "faults": [{{"at": "0s", {fault}}}]}}"#
    );
    Plan::from_json(&plan).unwrap().faults.remove(0)
}

/// Programs that wait until they are told to stop, and a broker that does not answer.
async fn config() -> (ReplicaConfig, TempDir, TcpListener) {
    let directory = tempfile::tempdir().unwrap();
    let idle = directory.path().join("idle");
    let script = "#!/bin/sh\ntrap 'exit 0' TERM\necho ready\nwhile :; do :; done\n";
    fs::write(&idle, script).unwrap();
    let mut permissions = fs::metadata(&idle).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(&idle, permissions).unwrap();
    let broker = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let config = ReplicaConfig {
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
    (config, directory, broker)
}

/// The process id of the generator, if it runs.
fn id(environment: &ChaosEnvironment<'_>) -> Option<u32> {
    environment.slots[&MEMBER].replica.as_ref().map(Replica::id)
}

/// Waits until the generator waits for its signal.
async fn is_ready(environment: &ChaosEnvironment<'_>) {
    eventually("the generator is ready", async || {
        let replica = environment.slots[&MEMBER].replica.as_ref();
        let log = replica.map(|replica| replica.process.log_text()).unwrap_or_default();
        if log.contains("ready") { Ok(()) } else { Err(log) }
    })
    .await;
}

async fn has_connections(environment: &ChaosEnvironment<'_>, wanted: usize) {
    eventually("the generator has as many connections as expected", async || {
        let connections = environment.slots[&MEMBER].network[0].connections();
        if connections == wanted { Ok(()) } else { Err(connections) }
    })
    .await;
}

async fn done(environment: &mut ChaosEnvironment<'_>, text: &str) -> Fault {
    is_ready(environment).await;
    let fault = fault(text);
    environment.begin(&fault).await.unwrap();
    fault
}

#[tokio::test]
async fn fault_of_a_process_begins_and_ends() {
    let (config, _directory, _broker) = config().await;
    let log = EventLog::new(true, CancellationToken::new());
    let mut environment = ChaosEnvironment::start(&config, CAST, &log).await.unwrap();
    let first = id(&environment).unwrap();

    let paused = done(&mut environment, r#""do": "pause", "to": "generator-1""#).await;
    let status = || fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
    if cfg!(target_os = "linux") {
        eventually("it is stopped", async || match status() {
            seen if seen.contains(") T ") => Ok(()),
            seen => Err(seen),
        })
        .await;
    }
    environment.end(&paused).await.unwrap();
    if cfg!(target_os = "linux") {
        eventually("it goes on", async || match status() {
            seen if seen.contains(") T ") => Err(seen),
            _ => Ok(()),
        })
        .await;
    }

    let killed = done(&mut environment, r#""do": "kill", "to": "generator-1""#).await;
    assert_eq!(id(&environment), None);
    environment.end(&killed).await.unwrap();
    let second = id(&environment).unwrap();
    assert_ne!(second, first);

    let stopped = done(&mut environment, r#""do": "stop", "to": "generator-1""#).await;
    assert_eq!((id(&environment), environment.leaving.len()), (None, 1));
    environment.end(&stopped).await.unwrap();
    assert_ne!(id(&environment), Some(second));

    let count = |environment: &ChaosEnvironment<'_>| {
        let generators =
            environment.slots.iter().filter(|(member, _)| member.service == MEMBER.service);
        generators.filter(|(_, slot)| slot.replica.is_some()).count()
    };
    for replicas in [0, 3] {
        let scale = format!(r#""do": "scale", "to": "generators", "replicas": {replicas}"#);
        let scaled = done(&mut environment, &scale).await;
        assert_eq!(count(&environment), replicas);
        environment.end(&scaled).await.unwrap();
        assert_eq!(count(&environment), 1);
    }
    is_ready(&environment).await;
    assert_eq!(environment.finish().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn replica_that_ends_by_itself_is_a_failure() {
    let (config, _directory, _broker) = config().await;
    let log = EventLog::new(true, CancellationToken::new());
    let mut environment = ChaosEnvironment::start(&config, CAST, &log).await.unwrap();
    is_ready(&environment).await;
    let replica = environment.slots[&MEMBER].replica.as_ref().unwrap();
    replica.process.terminate().unwrap();
    eventually("it is noticed", async || {
        environment.note_ended_replicas().unwrap();
        if environment.failures.is_empty() { Err("nothing") } else { Ok(()) }
    })
    .await;
    assert!(
        environment.failures[0].starts_with("generator-1 ended by itself"),
        "{:?}",
        environment.failures
    );
}

#[tokio::test]
async fn replica_that_is_not_ready_again_is_a_failure() {
    let (config, _directory, _broker) = config().await;
    let log = EventLog::new(true, CancellationToken::new());
    let mut environment = ChaosEnvironment::start(&config, CAST, &log).await.unwrap();
    for slot in environment.slots.values_mut() {
        slot.replica.as_mut().unwrap().process.kill().await.unwrap();
    }
    environment.stop_asking().await.unwrap();
    let failure = environment.failures.first().map(String::as_str).unwrap_or_default();
    assert!(failure.ends_with("does not become ready"), "{:?}", environment.failures);
}

#[tokio::test]
async fn fault_of_a_network_begins_and_ends() {
    let (config, _directory, broker) = config().await;
    let log = EventLog::new(true, CancellationToken::new());
    let mut environment = ChaosEnvironment::start(&config, CAST, &log).await.unwrap();
    let url = environment.slots[&MEMBER].network[0].url().replace("nats://", "");
    for (action, survives) in [("cut", false), ("reset", false), ("hang", true), ("slow", true)] {
        let mut client = TcpStream::connect(&url).await.unwrap();
        let (mut server, _) = broker.accept().await.unwrap();
        has_connections(&environment, 1).await;
        let fault =
            done(&mut environment, &format!(r#""do": "{action}", "to": "generator-1""#)).await;
        if survives {
            has_connections(&environment, 1).await;
            environment.end(&fault).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut server, b"still here").await.unwrap();
            let mut told = [0; 10];
            client.read_exact(&mut told).await.unwrap();
            assert_eq!(&told, b"still here", "{action}");
        } else {
            // An end, or a reset.
            assert!(!matches!(client.read(&mut [0; 1]).await, Ok(1..)), "{action}");
            environment.end(&fault).await.unwrap();
        }
        drop((client, server));
        has_connections(&environment, 0).await;
    }
}
