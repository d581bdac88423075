//! Backup and restore: from one broker to one, and from one to three.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::Config;
use cli::backup::{backup, restore};
use contract::facts::{self, Stored};
use contract::queues::{self, ACKNOWLEDGMENTS, REQUESTS, RESPONSES, Request};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use observe::audit::audit;
use tempfile::TempDir;
use testkit::eventually::eventually;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use workqueue::{Connection, Job, NatsSettings, dead_letters, topology};

use crate::deployment::{
    Cluster, Deployment, LIMITS, PATIENT, Service, creation, open_pulls, programs, publication,
    ready, succeeded,
};
use crate::foreign_messages::{acknowledgment, response};
use crate::replaced::clocks_are_ahead;
use crate::round_trips::request;
use crate::watch::copy;

/// The number of complete requests before the backup.
const COMPLETE: u64 = 50;

/// The number of messages in each queue.
const WAITING: u64 = 20;

/// The number of requests among them that were in flight at a killed generator.
const IN_FLIGHT: u64 = 5;

/// A fault of a file.
type Damage = fn(&Path);

/// All streams on the broker.
fn streams() -> Vec<&'static str> {
    let buckets = facts::ALL.iter().map(|bucket| bucket.stream);
    let queues = queues::ALL.iter().map(|queue| queue.stream);
    buckets.chain([dead_letters::STREAM]).chain(queues).collect()
}

/// The number of messages and the last sequence of each stream.
async fn held(nats: &Context) -> Vec<(&'static str, u64, u64)> {
    let mut held = Vec::new();
    for stream in streams() {
        let state = topology::stream_state(nats, stream).await.unwrap().state;
        held.push((stream, state.messages, state.last_sequence));
    }
    held
}

async fn connect(url: &str) -> Connection {
    observe::connect(&NatsSettings::at(url), "test").await.unwrap()
}

/// The error of a failed restore or backup.
fn refused_with(result: anyhow::Result<()>) -> String {
    format!("{:#}", result.unwrap_err())
}

/// An idle deployment with complete requests, a dead letter, and messages in each queue, some of which were in flight
/// at a killed generator.
async fn at_rest() -> Deployment {
    let deployment = Deployment::start().await;
    leave_work(&deployment).await;
    deployment
}

/// Brings a deployment into this state.
async fn leave_work<B>(deployment: &Deployment<B>) {
    let mut generator = deployment.run(Service::Generator, "generator", &[]).await;
    succeeded(&mut deployment.ask(COMPLETE).await).await;
    let garbage = REQUESTS.subject_of("garbage");
    deployment.publish_raw(&garbage, HeaderMap::new(), b"give me strings!").await;
    deployment.dead_letters(1).await;
    let complete = deployment.verdict().await.complete;
    assert_eq!(complete as u64, COMPLETE);
    generator.terminate().unwrap();
    succeeded(&mut generator).await;

    fill(deployment, Request::clone).await;
    let concurrency = IN_FLIGHT.to_string();
    let slow = [("WORK_TIME", "1h"), ("CONCURRENCY", concurrency.as_str())];
    let mut generator = deployment.run(Service::Generator, "slow", &slow).await;
    eventually("the generator has work in flight", async || {
        let flying = deployment.queue_state(REQUESTS).await.in_flight();
        if flying == IN_FLIGHT { Ok(()) } else { Err(flying) }
    })
    .await;
    generator.kill().await.unwrap();

    fill(deployment, |request| response(request, "aaaa")).await;
    for request in fill(deployment, |request| acknowledgment(request, "aaaa")).await {
        deployment.publish(&creation(&Stored::Strings(acknowledgment(&request, "aaaa")))).await;
    }
    for queue in [REQUESTS, RESPONSES, ACKNOWLEDGMENTS] {
        assert_eq!(deployment.depth(queue).await, WAITING, "{}", queue.stream);
    }
    // The broker learns of the end of a client from the operating system.
    eventually("no client waits for messages", async || {
        let waiting = open_pulls(&deployment.queue_state(REQUESTS).await);
        if waiting == 0 { Ok(()) } else { Err(waiting) }
    })
    .await;
}

/// Publishes messages of accepted requests. Returns the requests.
async fn fill<B, M: Job>(
    deployment: &Deployment<B>,
    message: impl Fn(&Request) -> M,
) -> Vec<Request> {
    let mut requests = Vec::new();
    for _ in 0..WAITING {
        let request = request();
        deployment.publish(&publication(&message(&request))).await;
        deployment.publish(&creation(&request)).await;
        requests.push(request);
    }
    requests
}

/// Backs up a deployment into a subdirectory.
async fn backed_up<B>(deployment: &Deployment<B>, directory: &TempDir) -> PathBuf {
    let directory = directory.path().join("backup");
    backup(&connect(deployment.url()).await, &directory).await.unwrap();
    directory
}

/// Starts both services, and waits until all requests are complete, each once. Returns the number of redeliveries.
async fn everything_completes<B>(deployment: &Deployment<B>) -> u64 {
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let verdict = deployment.verdict().await;
    let all = usize::try_from(COMPLETE + 3 * WAITING).unwrap();
    assert_eq!((verdict.requested, verdict.complete), (all, all), "{verdict}");
    assert!(verdict.is_clean(), "{verdict}");
    deployment.dead_letters(1).await;
    verdict.redeliveries()
}

/// The time since which the broker remembers. Asserts that the audit has a verdict.
async fn remembers_since(nats: &Context) -> Option<Timestamp> {
    let verdict = audit(nats, Duration::ZERO).await.unwrap();
    assert_eq!(verdict.cannot_tell, None, "{verdict}");
    verdict.remembers_since
}

#[tokio::test]
async fn restored_backup_continues_on_another_broker() {
    let deployment = at_rest().await;
    let before = held(deployment.nats()).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = backed_up(&deployment, &directory).await;
    assert_eq!(held(deployment.nats()).await, before, "the backup changed something");
    for file in fs::read_dir(&directory).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.path().display());
    }

    let other = Deployment::bare().await;
    restore(&connect(other.url()).await, &directory, None).await.unwrap();
    assert_eq!(held(other.nats()).await, before);
    assert_eq!(remembers_since(other.nats()).await, remembers_since(deployment.nats()).await);
    // The restored broker knows that the messages in flight were delivered before.
    let redeliveries = everything_completes(&other).await;
    assert!(redeliveries >= IN_FLIGHT, "{redeliveries}");
    // The backup has only read the first broker.
    everything_completes(&deployment).await;
}

#[tokio::test]
async fn backup_after_a_crash_can_be_restored() {
    // The broker is killed between two writes. Either the queue has removed messages and the consumer has forgotten that
    // they were settled, or the other way around.
    for (forgets, outstanding, messages) in [("obs/generator", 3, 1), ("msgs", 1, 3)] {
        let mut deployment = Deployment::with(&PATIENT).await;
        for request in [request(), request(), request()] {
            deployment.publish(&publication(&request)).await;
        }
        let consumer: PullConsumer =
            deployment.nats().get_consumer_from_stream("generator", REQUESTS.stream).await.unwrap();
        let in_flight = consumer.fetch().max_messages(3).messages().await.unwrap();
        let in_flight: Vec<_> = in_flight.try_collect().await.unwrap();
        let store = deployment.broker.configuration_file().with_file_name("jetstream");
        let part = store.join("$G/streams/REQUESTS").join(forgets);
        let saved = deployment.log("saved");
        deployment.broker.stop().await.unwrap();
        copy(&part, &saved);
        deployment.broker.restart().await.unwrap();
        for message in &in_flight[1..] {
            message.double_ack().await.unwrap();
        }
        assert_eq!(deployment.depth(REQUESTS).await, 1);
        deployment.broker.stop().await.unwrap();
        fs::remove_dir_all(&part).unwrap();
        copy(&saved, &part);
        deployment.broker.restart().await.unwrap();

        let state = deployment.queue_state(REQUESTS).await;
        let counted = (state.in_flight(), state.stream.state.messages);
        assert_eq!(counted, (outstanding, messages), "{forgets}");
        let directory = tempfile::tempdir().unwrap();
        let directory = backed_up(&deployment, &directory).await;
        let other = Deployment::bare().await;
        restore(&connect(other.url()).await, &directory, None).await.unwrap();
        let state = other.queue_state(REQUESTS).await;
        assert_eq!(state.stream.state.messages, 1, "{forgets}");
        assert!(state.in_flight() > 0, "{forgets}");
    }
}

#[tokio::test]
async fn backup_of_one_broker_survives_the_death_of_one_of_three() {
    let deployment = at_rest().await;
    let before = held(deployment.nats()).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = backed_up(&deployment, &directory).await;

    let mut cluster = Cluster::of_three().await;
    // The restored streams are newer than their messages.
    clocks_are_ahead().await;
    restore(&connect(cluster.url()).await, &directory, Some(3)).await.unwrap();
    assert_eq!(held(cluster.nats()).await, before);
    for stream in streams() {
        let info = topology::stream_state(cluster.nats(), stream).await.unwrap();
        assert_eq!(info.config.num_replicas, 3, "{stream}");
    }
    for queue in queues::ALL {
        for (_, consumer) in cluster.queue_state(queue).await.lanes {
            assert_eq!(consumer.cluster.unwrap().replicas.len(), 2, "{}", consumer.name);
        }
    }
    // At once, so that the leader has no time to replicate anything that it should have replicated before.
    let leader = cluster.broker.leader(REQUESTS.stream).await.unwrap().unwrap();
    cluster.broker.kill(leader).await.unwrap();
    everything_completes(&cluster).await;
    assert_eq!(remembers_since(cluster.nats()).await, remembers_since(deployment.nats()).await);
}

#[tokio::test]
async fn restored_backup_of_three_brokers_continues_on_one() {
    let cluster = Cluster::of_three().await;
    cluster.declare(&LIMITS).await;
    leave_work(&cluster).await;
    let before = held(cluster.nats()).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = backed_up(&cluster, &directory).await;

    let one = Deployment::bare().await;
    restore(&connect(one.url()).await, &directory, Some(1)).await.unwrap();
    assert_eq!(held(one.nats()).await, before);
    everything_completes(&one).await;
}

#[tokio::test]
async fn damaged_or_incomplete_backup_is_refused() {
    let deployment = at_rest().await;
    let directory = tempfile::tempdir().unwrap();
    let whole = backed_up(&deployment, &directory).await;
    let other = Deployment::bare().await;
    let connection = connect(other.url()).await;

    let flip: Damage = |path| {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    };
    let cut: Damage = |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    let remove: Damage = |path| fs::remove_file(path).unwrap();
    let edit: Damage = |path| {
        let text = fs::read_to_string(path).unwrap();
        fs::write(path, text.replace("\"num_replicas\": 1", "\"num_replicas\": 3")).unwrap();
    };
    let cases: [(&str, Damage, &str); 7] = [
        ("KV_stored.snapshot", flip, "KV_stored.snapshot is damaged: its checksum differs"),
        ("REQUESTS.snapshot", cut, "REQUESTS.snapshot is damaged: its size is"),
        ("KV_received.snapshot", remove, "cannot read"),
        ("manifest.json", flip, "manifest.json is damaged"),
        ("manifest.json", cut, "manifest.json is damaged"),
        ("manifest.json", edit, "manifest.json is damaged: its checksum differs"),
        ("manifest.json", remove, "is not a complete backup"),
    ];
    for (file, damage, reason) in cases {
        let damaged = directory.path().join("damaged");
        fs::create_dir(&damaged).unwrap();
        for file in fs::read_dir(&whole).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), damaged.join(file.file_name())).unwrap();
        }
        damage(&damaged.join(file));
        let refused_with = refused_with(restore(&connection, &damaged, None).await);
        assert!(refused_with.contains(reason), "{file}: {refused_with}");
        fs::remove_dir_all(&damaged).unwrap();
    }
    let nowhere = refused_with(restore(&connection, &directory.path().join("nowhere"), None).await);
    assert!(nowhere.contains("is not a complete backup"), "{nowhere}");
    // None of them has left any stream that would prevent the restore of a complete backup.
    restore(&connection, &whole, None).await.unwrap();
}

#[tokio::test]
async fn restore_does_not_change_existing_streams() {
    let deployment = at_rest().await;
    let before = held(deployment.nats()).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = backed_up(&deployment, &directory).await;
    let refused = refused_with(restore(&connect(deployment.url()).await, &directory, None).await);
    let all = streams().join(", ");
    assert!(refused.contains(&format!("the broker has {all} already")), "{refused}");
    assert_eq!(held(deployment.nats()).await, before);

    // One existing stream is enough for a refusal, and the others are not created.
    let other = Deployment::bare().await;
    let bucket = facts::RECEIVED;
    let config = Config {
        name: bucket.stream.to_owned(),
        subjects: vec![bucket.subjects()],
        ..Config::default()
    };
    other.nats().create_stream(config).await.unwrap();
    let refused = refused_with(restore(&connect(other.url()).await, &directory, None).await);
    assert!(refused.contains("the broker has KV_received already"), "{refused}");
    for stream in streams().into_iter().filter(|stream| *stream != bucket.stream) {
        topology::stream_state(other.nats(), stream).await.unwrap_err();
    }
}

#[tokio::test]
async fn failed_restore_names_the_restored_streams() {
    let deployment = at_rest().await;
    let directory = tempfile::tempdir().unwrap();
    let directory = backed_up(&deployment, &directory).await;

    let other = Deployment::bare().await;
    let connection = connect(other.url()).await;
    let alone = refused_with(restore(&connection, &directory, Some(3)).await);
    assert!(
        alone.contains("cannot restore KV_idempotency; nothing of it is on the broker"),
        "{alone}"
    );
    assert!(alone.contains("replicas > 1 not supported in non-clustered mode"), "{alone}");
    topology::stream_state(other.nats(), facts::IDEMPOTENCY.stream).await.unwrap_err();

    // A foreign stream uses the same subjects.
    let config =
        Config { name: "OTHER".to_owned(), subjects: REQUESTS.subjects(), ..Config::default() };
    other.nats().create_stream(config).await.unwrap();
    let broken_off = refused_with(restore(&connection, &directory, None).await);
    // The facts were restored before the queues, because without them work would have a second effect.
    let is_there = "of this backup the broker has only KV_idempotency, KV_requested, KV_stored, \
                    KV_received, DEAD_LETTERS, SCHEDULES. Start no service.";
    assert!(broken_off.contains(&format!("cannot restore REQUESTS: {is_there}")), "{broken_off}");
    assert!(
        broken_off.contains("stream OTHER stores requests.high.*, requests.*, "),
        "{broken_off}"
    );
    for queue in [REQUESTS, RESPONSES, ACKNOWLEDGMENTS] {
        topology::stream_state(other.nats(), queue.stream).await.unwrap_err();
    }

    // As in the error: without the foreign stream and the restored ones, the restore succeeds.
    let restored = facts::ALL.iter().map(|bucket| bucket.stream).chain([dead_letters::STREAM]);
    for stream in restored.chain([queues::SCHEDULES.stream, "OTHER"]) {
        other.nats().delete_stream(stream).await.unwrap();
    }
    restore(&connection, &directory, None).await.unwrap();
    everything_completes(&other).await;
}

#[tokio::test]
async fn restore_does_not_miss_expired_messages() {
    const AGE: Duration = Duration::from_secs(3);
    let deployment = at_rest().await;
    let stream = topology::stream_state(deployment.nats(), dead_letters::STREAM).await.unwrap();
    let forgetful = Config { max_age: AGE, duplicate_window: AGE, ..stream.config };
    deployment.nats().update_stream(&forgetful).await.unwrap();
    let letter = dead_letters::subject(REQUESTS.stream, "id");
    deployment.publish_raw(&letter, HeaderMap::new(), b"soon forgotten").await;
    let directory = tempfile::tempdir().unwrap();
    let directory = backed_up(&deployment, &directory).await;
    deployment.dead_letters(0).await;

    let other = Deployment::bare().await;
    restore(&connect(other.url()).await, &directory, None).await.unwrap();
    other.dead_letters(0).await;
    let state = topology::stream_state(other.nats(), dead_letters::STREAM).await.unwrap().state;
    assert_eq!(state.last_sequence, 2);
}

#[tokio::test]
async fn unusable_directory_is_refused_before_connecting() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().to_str().unwrap();
    fs::write(format!("{directory}/manifest.json"), "{}").unwrap();
    for (words, reason) in [
        (["restore", directory], "manifest.json is damaged"),
        (["backup", "/proc/backup"], "cannot create /proc/backup"),
    ] {
        let mut decoupled = Command::new(&programs().await.decoupled);
        decoupled.env_clear().env("NATS_URL", "nats://127.0.0.1:1").args(words);
        let output = decoupled.output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(reason) && !said.contains("waiting"), "{said}");
    }
}

#[tokio::test]
async fn backup_is_refused_while_a_service_runs() {
    let deployment = Deployment::start().await;
    let connection = connect(deployment.url()).await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("backup");
    for service in [Service::Generator, Service::Requestor] {
        let mut replica = deployment.run(service, service.name(), &[]).await;
        ready(&replica).await;
        let refused = refused_with(backup(&connection, &directory).await);
        assert!(refused.contains(&format!("a {} runs, and waits", service.name())), "{refused}");
        let nested = directory.join("nested");
        let (status, said) = deployment.decoupled([OsStr::new("backup"), nested.as_os_str()]).await;
        assert!(status == Some(2) && said.contains(" runs, and waits"), "{said}");
        assert!(!directory.exists());
        replica.terminate().unwrap();
        succeeded(&mut replica).await;
    }
    backup(&connection, &directory).await.unwrap();
}

#[tokio::test]
async fn backup_during_a_write_leaves_no_backup() {
    let deployment = Deployment::start().await;
    let connection = connect(deployment.url()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backup");
    let stop = CancellationToken::new();
    let writes = async {
        while !stop.is_cancelled() {
            deployment.publish(&publication(&request())).await;
        }
    };
    let backs_up = async {
        let backed_up = backup(&connection, &path).await;
        stop.cancel();
        backed_up
    };
    let (backed_up, ()) = tokio::join!(backs_up, writes);
    let refused = refused_with(backed_up);
    assert!(refused.contains("REQUESTS has got messages during the backup"), "{refused}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    // The same directory can be used again.
    backup(&connection, &path).await.unwrap();
}

#[tokio::test]
async fn exit_status_shows_whether_there_is_a_backup() {
    let deployment = Deployment::start().await;
    let directory = tempfile::tempdir().unwrap();
    let run = |command: &'static str| {
        deployment.decoupled([command.as_ref(), directory.path().as_os_str()])
    };
    let (status, text) = run("backup").await;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.starts_with("Backed up to "), "{text}");
    let (status, text) = run("backup").await;
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("is not empty"), "{text}");
    let (status, text) = run("restore").await;
    assert_eq!(status, Some(2), "{text}");
    for stream in streams() {
        deployment.nats().delete_stream(stream).await.unwrap();
    }
    let (status, text) = run("restore").await;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.starts_with("Restored."), "{text}");
}
