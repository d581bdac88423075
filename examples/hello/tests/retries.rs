//! A handler that fails, times out, or snoozes its jobs, on a real broker. With `snoozes_count: false` a snooze spends
//! no attempt.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, AckKind};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::proxy::Proxy;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use workqueue::dead_letters::{self, DeadLetter};
use workqueue::headers::{SNOOZE_ATTEMPTS, SNOOZE_UNTIL};
use workqueue::topology::{Topology, queue_state};
use workqueue::{
    Context, Failure, Handler, Job, JobId, NatsSettings, Priority, Producer, Queue, RetryPolicy,
    Service, ServiceError, Settings,
};

/// Fetch a page that does not exist yet.
#[derive(Debug, Serialize, Deserialize)]
struct Fetch {}

impl Job for Fetch {
    const QUEUE: Queue = Queue::new("PARCELS", "parcels").consumer("fetcher");
}

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug)]
enum Step {
    NotYet(Duration),
    Fails,
    Hangs,
    Succeeds,
}

/// Does one step in each attempt, repeats the last one, and records the number of each attempt.
#[derive(Clone)]
struct Fetcher {
    steps: &'static [Step],
    attempts: Arc<Mutex<Vec<u64>>>,
    max_attempts: u64,
}

impl Fetcher {
    fn new(max_attempts: u64, steps: &'static [Step]) -> Self {
        Self { steps, attempts: Arc::default(), max_attempts }
    }

    fn attempts(&self) -> Vec<u64> {
        self.attempts.lock().unwrap().clone()
    }

    fn start(
        &self,
        settings: &Settings,
    ) -> (JoinHandle<Result<(), ServiceError>>, CancellationToken) {
        let service = Service::new("fetcher").consume(self.clone());
        let (settings, stop) = (settings.clone(), CancellationToken::new());
        let token = stop.clone();
        (tokio::spawn(async move { service.run(&settings, &token).await }), stop)
    }
}

impl Handler for Fetcher {
    type Job = Fetch;

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            max_attempts: Some(self.max_attempts),
            first_delay: Duration::from_millis(1),
            timeout: Some(Duration::from_millis(100)),
            snoozes_count: false,
            ..RetryPolicy::default()
        }
    }

    async fn handle(&self, _: Fetch, cx: &Context) -> Result<(), Failure> {
        let step = {
            let mut attempts = self.attempts.lock().unwrap();
            attempts.push(cx.attempt().number());
            self.steps[(attempts.len() - 1).min(self.steps.len() - 1)]
        };
        match step {
            Step::NotYet(delay) => Err(Failure::RetryAfter(delay, "not yet".into())),
            Step::Fails => Err(Failure::retry("it is lost")),
            Step::Hangs => std::future::pending().await,
            Step::Succeeds => Ok(()),
        }
    }
}

async fn broker() -> (Broker, Settings) {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let mut settings = Settings { nats: NatsSettings::at(broker.url()), ..Settings::from_env() };
    settings.limits.ack_wait = Duration::from_secs(1);
    (broker, settings)
}

async fn submit(settings: &Settings) -> JobId {
    Producer::connect(settings).await.unwrap().submit(&Fetch {}).await.unwrap()
}

async fn drained(broker: &Broker) {
    let nats = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    eventually("the queue is empty", async || match nats.get_stream(Fetch::QUEUE.stream).await {
        Ok(stream) if stream.cached_info().state.messages == 0 => Ok(()),
        other => Err(other.map(|stream| stream.cached_info().state.messages)),
    })
    .await;
}

async fn dead_letters(broker: &Broker) -> Vec<DeadLetter> {
    let nats = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    dead_letters::list(&nats, None).await.unwrap()
}

#[tokio::test]
async fn job_is_snoozed_more_often_than_it_has_attempts() {
    const NOT_YET: Step = Step::NotYet(Duration::from_millis(100));

    let (broker, settings) = broker().await;
    let steps = &[NOT_YET, NOT_YET, NOT_YET, NOT_YET, NOT_YET, Step::Succeeds];
    let fetcher = Fetcher::new(2, steps);
    let (running, stop) = fetcher.start(&settings);
    submit(&settings).await;
    eventually("it succeeds", async || match fetcher.attempts() {
        attempts if attempts.len() == 6 => Ok(()),
        attempts => Err(attempts),
    })
    .await;
    drained(&broker).await;
    assert_eq!(fetcher.attempts(), [1; 6]);
    assert_eq!(dead_letters(&broker).await.len(), 0);
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn job_that_times_out_fails_and_becomes_a_dead_letter() {
    let (broker, settings) = broker().await;
    let fetcher = Fetcher::new(2, &[Step::Hangs, Step::Succeeds, Step::Hangs]);
    let (running, stop) = fetcher.start(&settings);
    for attempts in [&[1, 2][..], &[1, 2, 1, 2]] {
        submit(&settings).await;
        drained(&broker).await;
        assert_eq!(fetcher.attempts(), attempts);
    }
    let letters = dead_letters(&broker).await;
    let reasons: Vec<_> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, ["failed: timed out after 100ms (attempt 2)"]);
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn attempts_continue_to_count_after_a_snooze() {
    const NOT_YET: Step = Step::NotYet(Duration::from_secs(2));

    let (broker, settings) = broker().await;
    let fetcher = Fetcher::new(3, &[Step::Fails, NOT_YET, Step::Fails]);
    let (running, stop) = fetcher.start(&settings);
    let id = submit(&settings).await.to_string();
    drained(&broker).await;
    assert_eq!(fetcher.attempts(), [1, 2, 2, 3]);
    let letters = dead_letters(&broker).await;
    let letter = letters.iter().find(|letter| letter.id == id).expect("it is a dead letter");
    assert_eq!(letter.reason, "failed: it is lost (attempt 3)");
    assert_eq!(letter.attempts, Some(3));
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn snooze_spends_an_attempt_if_the_queue_is_full() {
    const NOT_YET: Step = Step::NotYet(Duration::from_millis(1));

    let (broker, mut settings) = broker().await;
    settings.limits.queue_limit = 1;
    let fetcher = Fetcher::new(3, &[NOT_YET]);
    let (running, stop) = fetcher.start(&settings);
    submit(&settings).await;
    drained(&broker).await;
    assert_eq!(fetcher.attempts(), [1, 2, 3]);
    assert_eq!(dead_letters(&broker).await.len(), 1);
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn job_is_handled_twice_after_a_death_between_copy_and_ack() {
    const NOT_YET: Step = Step::NotYet(Duration::from_millis(100));

    let (broker, settings) = broker().await;
    let proxy = Proxy::start(broker.port()).await.unwrap();
    proxy.hold("$JS.ACK.");
    let through = Settings { nats: NatsSettings::at(proxy.url()), ..settings.clone() };
    let (victim, _stop) = Fetcher::new(2, &[NOT_YET]).start(&through);
    submit(&settings).await;
    proxy.held().await;
    victim.abort();
    assert!(victim.await.unwrap_err().is_cancelled());
    drop(proxy);
    let fetcher = Fetcher::new(2, &[Step::Succeeds]);
    let (running, stop) = fetcher.start(&settings);
    drained(&broker).await;
    let mut attempts = fetcher.attempts();
    attempts.sort_unstable();
    // The copy, and a redelivery of the message itself.
    assert_eq!(attempts, [1, 2]);
    assert_eq!(dead_letters(&broker).await.len(), 0);
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// Knock at a door that stays closed.
#[derive(Debug, Serialize, Deserialize)]
struct Knock {
    times: u64,
    timeout_ms: Option<u64>,
}

impl Job for Knock {
    const QUEUE: Queue = Queue::new("DOORS", "doors").consumer("visitor").with_priorities();

    fn priority(&self) -> Priority {
        if self.timeout_ms.is_some() { Priority::High } else { Priority::Normal }
    }
}

struct Visitor;

impl Visitor {
    fn start(settings: &Settings) -> (JoinHandle<Result<(), ServiceError>>, CancellationToken) {
        let (service, stop) = (Service::new("visitor").consume(Self), CancellationToken::new());
        let (token, settings) = (stop.clone(), settings.clone());
        (tokio::spawn(async move { service.run(&settings, &token).await }), stop)
    }
}

impl Handler for Visitor {
    type Job = Knock;

    fn retry_policy(&self) -> RetryPolicy {
        let first_delay = Duration::from_millis(1);
        RetryPolicy { max_attempts: Some(2), first_delay, ..RetryPolicy::default() }
    }

    fn retry_policy_of(&self, job: &Knock) -> RetryPolicy {
        let timeout = job.timeout_ms.map(Duration::from_millis);
        RetryPolicy { max_attempts: Some(job.times), timeout, ..self.retry_policy() }
    }

    async fn handle(&self, job: Knock, _: &Context) -> Result<(), Failure> {
        match job.timeout_ms {
            Some(_) => std::future::pending().await,
            None => Err(Failure::retry("it is closed")),
        }
    }
}

#[tokio::test]
async fn each_job_has_the_policy_of_its_kind() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    let (running, stop) = Visitor::start(&settings);
    for (times, timeout_ms) in [(1, None), (3, None), (1, Some(1))] {
        producer.submit(&Knock { times, timeout_ms }).await.unwrap();
    }
    let mut reasons = eventually("all are dead letters", async || {
        let letters = dead_letters(&broker).await.into_iter();
        let reasons: Vec<_> = letters.map(|letter| letter.reason).collect();
        if reasons.len() == 3 { Ok(reasons) } else { Err(reasons) }
    })
    .await;
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            "failed: it is closed (attempt 1)",
            "failed: it is closed (attempt 3)",
            "failed: timed out after 1ms (attempt 1)",
        ]
    );
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn stop_spends_no_last_attempt_of_a_job_that_waits() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    let few =
        Settings { concurrency: 1, drain_timeout: Duration::from_secs(5), ..settings.clone() };
    let (running, stop) = Visitor::start(&few);
    let nats = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    // The first one has the only slot, and the second one waits for it.
    for (in_flight, timeout_ms) in [(1, Some(3_600_000)), (2, None)] {
        producer.submit(&Knock { times: 1, timeout_ms }).await.unwrap();
        eventually("it is in flight", async || {
            let seen = queue_state(&nats, Knock::QUEUE).await.unwrap().in_flight();
            if seen == in_flight { Ok(()) } else { Err(seen) }
        })
        .await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    let no_drain = Settings { drain_timeout: Duration::from_millis(10), ..settings };
    let (running, stop) = Visitor::start(&no_drain);
    let letter = eventually("one is a dead letter", async || {
        dead_letters(&broker).await.pop().ok_or("there is none")
    })
    .await;
    assert_eq!(letter.reason, "failed: it is closed (attempt 1)");
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// A restarted broker may deliver a snoozed message before its time, and counts that delivery.
#[tokio::test]
async fn delivery_before_its_time_spends_no_attempt() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    producer.declare(&Topology::new(&[Fetch::QUEUE], &[])).await.unwrap();
    let nats = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    let mut headers = async_nats::HeaderMap::new();
    let until = workqueue::now() + Duration::from_hours(1);
    headers.insert(SNOOZE_ATTEMPTS, "0");
    headers.insert(SNOOZE_UNTIL, until.to_string());
    let subject = Fetch::QUEUE.subject(JobId::new());
    let published = nats.publish_with_headers(subject, headers, "{}".into()).await;
    published.unwrap().await.unwrap();
    let stream = nats.get_stream(Fetch::QUEUE.stream).await.unwrap();
    let consumer: PullConsumer = stream.get_consumer(Fetch::QUEUE.consumer).await.unwrap();
    let delivery = consumer.stream().messages().await.unwrap().next().await.unwrap().unwrap();
    delivery.ack_with(AckKind::Nak(None)).await.unwrap();

    let fetcher = Fetcher::new(2, &[Step::Succeeds]);
    let (running, stop) = fetcher.start(&settings);
    let copy = eventually("a copy that was not delivered before waits in its place", async || {
        stream.get_raw_message(2).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(copy.headers.get(SNOOZE_ATTEMPTS).unwrap().as_str(), "0");
    assert!(fetcher.attempts().is_empty());
    stop.cancel();
    running.await.unwrap().unwrap();
}
