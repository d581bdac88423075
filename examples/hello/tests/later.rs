//! Delayed and recurring jobs, on a real broker.

use std::time::Duration;

use async_nats::jetstream;
use serde::{Deserialize, Serialize};
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::proxy::Proxy;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use workqueue::testing::Recorder;
use workqueue::topology::{Topology, queue_state};
use workqueue::{
    Connection, Context, Failure, Handler, InvalidSchedule, Job, JobId, NatsSettings, Producer,
    PublishError, Queue, Recurrence, RetryPolicy, Schedule, ScheduleOutcome, Service, ServiceError,
    Settings, Trace, dead_letters, now, schedules,
};

const SECOND: Duration = Duration::from_secs(1);
const EACH_SECOND: Recurrence = Recurrence::Every(SECOND);

/// Remind a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Remind {
    of: String,
}

impl Job for Remind {
    const QUEUE: Queue =
        Queue::new("REMINDERS", "due").consumer("reminder").with_schedules("reminders");
}

/// Reports each attempt. The text of the reminder may make it fail.
struct Reminder(mpsc::UnboundedSender<(String, JobId)>);

impl Handler for Reminder {
    type Job = Remind;

    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() }
    }

    async fn handle(&self, Remind { of }: Remind, cx: &Context) -> Result<(), Failure> {
        let _ = self.0.send((of.clone(), cx.id()));
        match of.as_str() {
            "retried" if cx.attempt().number() == 1 => Err(Failure::retry("out of memory")),
            "rejected" => Err(Failure::reject("nobody is there")),
            _ => Ok(()),
        }
    }
}

/// A running worker, and its reminders.
struct WorkerTask {
    reminders: Mutex<mpsc::UnboundedReceiver<(String, JobId)>>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServiceError>>,
}

impl WorkerTask {
    fn start(settings: &Settings) -> Self {
        let (sender, reminders) = mpsc::unbounded_channel();
        let service = Service::new("reminder").consume(Reminder(sender));
        let (settings, stop) = (settings.clone(), CancellationToken::new());
        let token = stop.clone();
        let running = tokio::spawn(async move { service.run(&settings, &token).await });
        Self { reminders: Mutex::new(reminders), stop, running }
    }

    /// The next reminder.
    async fn next(&self) -> (String, JobId) {
        self.reminders.lock().await.recv().await.expect("the worker runs")
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

async fn broker() -> (Broker, Settings) {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let nats = NatsSettings::at(broker.url());
    (broker, Settings { nats, ..Settings::from_env() })
}

async fn connection(settings: &Settings) -> Connection {
    Connection::establish(&settings.nats, "operator", |_| {}).await.unwrap()
}

fn remind(of: &str) -> Remind {
    Remind { of: of.to_owned() }
}

/// Waits until this many jobs are due, and this many are not due yet.
async fn depths_are(connection: &Connection, due: u64, scheduled: u64) {
    eventually(&format!("{due} are due, {scheduled} are not"), async || {
        let state = queue_state(connection.context(), Remind::QUEUE).await;
        let state = state.map_err(|error| error.to_string())?;
        let found = (state.waiting() + state.in_flight(), state.scheduled());
        if found == (due, scheduled) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[test]
fn recorder_records_later_jobs() {
    let recorder = Recorder::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let at = now() + SECOND;
    let publishing = async { recorder.context().publish_later(&remind("cake"), at).await };
    runtime.block_on(publishing).unwrap();
    assert_eq!(recorder.later::<Remind>(), [(at, remind("cake"))]);
    assert!(recorder.published::<Remind>().is_empty());
}

#[tokio::test]
async fn job_is_done_once_it_is_due_and_not_before() {
    let (_broker, settings) = broker().await;
    let (worker, connection) = (WorkerTask::start(&settings), connection(&settings).await);
    let producer = Producer::connect(&settings).await.unwrap();
    let at = now() + 5 * SECOND;
    let id = producer.submit_later(&remind("cake"), at).await.unwrap();
    depths_are(&connection, 0, 1).await;
    let waits = schedules::later::<Remind>(&connection, id).await.unwrap().unwrap();
    assert_eq!((waits.at, waits.job), (Some(at), remind("cake")));
    // A job that is due already overtakes it.
    let past = producer.submit_later(&remind("bread"), now() - SECOND).await.unwrap();
    assert_eq!(worker.next().await, ("bread".to_owned(), past));
    assert_eq!(worker.next().await, ("cake".to_owned(), id));
    assert!(now() >= at);
    depths_are(&connection, 0, 0).await;
    assert_eq!(schedules::later::<Remind>(&connection, id).await.unwrap(), None);
    worker.stop().await;
}

#[tokio::test]
async fn job_submitted_twice_under_an_id_is_stored_once() {
    let (_broker, settings) = broker().await;
    let (producer, connection) =
        (Producer::connect(&settings).await.unwrap(), connection(&settings).await);
    let (id, at) = (JobId::new(), now() + 60 * SECOND);
    for _ in 0..2 {
        let trace = Trace::default();
        producer.publish_later(&remind("cake"), id, at, &trace, None).await.unwrap();
    }
    depths_are(&connection, 0, 1).await;
}

/// A reminder of a newer replica.
#[derive(Debug, Serialize, Deserialize)]
struct NewerRemind {}

impl Job for NewerRemind {
    const QUEUE: Queue = Remind::QUEUE;
    const VERSION: u64 = 2;
}

#[tokio::test]
async fn job_that_cannot_be_read_counts_as_submitted() {
    let (_broker, settings) = broker().await;
    let (producer, connection) =
        (Producer::connect(&settings).await.unwrap(), connection(&settings).await);
    let (id, at, trace) = (JobId::new(), now() + 60 * SECOND, Trace::default());
    producer.publish_later(&NewerRemind {}, id, at, &trace, None).await.unwrap();
    let cake = remind("cake");
    let again = producer.publish_later(&cake, id, at, &trace, None);
    timeout(60 * SECOND, again).await.expect("it gives up").unwrap();
    depths_are(&connection, 0, 1).await;
}

#[tokio::test]
async fn cancelled_job_is_never_done() {
    let (_broker, settings) = broker().await;
    let (worker, connection) = (WorkerTask::start(&settings), connection(&settings).await);
    let producer = Producer::connect(&settings).await.unwrap();
    let at = now() + 5 * SECOND;
    let id = producer.submit_later(&remind("cake"), at).await.unwrap();
    assert!(producer.cancel::<Remind>(id).await.unwrap());
    assert!(!producer.cancel::<Remind>(id).await.unwrap(), "it is cancelled already");
    producer.submit_later(&remind("sentinel"), at + SECOND).await.unwrap();
    assert_eq!(worker.next().await.0, "sentinel");
    depths_are(&connection, 0, 0).await;
    worker.stop().await;
}

#[tokio::test]
async fn full_queue_refuses_later_jobs() {
    let (_broker, mut settings) = broker().await;
    settings.limits.queue_limit = 2;
    let producer = Producer::connect(&settings).await.unwrap();
    let (at, stop) = (now() + 60 * SECOND, CancellationToken::new());
    stop.cancel();
    let submit = async || {
        let (id, trace) = (JobId::new(), Trace::default());
        producer.publish_later(&remind("cake"), id, at, &trace, Some(&stop)).await
    };
    producer.submit_later(&remind("cake"), at).await.unwrap();
    submit().await.unwrap();
    assert!(matches!(submit().await, Err(PublishError::Full(_))));
    let now = producer.publish(&remind("cake"), JobId::new(), &Trace::default(), Some(&stop)).await;
    assert!(matches!(now, Err(PublishError::Full(_))), "{now:?}");
    let recurs = producer.schedule("cake", &EACH_SECOND, &remind("cake")).await;
    assert!(matches!(recurs, Err(PublishError::Full(_))), "{recurs:?}");
}

#[tokio::test]
async fn lost_question_for_room_is_asked_again() {
    let (broker, mut settings) = broker().await;
    settings.limits.queue_limit = 1;
    let proxy = Proxy::start(broker.port()).await.unwrap();
    let settings = Settings { nats: NatsSettings::at(proxy.url()), ..settings };
    let producer = Producer::connect(&settings).await.unwrap();
    let (cake, at, stop) = (remind("cake"), now() + 60 * SECOND, CancellationToken::new());
    producer.submit_later(&cake, at).await.unwrap();
    stop.cancel();
    let lose = async || {
        proxy.hold(format!("$JS.API.STREAM.INFO.{}", Remind::QUEUE.stream));
        proxy.held().await;
        proxy.reset();
        proxy.release();
    };
    let trace = Trace::default();
    let later = producer.publish_later(&cake, JobId::new(), at, &trace, Some(&stop));
    let ((), later) = tokio::join!(lose(), timeout(60 * SECOND, later));
    assert!(matches!(later, Ok(Err(PublishError::Full(_)))), "{later:?}");
    let recurs = producer.schedule("cake", &EACH_SECOND, &cake);
    let ((), recurs) = tokio::join!(lose(), recurs);
    assert!(matches!(recurs, Err(PublishError::Full(_))), "{recurs:?}");
}

#[tokio::test]
async fn recurring_job_is_a_job_of_its_own_each_time() {
    let (_broker, settings) = broker().await;
    let (worker, connection) = (WorkerTask::start(&settings), connection(&settings).await);
    let producer = Producer::connect(&settings).await.unwrap();
    let schedule =
        async |of: &str| producer.schedule("standup", &EACH_SECOND, &remind(of)).await.unwrap();
    let before = now();
    assert_eq!(schedule("standup").await, ScheduleOutcome::Created);
    assert_eq!(schedule("standup").await, ScheduleOutcome::Unchanged);
    let (first, second) = (worker.next().await, worker.next().await);
    assert_eq!([first.0.as_str(), second.0.as_str()], ["standup", "standup"]);
    assert!(first.1 < second.1, "its id says when it was due: {first:?} {second:?}");
    assert!(first.1.made_at() >= before && second.1.made_at() <= now());

    assert_eq!(schedule("retro").await, ScheduleOutcome::Replaced);
    let standing =
        Schedule { name: "standup".to_owned(), recurrence: EACH_SECOND, job: remind("retro") };
    let found = schedules::get::<Remind>(&connection, "standup").await.unwrap();
    assert_eq!(found.as_ref(), Some(&standing));
    assert_eq!(schedules::list::<Remind>(&connection).await.unwrap(), [standing]);
    assert!(producer.unschedule::<Remind>("standup").await.unwrap());
    assert!(!producer.unschedule::<Remind>("standup").await.unwrap(), "it is gone already");
    depths_are(&connection, 0, 0).await;
    worker.stop().await;
}

#[tokio::test]
async fn recurring_job_that_is_retried_keeps_its_id() {
    let (_broker, settings) = broker().await;
    let worker = WorkerTask::start(&settings);
    let producer = Producer::connect(&settings).await.unwrap();
    let seldom = Recurrence::Every(5 * SECOND);
    producer.schedule("retried", &seldom, &remind("retried")).await.unwrap();
    assert_eq!(worker.next().await, worker.next().await);
    producer.unschedule::<Remind>("retried").await.unwrap();
    worker.stop().await;
}

#[tokio::test]
async fn replayed_firing_is_the_same_job_and_spares_its_schedule() {
    let (_broker, settings) = broker().await;
    let (worker, connection) = (WorkerTask::start(&settings), connection(&settings).await);
    let producer = Producer::connect(&settings).await.unwrap();
    let hourly = Recurrence::Every(3600 * SECOND);
    producer.schedule("rejected", &EACH_SECOND, &remind("rejected")).await.unwrap();
    let (_, id) = worker.next().await;
    producer.schedule("rejected", &hourly, &remind("rejected")).await.unwrap();
    let once = producer.submit_later(&remind("rejected"), now()).await.unwrap();
    let replay_of = async |id: JobId| {
        let letter = eventually("there is a dead letter", async || {
            let letters = dead_letters::of_job(connection.context(), id).await.unwrap();
            letters.into_iter().next().ok_or("there is none")
        });
        letter.await.replay(&connection, &[Remind::QUEUE]).await.unwrap();
        eventually("the replay is handled", async || match worker.next().await.1 {
            replayed if replayed == id => Ok(()),
            other => Err(other),
        })
        .await;
    };
    replay_of(id).await;
    replay_of(once).await;
    depths_are(&connection, 0, 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn job_due_while_the_broker_is_away_is_done_once() {
    let (mut broker, settings) = broker().await;
    let (worker, connection) = (WorkerTask::start(&settings), connection(&settings).await);
    let producer = Producer::connect(&settings).await.unwrap();
    let at = now() + 5 * SECOND;
    let id = producer.submit_later(&remind("cake"), at).await.unwrap();
    let far = producer.submit_later(&remind("bread"), at + 3 * SECOND).await.unwrap();
    broker.kill().await.unwrap();
    eventually("it is due", async || if now() > at { Ok(()) } else { Err(now()) }).await;
    broker.restart().await.unwrap();
    // If the restart took long, both are due by then, and come in either order.
    let mut reminders = [worker.next().await, worker.next().await];
    reminders.sort();
    assert_eq!(reminders, [("bread".to_owned(), far), ("cake".to_owned(), id)]);
    depths_are(&connection, 0, 0).await;
    worker.stop().await;
}

#[tokio::test]
async fn error_for_an_impossible_schedule_names_a_possible_one() {
    let (_broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    let cron = |expression: &str, time_zone: Option<&str>| Recurrence::Cron {
        expression: expression.to_owned(),
        time_zone: time_zone.map(str::to_owned),
    };
    let possible = cron("0 0 3 * * *", Some("Europe/Berlin"));
    assert_eq!(
        producer.schedule("a", &possible, &remind("cake")).await.unwrap(),
        ScheduleOutcome::Created
    );
    for (name, recurrence) in [
        ("a.b", EACH_SECOND),
        ("a", Recurrence::Every(Duration::ZERO)),
        ("a", cron("0 3 * * *", None)),
        ("a", cron("61 0 3 * * *", None)),
        ("a", cron("0 0 3 * * *", Some("Mars/Base"))),
    ] {
        let error = producer.schedule(name, &recurrence, &remind("cake")).await.unwrap_err();
        let PublishError::Invalid(source) = &error else { panic!("{error:?}") };
        assert!(source.is::<InvalidSchedule>(), "{source}");
    }
}

#[tokio::test]
async fn stream_that_would_drop_waiting_jobs_is_refused() {
    let (_broker, settings) = broker().await;
    let producer = Producer::connect(&settings).await.unwrap();
    let topology = Topology::new(&[Remind::QUEUE], &[]);
    producer.declare(&topology).await.unwrap();
    let nats = jetstream::new(async_nats::connect(&settings.nats.nats_url).await.unwrap());
    let stream = nats.get_stream(Remind::QUEUE.stream).await.unwrap();
    let config = stream.cached_info().config.clone();
    nats.update_stream(jetstream::stream::Config { max_messages: 10, ..config }).await.unwrap();
    let error = producer.declare(&topology).await.unwrap_err().to_string();
    assert!(error.contains("stream REMINDERS: max_msgs is 10, should be -1"), "{error}");
}
