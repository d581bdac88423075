//! Streams and consumers that exist before a service starts.

use std::mem;

use async_nats::jetstream::consumer::AckPolicy;
use async_nats::jetstream::consumer::pull::Config as ConsumerConfig;
use async_nats::jetstream::stream::{Config as StreamConfig, RetentionPolicy};
use cli::declare::declare;
use contract::facts;
use contract::queues::{REQUESTS, RESPONSES};
use futures_util::StreamExt;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::process::logged;
use tokio::io::{self, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use workqueue::topology::{self, DeclareError, Limits};
use workqueue::{KnownStreams, NatsSettings, Priority, now};

use crate::deployment::{Deployment, LIMITS, Service, ended, programs, ready, run, soon};

/// Changes the stream REQUESTS by hand.
async fn drift(deployment: &Deployment, change: impl FnOnce(&mut StreamConfig)) {
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    change(&mut config);
    deployment.nats().update_stream(config).await.unwrap();
}

#[tokio::test]
async fn missing_objects_are_created_and_others_left_unchanged() {
    let deployment = Deployment::bare().await;
    let first = deployment.declare_once(&LIMITS).await.unwrap();
    // Five streams, four buckets, six consumers.
    assert_eq!(first.created.len(), 15, "{:?}", first.created);
    let second = deployment.declare_once(&LIMITS).await.unwrap();
    assert!(second.created.is_empty() && second.differences.is_empty(), "{second:?}");
    deployment.nats().delete_stream(RESPONSES.stream).await.unwrap();
    let third = deployment.declare_once(&LIMITS).await.unwrap();
    assert_eq!(third.created, ["stream RESPONSES", "consumer requestor of stream RESPONSES"]);
}

#[tokio::test]
async fn declare_reports_each_object_that_it_creates() {
    let deployment = Deployment::bare().await;
    let done = declare(deployment.nats(), &LIMITS).await.unwrap();
    // As in `missing_objects_are_created_and_others_left_unchanged`, and the counters of rates.
    assert_eq!(done.len(), 16, "{done:?}");
    assert_eq!(done[0], "created stream SCHEDULES");
    assert_eq!(declare(deployment.nats(), &LIMITS).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn many_processes_may_declare_at_the_same_time() {
    let deployment = Deployment::bare().await;
    let (contract, known) = (contract::topology(), KnownStreams::default());
    let declarations =
        (0..10).map(|_| topology::declare(deployment.nats(), &known, &contract, &LIMITS));
    for declared in futures_util::future::join_all(declarations).await {
        assert_eq!(declared.unwrap().differences, []);
    }
}

#[tokio::test]
async fn different_limit_is_accepted_and_can_be_changed_in_place() {
    let deployment = Deployment::start().await;
    let other = Limits {
        queue_limit: 7,
        ack_wait: std::time::Duration::from_secs(3),
        facts_max_age: std::time::Duration::from_hours(2),
        ..LIMITS
    };
    let declared = deployment.declare_once(&other).await.unwrap();
    // Of four queues, four buckets and six consumers, one limit each.
    assert_eq!(declared.differences.len(), 14, "{:?}", declared.differences);
    let first: Vec<_> = declared.differences[..2].iter().map(ToString::to_string).collect();
    let schedules = "stream SCHEDULES: queue_limit is 100000, should be 7";
    assert_eq!(first, [schedules, "stream REQUESTS: max_msgs is 100000, should be 7"]);
    assert_eq!(declared.facts_max_age(), LIMITS.facts_max_age, "the broker's value holds");

    let changes = declare(deployment.nats(), &other).await.unwrap();
    assert_eq!(changes.len(), 15, "{changes:?}");
    assert_eq!(changes[0], "created stream RATES");
    assert_eq!(changes[1], "changed stream SCHEDULES: queue_limit from 100000 to 7");
    assert_eq!(changes[2], "changed stream REQUESTS: max_msgs from 100000 to 7");
    let declared = deployment.declare_once(&other).await.unwrap();
    assert_eq!(declared.differences, []);
    assert_eq!(declared.facts_max_age(), other.facts_max_age);
}

#[tokio::test]
async fn service_logs_the_limit_with_which_it_continues() {
    let deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[("QUEUE_LIMIT", "7")]).await;
    logged(&generator, "running on with the broker's limit").await;
    logged(&generator, "stream REQUESTS: max_msgs is 100000, should be 7").await;
    ready(&generator).await;
}

#[tokio::test]
async fn stream_that_drops_work_is_refused_and_the_setting_named() {
    let deployment = Deployment::start().await;
    drift(&deployment, |config| {
        config.discard = async_nats::jetstream::stream::DiscardPolicy::Old;
        config.max_age = std::time::Duration::from_hours(1);
    })
    .await;
    let mut generator = deployment.run(Service::Generator, "generator", &[]).await;
    let status = ended(&mut generator).await;
    let log = generator.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("stream REQUESTS: discard is Old, should be New"), "{log}");
    assert!(log.contains("stream REQUESTS: max_age is 3600s, should be 0ns"), "{log}");
    // A declaration that changes limits does not accept it either.
    let refused = declare(deployment.nats(), &LIMITS).await;
    assert!(matches!(refused, Err(DeclareError::Breaks(_))), "{refused:?}");
}

#[tokio::test]
async fn facts_kept_no_longer_than_their_margin_are_refused() {
    let deployment = Deployment::start().await;
    let stream = deployment.nats().get_stream(facts::STORED.stream).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_age = std::time::Duration::from_hours(1);
    deployment.nats().update_stream(config).await.unwrap();
    let refused = deployment.declare_once(&LIMITS).await.unwrap_err().to_string();
    assert!(refused.contains("stream KV_stored: max_age is 3600s"), "{refused}");
}

#[tokio::test]
async fn stream_of_another_kind_is_refused() {
    let deployment = Deployment::bare().await;
    let foreign = StreamConfig {
        name: REQUESTS.stream.to_owned(),
        subjects: vec!["requests.*".to_owned()],
        retention: RetentionPolicy::Interest,
        ..StreamConfig::default()
    };
    deployment.nats().create_stream(foreign).await.unwrap();
    let refused = deployment.declare_once(&LIMITS).await.unwrap_err().to_string();
    assert!(refused.contains("retention is Interest, should be WorkQueue"), "{refused}");
    assert!(
        refused.contains(r#"subjects is ["requests.*"], should be ["requests.high.*", "#),
        "{refused}"
    );
}

#[tokio::test]
async fn consumer_with_a_delivery_limit_is_refused() {
    let deployment = Deployment::start().await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    stream.delete_consumer(REQUESTS.consumer).await.unwrap();
    let foreign = ConsumerConfig {
        durable_name: Some(REQUESTS.consumer.to_owned()),
        ack_policy: AckPolicy::Explicit,
        filter_subjects: REQUESTS.lane(Priority::Normal).filters(),
        max_deliver: 5,
        max_batch: 10,
        ..ConsumerConfig::default()
    };
    stream.create_consumer(foreign).await.unwrap();
    let refused = deployment.declare_once(&LIMITS).await.unwrap_err().to_string();
    for difference in ["max_deliver is 5, should be -1", "max_batch is 10, should be 0"] {
        let difference = format!("consumer generator of stream REQUESTS: {difference}");
        assert!(refused.contains(&difference), "{refused}");
    }
}

#[tokio::test]
async fn missing_consumer_is_declared_again() {
    let deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    stream.delete_consumer(REQUESTS.consumer).await.unwrap();
    logged(&generator, "consumer generator of stream REQUESTS is gone; declaring it again").await;
    let mut requestor = deployment.ask(100).await;
    crate::deployment::succeeded(&mut requestor).await;
    assert_eq!(deployment.verdict().await.complete, 100);
}

#[tokio::test]
async fn broker_without_jetstream_is_named() {
    let options = BrokerOptions { without_jetstream: true, ..BrokerOptions::default() };
    let broker = Broker::start(options).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut generator = run(Service::Generator, &broker.url(), log, &[]).await;
    let status = ended(&mut generator).await;
    let log = generator.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("has no JetStream, so it cannot keep a queue"), "{log}");
}

#[tokio::test]
async fn stream_that_stores_the_same_subjects_is_named() {
    let deployment = Deployment::bare().await;
    let name = "OTHER".to_owned();
    let other =
        StreamConfig { name, subjects: vec!["requests.one".to_owned()], ..StreamConfig::default() };
    deployment.nats().create_stream(other).await.unwrap();
    let mut generator = deployment.run(Service::Generator, "generator", &[]).await;
    assert_eq!(ended(&mut generator).await.code(), Some(1));
    let log = generator.log_text();
    let both = "cannot create stream REQUESTS: stream OTHER stores requests.one already";
    assert!(log.contains(both), "{log}");
}

#[tokio::test]
async fn paused_consumer_is_named_by_all_that_depend_on_it() {
    let deployment = Deployment::start().await;
    let running = deployment.run(Service::Generator, "running", &[]).await;
    ready(&running).await;
    let until = now() + jiff::SignedDuration::from_hours(1);
    assert!(topology::pause(deployment.nats(), REQUESTS, until).await.unwrap());
    let started = deployment.run(Service::Generator, "started", &[]).await;
    logged(&started, "consumer generator of stream REQUESTS is paused until ").await;
    let (status, said) = deployment.decoupled(["declare"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("consumer generator of stream REQUESTS is paused until "), "{said}");
    let watch = deployment.watch("watch", &LIMITS, &[]).await;
    logged(&watch, "consumer generator of stream REQUESTS is paused until ").await;
    let connection = observe::connect(&NatsSettings::at(deployment.url()), "test").await.unwrap();
    let mut poller = observe::Poller::new(&connection);
    let snapshot = eventually("there is a snapshot", async || poller.snapshot().await).await;
    let paused = snapshot.queues.iter().filter(|queue| queue.paused_until.is_some());
    assert_eq!(paused.map(|queue| queue.name).collect::<Vec<_>>(), [REQUESTS.stream]);
    let (_, said) = deployment.decoupled(["audit"]).await;
    assert!(said.contains("  REQUESTS is paused until "), "{said}");
    // The service had started before.
    logged(&running, "the consumer is paused").await;
}

#[tokio::test]
async fn error_of_an_account_names_the_missing_setting() {
    let extra = r#"
        accounts {
            none { users: [{ user: "none", password: "pw" }] }
            limited {
                jetstream { max_file: 1GB, max_bytes_required: true }
                users: [{ user: "limited", password: "pw" }]
            }
        }
        no_auth_user: "limited"
    "#;
    let options = BrokerOptions { extra: extra.to_owned(), ..BrokerOptions::default() };
    let broker = Broker::start(options).await.unwrap();
    for (user, said) in
        [("none", "has no JetStream, so it cannot keep a queue"), ("limited", "set MAX_BYTES")]
    {
        let url = format!("nats://{user}:pw@127.0.0.1:{}", broker.port());
        let mut declare = Command::new(&programs().await.decoupled);
        declare.env_clear().args(["declare", "--wait", "1h", "--nats-url", &url]);
        let output = soon("it ends", declare.output()).await.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains(said), "{user}: {error}");
    }
}

#[tokio::test]
async fn account_that_requires_limits_is_supported() {
    let extra = r#"
        jetstream { limits { duplicate_window: "30s" } }
        accounts { work {
            jetstream { max_file: 1GB, max_bytes_required: true }
            users: [{ user: "worker", password: "secret" }]
        } }
        no_auth_user: "worker"
    "#;
    let options = BrokerOptions { extra: extra.to_owned(), ..BrokerOptions::default() };
    let broker = Broker::start(options).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let settings = [("MAX_BYTES", "10000000")];
    let generator = run(Service::Generator, &broker.url(), log, &settings).await;
    ready(&generator).await;
    assert!(!generator.log_text().contains("running on with"), "{}", generator.log_text());
}

/// A proxy to this broker that replaces some of its bytes, as if it had another version. Returns its address.
async fn rewritten(broker: &Broker, replace: &[(&str, &str)]) -> String {
    let (port, replace) = (broker.port(), replace.to_vec());
    let replace: Vec<(String, String)> =
        replace.into_iter().map(|(from, to)| (from.to_owned(), to.to_owned())).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let replace = replace.clone();
            tokio::spawn(async move {
                let broker = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (from_broker, mut to_broker) = broker.into_split();
                tokio::spawn(async move { io::copy(&mut from_client, &mut to_broker).await });
                let (mut from_broker, mut line) = (BufReader::new(from_broker), Vec::new());
                while from_broker.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                    let mut text = String::from_utf8(mem::take(&mut line)).unwrap();
                    for (from, to) in &replace {
                        text = text.replace(from, to);
                    }
                    let _ = to_client.write_all(text.as_bytes()).await;
                }
            });
        }
    });
    url
}

/// The error of a service that starts at this address.
async fn refusal(deployment: &Deployment, url: &str, name: &str) -> String {
    let mut generator = run(Service::Generator, url, deployment.log(name), &[]).await;
    assert_eq!(ended(&mut generator).await.code(), Some(1), "{}", generator.log_text());
    generator.log_text()
}

/// The replacement for the version of the broker: an old version with the same number of bytes.
fn old_version(version: &str) -> String {
    format!("2.9.{}", "1".repeat(version.len() - "2.9.".len()))
}

#[tokio::test]
async fn too_old_broker_is_named() {
    let deployment = Deployment::bare().await;
    let version = deployment.nats().client().server_info().version;
    let old = old_version(&version);
    let level =
        rewritten(&deployment.broker, &[(&version, &old), ("\"level\"", "\"lever\"")]).await;
    let log = refusal(&deployment, &level, "bare").await;
    assert!(log.contains("the broker is version 2.10 or older, and 2.12 is the oldest"), "{log}");
    let streams = deployment.nats().stream_names().count().await;
    assert_eq!(streams, 0, "nothing is created");
    deployment.declare_once(&LIMITS).await.unwrap();
    let found = rewritten(&deployment.broker, &[(&version, &old)]).await;
    let log = refusal(&deployment, &found, "found").await;
    assert!(log.contains(&format!("the broker is version {old}, and 2.12 is the oldest")), "{log}");
    let silent = rewritten(&deployment.broker, &[("_nats.ver", "_mine.ver")]).await;
    let log = refusal(&deployment, &silent, "silent").await;
    assert!(log.contains("the broker is version 2.10 or older, and 2.12 is the oldest"), "{log}");
}

#[tokio::test]
async fn version_of_the_broker_that_keeps_the_streams_counts() {
    let deployment = Deployment::bare().await;
    let version = deployment.nats().client().server_info().version;
    let (is, old) = (format!("\"version\":\"{version}\""), old_version(&version));
    // Like a member of a cluster that is not upgraded yet, or a leaf node with JetStream.
    let member = format!("\"version\":\"{old}\"");
    let url = rewritten(&deployment.broker, &[(&is, &member)]).await;
    for name in ["creates", "finds"] {
        let generator = run(Service::Generator, &url, deployment.log(name), &[]).await;
        ready(&generator).await;
    }
}

#[tokio::test]
async fn consumer_that_takes_the_same_messages_is_named() {
    let deployment = Deployment::start().await;
    // A queue with one consumer, because the broker allows no other consumer beside one for all messages.
    let stream = deployment.nats().get_stream(RESPONSES.stream).await.unwrap();
    stream.delete_consumer(RESPONSES.consumer).await.unwrap();
    for (filter, takes) in [
        ("responses.one", "takes responses.one already, which overlaps with"),
        ("", "takes all messages"),
    ] {
        let foreign = ConsumerConfig {
            durable_name: Some("foreign".to_owned()),
            filter_subject: filter.to_owned(),
            ..ConsumerConfig::default()
        };
        stream.create_consumer(foreign).await.unwrap();
        let refused = deployment.declare_once(&LIMITS).await.unwrap_err().to_string();
        let both = "cannot create consumer requestor of stream RESPONSES: consumer foreign ";
        assert!(refused.contains(&format!("{both}{takes}")), "{refused}");
        assert!(refused.contains("delete that consumer, or change its filter"), "{refused}");
        stream.delete_consumer("foreign").await.unwrap();
    }
}
