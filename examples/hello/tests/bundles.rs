//! Bundles on a real broker: each job of a bundle is handled like any other job.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::{ConnectOptions, jetstream};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use workqueue::dead_letters;
use workqueue::topology::{Limits, Topology, queue_state};
use workqueue::{
    Context, Failure, Handler, Job, JobId, NatsSettings, Producer, Queue, RetryPolicy, Service,
    Settings,
};

/// A drain of which a tenth, the time for giving back, suffices to publish the jobs of a bundle.
const DRAIN: Duration = Duration::from_secs(5);

/// The time for which the place `closed` is closed.
const CLOSED: Duration = Duration::from_mins(10);

/// A letter to post.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Letter {
    id: JobId,
    to: String,
}

impl Job for Letter {
    const QUEUE: Queue = Queue::new("LETTERS", "letters").consumer("postman");

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }
}

/// Reports each attempt, waits for its release, and fails as the address says.
struct Postman {
    started: mpsc::UnboundedSender<(String, u64)>,
    gate: Arc<Semaphore>,
    at_a_time: Arc<AtomicUsize>,
    most_at_a_time: Arc<AtomicUsize>,
}

impl Handler for Postman {
    type Job = Letter;

    fn retry_policy(&self) -> RetryPolicy {
        let first_delay = Duration::from_millis(1);
        RetryPolicy {
            max_attempts: Some(3),
            first_delay,
            snoozes_count: false,
            ..RetryPolicy::default()
        }
    }

    async fn handle(&self, letter: Letter, cx: &Context) -> Result<(), Failure> {
        let now = self.at_a_time.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_a_time.fetch_max(now, Ordering::SeqCst);
        let attempt = cx.attempt().number();
        let _ = self.started.send((letter.to.clone(), attempt));
        if letter.to == "stuck" {
            std::future::pending::<()>().await;
        }
        self.gate.acquire().await?.forget();
        tokio::task::yield_now().await;
        self.at_a_time.fetch_sub(1, Ordering::SeqCst);
        match letter.to.as_str() {
            "nowhere" => Err(Failure::reject("there is no such place")),
            "away" => Err(Failure::retry("there is no answer")),
            "closed" => Err(Failure::RetryAfter(CLOSED, "it is closed".into())),
            "late" if attempt == 1 => Err(Failure::retry("there is no answer")),
            "panic" if attempt == 1 => panic!("on purpose"),
            _ => Ok(()),
        }
    }
}

struct PostOffice {
    started: mpsc::UnboundedReceiver<(String, u64)>,
    gate: Arc<Semaphore>,
    most_at_a_time: Arc<AtomicUsize>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl PostOffice {
    fn open(settings: &Settings, attempts: usize) -> Self {
        let (sender, started) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(attempts));
        let most_at_a_time = Arc::<AtomicUsize>::default();
        let postman = Postman {
            started: sender,
            gate: Arc::clone(&gate),
            at_a_time: Arc::default(),
            most_at_a_time: Arc::clone(&most_at_a_time),
        };
        let service = Service::new("post-office").consume(postman);
        let (settings, stop) = (settings.clone(), CancellationToken::new());
        let token = stop.clone();
        let running =
            tokio::spawn(async move { service.run(&settings, &token).await.expect("it runs") });
        Self { started, gate, most_at_a_time, stop, running }
    }

    /// The numbers of all attempts at each letter that were started before this is closed.
    async fn close(mut self) -> BTreeMap<String, Vec<u64>> {
        self.stop.cancel();
        self.running.await.unwrap();
        let mut attempts = BTreeMap::<_, Vec<_>>::new();
        while let Some((to, attempt)) = self.started.recv().await {
            attempts.entry(to).or_default().push(attempt);
        }
        // A copy that is first delivered after its time has one attempt more, with the same number.
        attempts.values_mut().for_each(Vec::dedup);
        attempts
    }
}

/// A broker, and services with bundles of up to eight jobs.
async fn broker(queue_limit: u64) -> (Broker, Settings) {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let nats = NatsSettings::at(broker.url());
    let settings = Settings { nats, bundle_limit: 8, ..Settings::from_env() };
    let limits = Limits { queue_limit, ..settings.limits };
    (broker, Settings { limits, ..settings })
}

/// Submits letters to these addresses concurrently.
async fn submit(settings: &Settings, places: &[&str]) -> Vec<JobId> {
    let producer = Producer::connect(settings).await.unwrap();
    producer.declare(&Topology::new(&[Letter::QUEUE], &[])).await.unwrap();
    let letters: Vec<Letter> =
        places.iter().map(|to| Letter { id: JobId::new(), to: (*to).to_owned() }).collect();
    let submitted = join_all(letters.iter().map(|letter| producer.submit(letter))).await;
    submitted.into_iter().map(Result::unwrap).collect()
}

fn named(attempts: &[(&str, &[u64])]) -> BTreeMap<String, Vec<u64>> {
    attempts.iter().map(|(to, attempts)| ((*to).to_owned(), attempts.to_vec())).collect()
}

async fn nats(broker: &Broker) -> jetstream::Context {
    jetstream::new(async_nats::connect(broker.url()).await.unwrap())
}

async fn messages(nats: &jetstream::Context) -> u64 {
    nats.get_stream(Letter::QUEUE.stream).await.unwrap().cached_info().state.messages
}

/// Waits until the queue has this number of messages.
async fn messages_reach(nats: &jetstream::Context, count: u64) {
    eventually(&format!("{count} messages are in the queue"), async || {
        let messages = messages(nats).await;
        if messages == count { Ok(()) } else { Err(messages) }
    })
    .await;
}

async fn drained(nats: &jetstream::Context) {
    messages_reach(nats, 0).await;
}

#[tokio::test]
async fn concurrent_jobs_share_a_message() {
    let (broker, settings) = broker(100).await;
    let nats = nats(&broker).await;
    let places: Vec<String> = (0..20).map(|number| format!("place {number:02}")).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    submit(&settings, &places).await;
    assert_eq!(messages(&nats).await, 3, "eight, eight and four");
    submit(&settings, &["alone"]).await;
    let alone = nats.get_stream(Letter::QUEUE.stream).await.unwrap();
    let alone = alone.get_last_raw_message_by_subject("letters.>").await.unwrap();
    assert!(alone.headers.get("Bundle").is_none(), "{alone:?}");

    let office = PostOffice::open(&settings, 100);
    drained(&nats).await;
    let attempts = office.close().await;
    let done: Vec<&str> = attempts.keys().map(String::as_str).collect();
    assert_eq!(done, [&["alone"][..], &places].concat());
    assert!(attempts.values().all(|attempts| *attempts == [1]), "{attempts:?}");
}

#[tokio::test]
async fn job_of_a_bundle_fails_without_the_others() {
    let (broker, settings) = broker(100).await;
    let nats = nats(&broker).await;
    let ids = submit(&settings, &["here", "nowhere", "late", "away", "panic", "there"]).await;
    assert_eq!(messages(&nats).await, 1);
    let office = PostOffice::open(&settings, 100);
    drained(&nats).await;
    let attempts = office.close().await;
    let expected: [(_, &[u64]); _] = [
        ("away", &[1, 2, 3]),
        ("here", &[1]),
        ("late", &[1, 2]),
        ("nowhere", &[1]),
        ("panic", &[1, 2]),
        ("there", &[1]),
    ];
    assert_eq!(attempts, named(&expected));
    let mut letters = dead_letters::list(&nats, None).await.unwrap();
    letters.sort_by_key(|letter| letter.id.clone());
    let given_up: Vec<(&str, Option<u64>)> =
        letters.iter().map(|letter| (letter.id.as_str(), letter.attempts)).collect();
    assert_eq!(given_up, [(&*ids[1].to_string(), Some(1)), (&*ids[3].to_string(), Some(3))]);
}

#[tokio::test]
async fn redelivered_bundle_is_split() {
    let (broker, settings) = broker(100).await;
    let nats = nats(&broker).await;
    submit(&settings, &["here", "there", "away"]).await;
    let stream = nats.get_stream(Letter::QUEUE.stream).await.unwrap();
    let consumer: PullConsumer = stream.get_consumer(Letter::QUEUE.consumer).await.unwrap();
    let mut deliveries = consumer.fetch().max_messages(1).messages().await.unwrap();
    let delivery = deliveries.next().await.unwrap().unwrap();
    delivery.ack_with(AckKind::Nak(None)).await.unwrap();
    let office = PostOffice::open(&settings, 100);
    drained(&nats).await;
    let attempts = office.close().await;
    assert_eq!(attempts, named(&[("away", &[2, 3]), ("here", &[2]), ("there", &[2])]));
    assert_eq!(dead_letters::list(&nats, None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn stop_splits_a_bundle_and_spends_no_attempt() {
    let (broker, settings) = broker(100).await;
    let nats = nats(&broker).await;
    submit(&settings, &["here", "away", "stuck"]).await;
    let mut first = PostOffice::open(&Settings { drain_timeout: DRAIN, ..settings.clone() }, 0);
    for _ in 0..3 {
        first.started.recv().await.unwrap();
    }
    first.close().await;
    messages_reach(&nats, 3).await;
    let no_drain = Settings { drain_timeout: Duration::from_millis(10), ..settings };
    let second = PostOffice::open(&no_drain, 100);
    messages_reach(&nats, 1).await;
    let attempts = second.close().await;
    assert_eq!(attempts, named(&[("away", &[1, 2, 3]), ("here", &[1]), ("stuck", &[1])]));
    assert_eq!(dead_letters::list(&nats, None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn place_that_a_job_of_a_bundle_leaves_is_used() {
    let (broker, settings) = broker(100).await;
    let nats = nats(&broker).await;
    submit(&settings, &["here", "stuck"]).await;
    let few =
        Settings { concurrency: 2, drain_timeout: Duration::from_secs(1), ..settings.clone() };
    let mut office = PostOffice::open(&few, 0);
    for _ in 0..2 {
        office.started.recv().await.unwrap();
    }
    eventually("no pull is open", async || {
        let state = queue_state(&nats, Letter::QUEUE).await.unwrap();
        match state.lanes[0].1.num_waiting {
            0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
    submit(&settings, &["there"]).await;
    office.gate.add_permits(2);
    let next = timeout(Duration::from_mins(1), office.started.recv()).await;
    assert_eq!(next, Ok(Some(("there".to_owned(), 1))));
    office.close().await;
}

#[tokio::test]
async fn redelivered_bundle_needs_no_room() {
    let (broker, settings) = broker(1).await;
    let nats = nats(&broker).await;
    submit(&settings, &["here", "there"]).await;
    let mut first = PostOffice::open(&Settings { drain_timeout: DRAIN, ..settings.clone() }, 0);
    first.started.recv().await.unwrap();
    first.close().await;
    let second = PostOffice::open(&settings, 100);
    drained(&nats).await;
    let attempts = second.close().await;
    assert_eq!(attempts, named(&[("here", &[2]), ("there", &[2])]));
}

/// The delay with which the only bundle is given back.
async fn delay_of_the_bundle(client: async_nats::Client, office: &Settings) -> Duration {
    let mut settlements = client.subscribe("$JS.ACK.>").await.unwrap();
    client.flush().await.unwrap();
    let office = PostOffice::open(office, 100);
    let settlement = loop {
        let next = timeout(Duration::from_mins(1), settlements.next()).await;
        let settlement = next.expect("the bundle is settled").unwrap().payload;
        // A heartbeat is no settlement.
        if &*settlement != b"+WPI" {
            break String::from_utf8(settlement.to_vec()).unwrap();
        }
    };
    office.close().await;
    let options = settlement.strip_prefix("-NAK").expect("it is given back");
    let options: serde_json::Value = serde_json::from_str(options).unwrap();
    Duration::from_nanos(options["delay"].as_u64().unwrap())
}

#[tokio::test]
async fn bundle_in_a_full_queue_waits_as_its_job_does() {
    let (broker, settings) = broker(1).await;
    submit(&settings, &["here", "closed"]).await;
    let client = async_nats::connect(broker.url()).await.unwrap();
    assert_eq!(delay_of_the_bundle(client, &settings).await, CLOSED);
}

#[tokio::test]
async fn bundle_is_given_back_if_its_jobs_cannot_be_published() {
    let users = r#"authorization { users: [
        {user: "sender", password: "p"}
        {user: "office", password: "p", permissions: {publish: {deny: "letters.>"}}}
    ] }"#;
    let options = BrokerOptions { base: users.to_owned(), ..BrokerOptions::default() };
    let broker = Broker::start(options).await.unwrap();
    let of = |user: &str| {
        let (user, password) = (Some(user.to_owned()), Some("p".to_owned()));
        let nats = NatsSettings {
            nats_user: user,
            nats_password: password,
            ..NatsSettings::at(broker.url())
        };
        Settings { nats, bundle_limit: 8, ..Settings::from_env() }
    };
    submit(&of("sender"), &["here", "closed"]).await;
    let sender = ConnectOptions::with_user_and_password("sender".to_owned(), "p".to_owned());
    let client = sender.connect(broker.url()).await.unwrap();
    assert_eq!(delay_of_the_bundle(client, &of("office")).await, CLOSED);
}

#[tokio::test]
async fn no_more_jobs_of_a_bundle_run_than_are_allowed() {
    let (broker, settings) = broker(100).await;
    let nats = nats(&broker).await;
    submit(&settings, &["a", "b", "c", "d", "e", "f", "g"]).await;
    assert_eq!(messages(&nats).await, 1);
    let office = PostOffice::open(&Settings { concurrency: 2, ..settings }, 100);
    drained(&nats).await;
    let most = Arc::clone(&office.most_at_a_time);
    assert_eq!(office.close().await.len(), 7);
    assert_eq!(most.load(Ordering::SeqCst), 2);
}
