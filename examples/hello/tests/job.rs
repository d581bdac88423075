//! A job of a type that no other crate has, from its submission to its settlement, on a real broker.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use serde::{Deserialize, Serialize};
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::subscriber::DefaultGuard;
use workqueue::dead_letters::{self, DeadLetter, ReplayError};
use workqueue::testing::Recorder;
use workqueue::topology::{self, Declared, Limits, Topology};
use workqueue::{
    Bucket, Connection, Context, Creation, Fact, Failure, Handler, Job, NatsSettings, Producer,
    PublishError, Queue, Reconciler, RetryPolicy, Service, ServiceError, Settings, Trace,
};

/// Resize an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Resize {
    image: String,
    width: u32,
}

/// An image was resized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Resized {
    image: String,
    attempt: u64,
}

impl Job for Resize {
    const QUEUE: Queue = Queue::new("IMAGES", "images").consumer("resizer");
}

impl Fact for Resized {
    const BUCKET: Bucket = Bucket { name: "resized", stream: "KV_resized" };

    fn key(&self) -> String {
        self.image.clone()
    }
}

/// Reports each attempt to `started`, and resizes the image once it is released.
struct Resizer {
    started: mpsc::UnboundedSender<(String, u64)>,
    gate: Arc<Semaphore>,
}

impl Handler for Resizer {
    type Job = Resize;

    fn retry_policy(&self) -> RetryPolicy {
        let first_delay = Duration::from_millis(1);
        RetryPolicy { max_attempts: Some(3), first_delay, ..RetryPolicy::default() }
    }

    async fn handle(&self, job: Resize, cx: &Context) -> Result<(), Failure> {
        let attempt = cx.attempt().number();
        let _ = self.started.send((job.image.clone(), attempt));
        self.gate.acquire().await?.forget();
        match job.image.as_str() {
            "empty" => return Err(Failure::reject("it has no pixels")),
            "unlucky" if attempt == 1 => return Err(Failure::retry("out of memory")),
            "unlucky" if attempt == 2 => panic!("on purpose"),
            "hopeless" => return Err(Failure::retry("out of memory")),
            _ => {}
        }
        match cx.create(&Resized { image: job.image, attempt }).await? {
            Creation::Created | Creation::AlreadyExists(_) => Ok(()),
        }
    }
}

/// A running worker, and the attempts that it has started.
struct WorkerTask {
    started: Mutex<mpsc::UnboundedReceiver<(String, u64)>>,
    gate: Arc<Semaphore>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServiceError>>,
}

impl WorkerTask {
    /// Starts a worker, and releases this many attempts.
    fn start(settings: &Settings, attempts: usize) -> Self {
        let (sender, started) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(attempts));
        let resizer = Resizer { started: sender, gate: Arc::clone(&gate) };
        let service = Service::new("resizer").consume(resizer);
        let (settings, stop) = (settings.clone(), CancellationToken::new());
        let token = stop.clone();
        let running = tokio::spawn(async move { service.run(&settings, &token).await });
        Self { started: Mutex::new(started), gate, stop, running }
    }

    /// The next attempt that it starts.
    async fn attempt(&self) -> (String, u64) {
        self.started.lock().await.recv().await.expect("the worker runs")
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

async fn broker() -> (Broker, Settings) {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let nats = NatsSettings::at(broker.url());
    let settings = Settings { nats, ..Settings::from_env() };
    (broker, settings)
}

fn resize(image: &str) -> Resize {
    Resize { image: image.to_owned(), width: 64 }
}

async fn fact_of(producer: &Producer, image: &str) -> Resized {
    eventually(&format!("{image} is resized"), async || match producer.read(image).await {
        Ok(Some(fact)) => Ok(fact),
        other => Err(other),
    })
    .await
}

/// Waits until this many jobs are in a queue, in flight or not, because acks come after the effects.
async fn depth_is(broker: &Broker, queue: Queue, jobs: u64) {
    let client = async_nats::connect(broker.url()).await.unwrap();
    let nats = jetstream::new(client);
    eventually(&format!("{jobs} jobs in {}", queue.stream), async || {
        match nats.get_stream(queue.stream).await {
            Ok(stream) if stream.cached_info().state.messages == jobs => Ok(()),
            other => Err(other.map(|stream| stream.cached_info().state.messages)),
        }
    })
    .await;
}

/// The dead letters, once there are this many.
async fn dead_letters_reach(nats: &jetstream::Context, count: usize) -> Vec<DeadLetter> {
    eventually(&format!("{count} dead letters"), async || {
        match dead_letters::list(nats, None).await {
            Ok(letters) if letters.len() == count => Ok(letters),
            other => Err(other),
        }
    })
    .await
}

#[tokio::test]
async fn handler_is_tested_without_a_broker() {
    let recorder = Recorder::new();
    let (started, _) = mpsc::unbounded_channel();
    let resizer = Resizer { started, gate: Arc::new(Semaphore::new(3)) };
    let twice = [resize("cat"), resize("cat")];
    for job in twice {
        resizer.handle(job, &recorder.context()).await.unwrap();
    }
    assert_eq!(recorder.created::<Resized>(), [Resized { image: "cat".to_owned(), attempt: 1 }]);
    let failed = resizer.handle(resize("empty"), &recorder.context()).await;
    assert!(matches!(failed, Err(Failure::Reject(_))), "{failed:?}");
}

#[tokio::test]
async fn job_is_done_with_any_start_order() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    producer.submit(&resize("before")).await.unwrap();
    let worker = WorkerTask::start(&settings, 2);
    producer.submit(&resize("after")).await.unwrap();
    for image in ["before", "after"] {
        assert_eq!(fact_of(&producer, image).await.attempt, 1);
    }
    worker.stop().await;
    depth_is(&broker, Resize::QUEUE, 0).await;
}

#[tokio::test]
async fn failed_and_panicked_attempts_are_retried() {
    let (_broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    producer.submit(&resize("unlucky")).await.unwrap();
    let worker = WorkerTask::start(&settings, 3);
    assert_eq!(fact_of(&producer, "unlucky").await.attempt, 3);
    worker.stop().await;
}

#[tokio::test]
async fn permanent_failures_become_dead_letters_with_their_reasons() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    let rejected = producer.submit(&resize("empty")).await.unwrap();
    let failed = producer.submit(&resize("hopeless")).await.unwrap();
    let worker = WorkerTask::start(&settings, 4);
    let nats = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    let letters = dead_letters_reach(&nats, 2).await;
    for (id, reason) in
        [(rejected, "failed: it has no pixels"), (failed, "failed: out of memory (attempt 3)")]
    {
        let letter = letters.iter().find(|letter| letter.id == id.to_string());
        assert_eq!(letter.map(|letter| letter.reason.as_str()), Some(reason), "{letters:?}");
    }
    worker.stop().await;
    depth_is(&broker, Resize::QUEUE, 0).await;
}

/// A handler that succeeds where [`Resizer`] fails. Its worker replaces that of the [`Resizer`].
struct RepairedResizer;

impl Handler for RepairedResizer {
    type Job = Resize;

    async fn handle(&self, Resize { image, .. }: Resize, cx: &Context) -> Result<(), Failure> {
        // The bucket does not exist yet.
        if cx.read::<Resized>(&image).await?.is_none() {
            cx.create(&Resized { image, attempt: cx.attempt().number() }).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn replayed_dead_letter_is_handled() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    producer.submit(&resize("empty")).await.unwrap();
    let worker = WorkerTask::start(&settings, 1);
    let connection = Connection::establish(&settings.nats, "operator", |_| {}).await.unwrap();
    let letters = dead_letters_reach(connection.context(), 1).await;
    worker.stop().await;

    letters[0].replay(&connection, &[Resize::QUEUE]).await.unwrap();
    dead_letters_reach(connection.context(), 0).await;
    // Another operator replays it as well.
    let again = letters[0].replay(&connection, &[Resize::QUEUE]).await;
    assert!(matches!(again, Err(ReplayError::NotRemoved(_))), "{again:?}");
    depth_is(&broker, Resize::QUEUE, 1).await;
    let stop = CancellationToken::new();
    let token = stop.clone();
    let service = Service::new("resizer").consume(RepairedResizer);
    let running = tokio::spawn(async move { service.run(&settings, &token).await });
    assert_eq!(fact_of(&producer, "empty").await.attempt, 1);
    stop.cancel();
    running.await.unwrap().unwrap();
    depth_is(&broker, Resize::QUEUE, 0).await;
}

#[tokio::test]
async fn reconciler_creates_missing_objects_again() {
    let (broker, settings) = broker().await;
    let connection = Connection::establish(&settings.nats, "reconciler", |_| {}).await.unwrap();
    let topology = Topology::new(&[Resize::QUEUE], &[Resized::BUCKET]);
    let reconciler = Reconciler::new(&connection, topology, settings.limits, "reconciler");
    let reconciling = tokio::spawn(reconciler.run(|_progress| {}));
    depth_is(&broker, Resize::QUEUE, 0).await;
    connection.context().delete_stream(Resize::QUEUE.stream).await.unwrap();
    depth_is(&broker, Resize::QUEUE, 0).await;
    reconciling.abort();
}

/// Reports the time for which facts prevent a second effect.
struct AgeReporter(mpsc::UnboundedSender<Duration>);

impl Handler for AgeReporter {
    type Job = Resize;

    async fn handle(&self, _: Resize, cx: &Context) -> Result<(), Failure> {
        let _ = self.0.send(cx.facts_max_age());
        Ok(())
    }
}

#[tokio::test]
async fn changed_age_of_facts_reaches_a_running_service() {
    let (_broker, settings) = broker().await;
    let connection = Connection::establish(&settings.nats, "operator", |_| {}).await.unwrap();
    let topology = Topology::new(&[Resize::QUEUE], &[Resized::BUCKET]);
    let (reporter, mut ages) = mpsc::unbounded_channel();
    let service = Service::new("resizer").declares(&topology).consume(AgeReporter(reporter));
    let stop = CancellationToken::new();
    let (token, of_service) = (stop.clone(), settings.clone());
    let running = tokio::spawn(async move { service.run(&of_service, &token).await });
    let producer = Producer::connect(&settings).await.unwrap();
    let mut age = async || {
        producer.submit(&resize("cat")).await.unwrap();
        ages.recv().await.expect("the worker runs")
    };
    assert_eq!(age().await, settings.limits.facts_max_age);
    let limits = Limits { facts_max_age: Duration::from_hours(2), ..settings.limits };
    let (nats, known) = (connection.context(), connection.known());
    topology::adjust(nats, known, &topology, &limits, &mut Declared::default()).await.unwrap();
    eventually("jobs have the new age", async || match age().await {
        age if age == limits.facts_max_age => Ok(()),
        age => Err(age),
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn drain_finishes_the_job_in_flight_and_takes_no_other() {
    let (broker, settings) = broker().await;
    let settings = Settings { concurrency: 1, ..settings };
    let producer = Producer::connect(&settings).await.unwrap();
    producer.submit(&resize("in-flight")).await.unwrap();
    producer.submit(&resize("waiting")).await.unwrap();
    let worker = WorkerTask::start(&settings, 0);
    assert_eq!(worker.attempt().await, ("in-flight".to_owned(), 1));
    worker.stop.cancel();
    worker.gate.add_permits(1);
    worker.stop().await;
    assert_eq!(fact_of(&producer, "in-flight").await.attempt, 1);
    depth_is(&broker, Resize::QUEUE, 1).await;
    let next = WorkerTask::start(&settings, 1);
    assert_eq!(next.attempt().await, ("waiting".to_owned(), 1));
    next.stop().await;
}

/// Whether the worker has ended, or reports that it is stopping.
async fn is_stopping(worker: &WorkerTask, nats: &async_nats::Client) -> Result<(), String> {
    if worker.running.is_finished() {
        return Ok(());
    }
    let answer = nats.request("$SRV.PING.resizer", "".into()).await;
    let answer = answer.map_err(|error| error.to_string())?.payload;
    let answer = String::from_utf8(answer.to_vec()).unwrap();
    if answer.contains(r#""state":"stopping""#) { Ok(()) } else { Err(answer) }
}

#[tokio::test]
async fn worker_whose_queue_breaks_finishes_the_job_in_flight() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    producer.submit(&resize("in-flight")).await.unwrap();
    let worker = WorkerTask::start(&settings, 0);
    assert_eq!(worker.attempt().await, ("in-flight".to_owned(), 1));
    let client = async_nats::connect(broker.url()).await.unwrap();
    let nats = jetstream::new(client.clone());
    // The stream would drop jobs, which is refused. It is checked again once its consumer is gone.
    let stream = nats.get_stream(Resize::QUEUE.stream).await.unwrap();
    let discard = jetstream::stream::DiscardPolicy::Old;
    let dropping = jetstream::stream::Config { discard, ..stream.cached_info().config.clone() };
    nats.update_stream(dropping).await.unwrap();
    stream.delete_consumer(Resize::QUEUE.consumer).await.unwrap();
    eventually("the worker stops", async || is_stopping(&worker, &client).await).await;
    worker.gate.add_permits(1);
    let ended = worker.running.await.unwrap();
    assert!(matches!(ended, Err(ServiceError::Declare(_))), "{ended:?}");
    assert_eq!(fact_of(&producer, "in-flight").await.attempt, 1);
}

#[tokio::test]
async fn panic_of_a_services_own_work_stops_it_gracefully() {
    let (_broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    producer.submit(&resize("in-flight")).await.unwrap();
    let (started, mut attempts) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let service = Service::new("resizer").consume(Resizer { started, gate: Arc::clone(&gate) });
    let stop = CancellationToken::new();
    let own_work = async |_running| {
        attempts.recv().await.expect("the worker runs");
        gate.add_permits(1);
        panic!("on purpose");
    };
    let ended = service.run_with(&settings, &stop, own_work).await.unwrap_err();
    let told = "the background task 'the service's own work' has ended: it panicked: on purpose";
    assert_eq!(ended.to_string(), told);
    assert_eq!(fact_of(&producer, "in-flight").await.attempt, 1);
}

#[tokio::test]
async fn job_that_is_submitted_twice_has_its_effect_once() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    for _ in 0..2 {
        producer.submit(&resize("cat")).await.unwrap();
    }
    let worker = WorkerTask::start(&settings, 2);
    for _ in 0..2 {
        worker.attempt().await;
    }
    worker.stop().await;
    depth_is(&broker, Resize::QUEUE, 0).await;
    let client = async_nats::connect(broker.url()).await.unwrap();
    let bucket = jetstream::new(client).get_stream(Resized::BUCKET.stream).await.unwrap();
    assert_eq!(bucket.cached_info().state.messages, 1);
}

/// Resize an image for each of several screens.
#[derive(Debug, Serialize, Deserialize)]
struct Publish {
    images: Vec<String>,
}

impl Job for Publish {
    const QUEUE: Queue = Queue::new("PAGES", "pages").consumer("publisher");
}

struct PublishingHandler;

impl Handler for PublishingHandler {
    type Job = Publish;

    async fn handle(&self, job: Publish, cx: &Context) -> Result<(), Failure> {
        for image in job.images {
            cx.publish(&resize(&image)).await?;
        }
        // Each attempt publishes the same jobs under the same ids.
        if cx.attempt().number() == 1 { Err(Failure::retry("on purpose")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn handler_publishes_each_of_several_jobs_once() {
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    let images = ["cat", "dog", "cat"].map(str::to_owned).to_vec();
    producer.submit(&Publish { images }).await.unwrap();
    let stop = CancellationToken::new();
    let token = stop.clone();
    let publisher_settings = settings.clone();
    let publishing = tokio::spawn(async move {
        Service::new("publisher").consume(PublishingHandler).run(&publisher_settings, &token).await
    });
    depth_is(&broker, Resize::QUEUE, 3).await;
    depth_is(&broker, Publish::QUEUE, 0).await;
    stop.cancel();
    publishing.await.unwrap().unwrap();
    depth_is(&broker, Resize::QUEUE, 3).await;
}

#[tokio::test]
async fn key_that_is_no_subject_is_rejected() {
    let (_broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    for image in ["my cat.png", "", "a..b", "*"] {
        let fact = Resized { image: image.to_owned(), attempt: 1 };
        let created = producer.create(&fact, &Trace::default(), None).await;
        assert!(matches!(created, Err(PublishError::Invalid(_))), "{image}: {created:?}");
    }
}

/// A job that blocks the thread for longer than its heartbeats allow.
#[derive(Debug, Serialize, Deserialize)]
struct Block {}

impl Job for Block {
    const QUEUE: Queue = Queue::new("BLOCKS", "blocks").consumer("blocker");
}

struct Blocker;

impl Handler for Blocker {
    type Job = Block;

    async fn handle(&self, _: Block, _: &Context) -> Result<(), Failure> {
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }
}

/// Collects the log.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Collects the log of this thread for as long as the guard lives.
    fn begin() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false);
        let subscriber = subscriber.with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn stream_created_again_by_a_publish_is_logged() {
    let (log, _logging) = Log::begin();
    let (broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    producer.submit(&resize("cat")).await.unwrap();
    let nats = jetstream::new(async_nats::connect(broker.url()).await.unwrap());
    nats.delete_stream(Resize::QUEUE.stream).await.unwrap();
    producer.submit(&resize("cat")).await.unwrap();
    let log = log.text();
    assert_eq!(log.matches(r#"created object="stream IMAGES""#).count(), 2, "{log}");
}

#[tokio::test]
async fn blocking_handler_is_logged_with_its_job_and_a_hint() {
    let (log, _logging) = Log::begin();
    let (_broker, mut settings) = broker().await;
    settings.limits.ack_wait = Duration::from_millis(300);
    let producer = Producer::connect(&settings).await.unwrap();
    let id = producer.submit(&Block {}).await.unwrap().to_string();
    let stop = CancellationToken::new();
    let token = stop.clone();
    let service = Service::new("blocker").consume(Blocker);
    let running = tokio::spawn(async move { service.run(&settings, &token).await });
    eventually("it is logged", async || {
        let log = log.text();
        let is_there = log.contains("tokio::task::spawn_blocking") && log.contains(&id);
        if is_there { Ok(()) } else { Err(log) }
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
}
