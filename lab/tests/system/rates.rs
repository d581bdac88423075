//! Rate limits: in a second of the clock all replicas together never start more jobs than allowed, also during faults,
//! and a message that waits spends no attempt.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use contract::facts::{self, Stored};
use contract::queues::{REQUESTS, RESPONSES};
use futures_util::StreamExt;
use lab::starts_by_second;
use testkit::eventually::eventually;
use testkit::process::{Process, logged};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use workqueue::Priority;
use workqueue::topology::Limits;

use crate::deployment::{Cluster, Deployment, LIMITS, Service, admin, ready, succeeded};

/// Starts five generators with this limit, and a requestor that stores responses.
async fn replicas<B>(deployment: &Deployment<B>, limit: &str) -> (Vec<Process>, Process) {
    let settings = [("RATE_LIMIT", limit)];
    let mut generators = Vec::new();
    for number in 1..=5 {
        let name = format!("generator-{number}");
        generators.push(deployment.run(Service::Generator, &name, &settings).await);
    }
    let requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    (generators, requestor)
}

/// The questions of the replicas from now on, by the second.
struct Questions {
    listening: JoinHandle<()>,
    heard: mpsc::UnboundedReceiver<(i64, u64)>,
}

impl Questions {
    async fn listen(deployment: &Deployment) -> Self {
        let client = deployment.connection().client();
        let mut questions = client.subscribe(format!("rates.{}.*", REQUESTS.stream)).await.unwrap();
        client.flush().await.unwrap();
        let (sender, heard) = mpsc::unbounded_channel();
        let listening = tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let second = question.subject.rsplit('.').next().unwrap().parse().unwrap();
                let asked = question.headers.unwrap().get("Nats-Incr").unwrap().as_str().parse();
                let _ = sender.send((second, asked.unwrap()));
            }
        });
        Self { listening, heard }
    }

    /// The number of questions, and the permits that the limit allowed, by the second.
    fn granted(mut self, limit: u64) -> (u64, BTreeMap<i64, u64>) {
        self.listening.abort();
        let (mut questions, mut totals) = (0, BTreeMap::<i64, u64>::new());
        while let Ok((second, asked)) = self.heard.try_recv() {
            questions += 1;
            *totals.entry(second).or_default() += asked;
        }
        (questions, totals.into_iter().map(|(second, total)| (second, total.min(limit))).collect())
    }
}

/// The number of requests that were started in each second. Asserts that none exceeds the limit.
async fn started<B>(deployment: &Deployment<B>, limit: u64) -> BTreeMap<i64, u64> {
    let starts = starts_by_second(deployment.connection()).await.unwrap();
    assert!(starts.values().all(|starts| *starts <= limit), "{starts:?}");
    starts
}

/// Asserts that in no second more requests were started than the broker's counters permitted. Returns the number of
/// questions.
async fn permitted(deployment: &Deployment, questions: Questions, limit: u64) -> u64 {
    let starts = started(deployment, limit).await;
    let (questions, granted) = questions.granted(limit);
    for (second, starts) in starts {
        let granted = granted.get(&second).copied().unwrap_or_default();
        assert!(starts <= granted, "{second}: {starts} of {granted}");
    }
    questions
}

#[tokio::test]
async fn no_second_exceeds_the_rate_of_five_replicas() {
    let deployment = Deployment::start().await;
    deployment.submit(Priority::Normal, 400).await;
    let questions = Questions::listen(&deployment).await;
    let (generators, _requestor) = replicas(&deployment, "60").await;
    logged(&generators[0], "the rate limit holds jobs back").await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.redeliveries()), (400, 0), "{verdict}");
    let questions = permitted(&deployment, questions, 60).await;
    assert!(questions <= 400 / 4, "{questions} for 400 jobs");
}

#[tokio::test]
async fn job_that_waits_for_the_rate_spends_no_attempt() {
    let deployment = Deployment::start().await;
    deployment.submit(Priority::Normal, 8).await;
    let questions = Questions::listen(&deployment).await;
    // Five wait at the same time, so that one of them waits longer than ACK_WAIT.
    let (_generators, _requestor) = replicas(&deployment, "1").await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.redeliveries()), (8, 0), "{verdict}");
    permitted(&deployment, questions, 1).await;
}

#[tokio::test]
async fn permits_of_a_killed_replica_are_lost_for_a_second() {
    let deployment = Deployment::start().await;
    deployment.submit(Priority::Normal, 150).await;
    let questions = Questions::listen(&deployment).await;
    let (mut generators, _requestor) = replicas(&deployment, "30").await;
    for (generator, done) in generators.iter_mut().zip([20, 50]) {
        deployment.facts_reach(facts::STORED, done).await;
        generator.kill().await.unwrap();
    }
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.lost), (150, 0), "{verdict}");
    permitted(&deployment, questions, 30).await;
}

#[tokio::test]
async fn rate_holds_while_the_broker_is_killed_and_restarted() {
    let mut deployment = Deployment::start().await;
    deployment.submit(Priority::Normal, 150).await;
    let (_generators, _requestor) = replicas(&deployment, "30").await;
    for done in [20, 60, 100] {
        deployment.facts_reach(facts::STORED, done).await;
        deployment.broker.kill().await.unwrap();
        deployment.broker.restart().await.unwrap();
    }
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.lost), (150, 0), "{verdict}");
    // The test may miss some questions during a reconnect, but it would notice a counter that is used a second time.
    started(&deployment, 30).await;
}

#[tokio::test]
async fn rate_holds_while_brokers_of_a_cluster_are_killed() {
    let mut cluster = Cluster::of_three().await;
    cluster.declare(&LIMITS).await;
    cluster.submit(Priority::Normal, 150).await;
    let (_generators, _requestor) = replicas(&cluster, "30").await;
    for (broker, done) in [20, 60, 100].into_iter().enumerate() {
        cluster.facts_reach(facts::STORED, done).await;
        cluster.broker.kill(broker).await.unwrap();
        cluster.broker.restart(broker).await.unwrap();
    }
    let verdict = cluster.verdict().await;
    assert_eq!((verdict.complete, verdict.lost), (150, 0), "{verdict}");
    started(&cluster, 30).await;
}

#[tokio::test]
async fn stop_while_waiting_gives_back_at_most_a_lease() {
    let limits = Limits { ack_wait: std::time::Duration::from_hours(1), ..LIMITS };
    let deployment = Deployment::with(&limits).await;
    deployment.submit(Priority::Normal, 100).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let settings = [("RATE_LIMIT", "20"), ("DRAIN_TIMEOUT", "100ms")];
    let mut generator = deployment.run(Service::Generator, "limited", &settings).await;
    deployment.facts_reach(facts::STORED, 20).await;
    eventually("jobs wait for the rate", async || {
        let (_, metrics) = admin(&generator, "/metrics").await;
        let sign = r#"generator_rate_limited{queue="REQUESTS"} "#;
        let waiting = metrics.lines().find_map(|line| line.strip_prefix(sign));
        if waiting.is_some_and(|waiting| waiting != "0") { Ok(()) } else { Err(metrics) }
    })
    .await;
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
    let _generator = deployment.run(Service::Generator, "unlimited", &[]).await;
    let verdict = deployment.verdict().await;
    assert_eq!(verdict.complete, 100, "{verdict}");
    // A lease is a quarter of such a limit.
    assert!(verdict.redeliveries() <= 5, "{verdict}");
}

#[tokio::test]
async fn job_without_room_downstream_keeps_its_permit() {
    let limits = Limits { queue_limit: 10, ..LIMITS };
    let deployment = Deployment::with(&limits).await;
    for request in 0..10 {
        let subject = RESPONSES.subject_of(&format!("full-{request}"));
        deployment.publish_raw(&subject, HeaderMap::new(), b"").await;
    }
    deployment.submit(Priority::Normal, 10).await;
    let questions = Questions::listen(&deployment).await;
    let generator = deployment.run(Service::Generator, "generator", &[("RATE_LIMIT", "100")]).await;
    // Each replica tries for some seconds, several times a second.
    eventually("all of them wait for room", async || {
        let (_, metrics) = admin(&generator, "/metrics").await;
        let sign = r#"generator_publishes_total{stream="RESPONSES",outcome="full"} "#;
        let refused = metrics.lines().find_map(|line| line.strip_prefix(sign)?.parse::<u64>().ok());
        if refused.is_some_and(|times| times > 150) { Ok(()) } else { Err(refused) }
    })
    .await;
    let (_, granted) = questions.granted(u64::MAX);
    // At most one more question for each, if a second ended before its permits were used.
    assert!(granted.values().sum::<u64>() <= 20, "{granted:?}");
}

#[tokio::test]
async fn urgent_request_has_the_next_permit() {
    let deployment = Deployment::start().await;
    deployment.submit(Priority::Low, 120).await;
    let generator = deployment.run(Service::Generator, "generator", &[("RATE_LIMIT", "20")]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    deployment.facts_reach(facts::STORED, 10).await;
    let high = deployment.submit(Priority::High, 10).await;
    let before = deployment.facts(facts::STORED).await;
    for id in high {
        deployment.fact_eventually::<Stored>(id).await;
    }
    // The requests before it, and each tenth one.
    let stored = deployment.facts(facts::STORED).await;
    assert!(stored - before <= 20 + 20, "{before} and {stored}");
    ready(&generator).await;
}
