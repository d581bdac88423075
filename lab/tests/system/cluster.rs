//! Three brokers with a copy of each stream on each, any one of which may die.

use std::error::Error as _;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use async_nats::jetstream::context::PublishError as NatsPublishError;
use async_nats::jetstream::{self, Context, ErrorCode};
use cli::declare::declare_patiently;
use contract::Strings;
use contract::facts::{self, RECEIVED, Received};
use contract::queues::{self, REQUESTS};
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use observe::audit::audit;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::process::logged;
use workqueue::topology::{self, DeclareError, Limits};
use workqueue::{
    Connection, Creation, JobId, KnownStreams, Metrics, NatsSettings, Producer, Publication, Trace,
};

use crate::deployment::{
    Cluster, Deployment, LIMIT, LIMITS, Service, publication, ready, run, succeeded,
};
use crate::round_trips::request;

/// The number of services that do the same at the same time, and the repetitions of each.
const SERVICES: usize = 3;
const TIMES: usize = 16;

/// The streams of a round trip.
fn streams() -> Vec<&'static str> {
    let queues = queues::ALL.iter().map(|queue| queue.stream);
    queues.chain(facts::ALL.iter().map(|bucket| bucket.stream)).collect()
}

#[tokio::test]
async fn three_brokers_store_each_round_trip() {
    let cluster = Cluster::of_three().await;
    // All three keep the counters of its rate as well.
    let limited = [("RATE_LIMIT", "500")];
    let _generator = cluster.run(Service::Generator, "generator", &limited).await;
    let mut requestor = cluster.ask(1_000).await;
    succeeded(&mut requestor).await;
    let verdict = cluster.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (1_000, 1_000), "{verdict}");
    for stream in streams() {
        let info = topology::stream_state(cluster.nats(), stream).await.unwrap();
        assert_eq!(info.config.num_replicas, 3, "{stream}");
        let followers = info.cluster.unwrap().replicas;
        assert_eq!(followers.len(), 2, "{stream}: {followers:?}");
    }
    for queue in queues::ALL {
        for (_, consumer) in cluster.queue_state(queue).await.lanes {
            assert_eq!(consumer.cluster.unwrap().replicas.len(), 2, "{}", consumer.name);
        }
    }
}

#[tokio::test]
async fn declare_waits_until_the_cluster_has_formed() {
    let mut cluster = Cluster::of_three().await;
    for index in 0..cluster.broker.len() {
        cluster.broker.kill(index).await.unwrap();
    }
    let settings = NatsSettings::at(cluster.url());
    let limits = Limits { replicas: 3, ..LIMITS };
    let declaring = declare_patiently(&settings, &limits, LIMIT);
    // First no broker can be reached, then one, which is no quorum, and finally a cluster.
    let starting = async {
        for index in 0..cluster.broker.len() {
            cluster.broker.restart(index).await.unwrap();
        }
    };
    let (declared, ()) = tokio::join!(declaring, starting);
    let declared = declared.unwrap();
    // Four queues, six consumers, the dead letters, and the counters of rates.
    assert_eq!(declared.len(), facts::ALL.len() + 12, "{declared:?}");
    assert!(declared.iter().all(|line| line.starts_with("created ")), "{declared:?}");

    let nobody = NatsSettings::at("nats://127.0.0.1:1");
    let error = declare_patiently(&nobody, &limits, Duration::from_millis(1)).await.unwrap_err();
    assert!(
        error.to_string().contains("cannot connect to the broker at nats://127.0.0.1:1"),
        "{error}"
    );
}

#[tokio::test]
async fn audit_misses_nothing_while_a_broker_catches_up() {
    const TOTAL: u64 = 5_000;
    let total = usize::try_from(TOTAL).unwrap();
    let mut cluster = Cluster::of_three().await;
    cluster.declare(&LIMITS).await;
    cluster.broker.kill(0).await.unwrap();
    let _generator = cluster.run(Service::Generator, "generator", &[]).await;
    let mut requestor = cluster.ask(TOTAL).await;
    succeeded(&mut requestor).await;
    let verdict = cluster.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (total, total), "{verdict}");

    // The audit may read from any broker, even from this one, which is far behind.
    let nats = cluster.nats().clone();
    let audits = async {
        for _ in 0..10 {
            let verdict = audit(&nats, Duration::ZERO).await.unwrap();
            assert_eq!((verdict.requested, verdict.complete), (total, total), "{verdict}");
        }
    };
    let (restarted, ()) = tokio::join!(cluster.broker.restart(0), audits);
    restarted.unwrap();
}

#[tokio::test]
async fn successive_kills_of_leaders_lose_nothing() {
    const TOTAL: u64 = 10_000;
    let mut cluster = Cluster::of_three().await;
    // The queue is full most of the time, so each kill of a broker hits publishes.
    cluster.declare(&Limits { queue_limit: 500, ..LIMITS }).await;
    let slow = [("WORK_TIME", "1s"), ("CONCURRENCY", "50")];
    let _generator = cluster.run(Service::Generator, "slow", &slow).await;
    let mut requestor = cluster.ask(TOTAL).await;
    let mut received = 0;
    let mut unharmed = streams();
    while let Some(&stream) = unharmed.first() {
        received = cluster.facts_reach(RECEIVED, received + 100).await;
        assert!(received < TOTAL, "there is nothing left to kill a broker for");
        let victim = eventually(&format!("{stream} has a leader"), async || {
            cluster.broker.leader(stream).await.unwrap().ok_or("none")
        })
        .await;
        let mut led = Vec::new();
        for stream in &unharmed {
            if cluster.broker.leader(stream).await.unwrap() == Some(victim) {
                led.push(*stream);
            }
        }
        cluster.broker.kill(victim).await.unwrap();
        let nats = cluster.nats().clone();
        let (restarted, verdict) =
            tokio::join!(cluster.broker.restart(victim), audit(&nats, Duration::ZERO));
        restarted.unwrap();
        let verdict = verdict.unwrap();
        assert!(verdict.is_clean(), "{verdict}");
        unharmed.retain(|stream| !led.contains(stream));
    }
    let _fast = cluster.run(Service::Generator, "fast", &[]).await;
    succeeded(&mut requestor).await;
    let verdict = cluster.verdict().await;
    let total = usize::try_from(TOTAL).unwrap();
    assert_eq!((verdict.requested, verdict.complete), (total, total), "{verdict}");
    assert!(verdict.is_clean(), "{verdict}");
}

#[tokio::test]
async fn service_waits_while_there_are_too_few_brokers() {
    let cluster = Cluster::of_three().await;
    let generator = cluster.run(Service::Generator, "generator", &[("REPLICAS", "5")]).await;
    logged(&generator, "cannot declare the topology yet").await;
    logged(&generator, "no suitable peers for placement").await;
    // Instead of two further brokers, which would have the same effect.
    cluster.declare(&LIMITS).await;
    ready(&generator).await;
}

#[tokio::test]
async fn concurrent_declarations_all_succeed_or_wait() {
    let cluster = Cluster::of_three().await;
    let declare = async |queue_limit| {
        // Each has another limit, so each finds a difference.
        let limits = Limits { replicas: 3, queue_limit, ..LIMITS };
        match topology::declare(
            cluster.nats(),
            &KnownStreams::default(),
            &contract::topology(),
            &limits,
        )
        .await
        {
            // The creation is under way, and the next try finds the stream.
            Ok(_) | Err(DeclareError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    join_all((1..=16).map(declare)).await;
    cluster.declare(&LIMITS).await;
}

#[tokio::test]
async fn one_of_many_services_creates_a_fact_on_one_broker() {
    let deployment = Deployment::start().await;
    let services = services(&deployment, 1).await;
    for _ in 0..20 {
        exactly_one_creates(&deployment, &services).await;
    }
}

#[tokio::test]
async fn one_of_many_services_writes_a_message_in_a_cluster() {
    let cluster = Cluster::of_three().await;
    let services = services(&cluster, 3).await;

    // The answers to second writers. A cluster has more of them than a single broker.
    let in_flight = eventually("a creation is refused for another in flight", async || {
        let subject = RECEIVED.subject(JobId::new());
        let answers = all_at_once(&services, async |service, name| {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
            raw(service.connection.context(), &subject, headers, name).await
        })
        .await;
        refusals(&answers, ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT, answers.len() - 1)
    })
    .await;
    println!("refused for another creation in flight: {in_flight} times");
    for _ in 0..20 {
        exactly_one_creates(&cluster, &services).await;
    }

    let in_process = eventually("a message is refused for itself in process", async || {
        let publication = with_message_id();
        let answers = all_at_once(&services, async |service, _| {
            let Publication { subject, headers, .. } = publication.clone();
            raw(service.connection.context(), &subject, headers, "the same".to_owned()).await
        })
        .await;
        refusals(&answers, ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT, answers.len())
    })
    .await;
    println!("refused for the same message in process: {in_process} times");
    for _ in 0..20 {
        exactly_one_is_stored(&cluster, &services).await;
    }
}

/// A service that writes to the broker, with a connection of its own.
struct Writer {
    connection: Connection,
    producer: Producer,
}

/// Starts some services at the same time, so that all of them create the missing streams, as the replicas of a
/// deployment do.
async fn services<B>(deployment: &Deployment<B>, replicas: usize) -> Vec<Writer> {
    let start = async || {
        let settings = NatsSettings::at(deployment.url());
        let connection = Connection::establish(&settings, "test", |_connected| {}).await.unwrap();
        let limits = Limits { replicas, ..LIMITS };
        let producer = Producer::new(&connection, limits, TIMES, &Metrics::new("test"));
        producer.declare(&contract::topology()).await.unwrap();
        Writer { connection, producer }
    };
    join_all((0..SERVICES).map(|_| start())).await
}

/// Makes each service do the same many times concurrently. Each time has a name of its own.
async fn all_at_once<T>(services: &[Writer], act: impl AsyncFn(&Writer, String) -> T) -> Vec<T> {
    let act = &act;
    let times = (0..TIMES).flat_map(|time| {
        let services = services.iter().enumerate();
        services.map(move |(number, service)| act(service, format!("{number}-{time}")))
    });
    join_all(times).await
}

/// Publishes once, and returns the broker's answer.
async fn raw(
    nats: &Context,
    subject: &str,
    headers: HeaderMap,
    body: String,
) -> Result<(), ErrorCode> {
    let answer =
        async { nats.publish_with_headers(subject.to_owned(), headers, body.into()).await?.await };
    let code = |error: NatsPublishError| {
        let answer = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
        answer.map_or_else(|| panic!("no answer: {error}"), jetstream::Error::error_code)
    };
    answer.await.map(|_| ()).map_err(code)
}

/// The number of times that this was the answer. Asserts that all other answers are refusals for second writers.
fn refusals(
    answers: &[Result<(), ErrorCode>],
    code: ErrorCode,
    most: usize,
) -> Result<usize, usize> {
    let refused: Vec<ErrorCode> =
        answers.iter().filter_map(|answer| answer.as_ref().err().copied()).collect();
    assert!(refused.len() <= most, "{answers:?}");
    let expected =
        |refusal: &ErrorCode| *refusal == code || *refusal == ErrorCode::STREAM_WRONG_LAST_SEQUENCE;
    assert!(refused.iter().all(expected), "{refused:?}");
    let count = refused.iter().filter(|refusal| **refusal == code).count();
    if count > 0 { Ok(count) } else { Err(count) }
}

/// Creates one fact many times concurrently, each time with other values.
async fn exactly_one_creates<B>(deployment: &Deployment<B>, services: &[Writer]) {
    let id = JobId::new();
    let creations = all_at_once(services, async |service, name| {
        let values = Strings::try_from(vec![name.replace('-', "z")]).unwrap();
        let fact = Received { id, values, marked_by: name, received_at: workqueue::now() };
        let creation = service.producer.create(&fact, &Trace::default(), None).await.unwrap();
        (fact, creation)
    })
    .await;
    let created: Vec<&Received> = creations
        .iter()
        .filter_map(|(fact, creation)| (*creation == Creation::Created).then_some(fact))
        .collect();
    let [winner] = created.as_slice() else { panic!("created {} times", created.len()) };
    for (_, creation) in &creations {
        let existing = Creation::AlreadyExists((*winner).clone());
        assert!(
            *creation == Creation::Created || *creation == existing,
            "{creation:?}, {winner:?}"
        );
    }
    assert_eq!(deployment.fact::<Received>(id).await.as_ref(), Some(*winner));
    let stream = deployment.nats().get_stream(RECEIVED.stream).await.unwrap();
    let mut subjects = stream.info_with_subjects(RECEIVED.subject(id)).await.unwrap();
    let (_, revisions) = subjects.try_next().await.unwrap().unwrap();
    assert_eq!(revisions, 1);
}

/// A message with a message id, as those of dead letters and snoozed messages, which the broker stores only once.
fn with_message_id() -> Publication {
    let mut publication = publication(&request());
    publication.headers.insert(NATS_MESSAGE_ID, publication.subject.as_str());
    publication
}

/// Publishes one message many times concurrently, until each publish is confirmed.
async fn exactly_one_is_stored(cluster: &Cluster, services: &[Writer]) {
    let before = cluster.depth(REQUESTS).await;
    let publication = with_message_id();
    all_at_once(services, async |service, _| {
        eventually("it is confirmed", async || {
            service.connection.publish_once(publication.clone()).await
        })
        .await;
    })
    .await;
    assert_eq!(cluster.depth(REQUESTS).await, before + 1);
}

#[tokio::test]
async fn member_without_jetstream_is_a_valid_address() {
    let cluster = Cluster::of_three().await;
    let port = cluster.broker.iter().find_map(Broker::cluster_port).unwrap();
    let member = BrokerOptions {
        without_jetstream: true,
        extra: format!(
            "server_name: member\ncluster {{ name: lab, listen: \"127.0.0.1:-1\", no_advertise: true, \
             routes: [\"nats://127.0.0.1:{port}\"] }}"
        ),
        ..BrokerOptions::default()
    };
    let member = Broker::start(member).await.unwrap();
    let settings = [("REPLICAS", "3")];
    let log = cluster.log("generator");
    let generator = run(Service::Generator, &member.url(), log, &settings).await;
    ready(&generator).await;
    succeeded(&mut cluster.ask(20).await).await;
    let verdict = cluster.verdict().await;
    assert!(verdict.is_clean() && verdict.complete == 20, "{verdict}");
}
