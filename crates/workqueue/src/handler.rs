//! The work of a service: the handler of a job, its retry policy, and the outcomes that it may return.

use std::any::Any;
use std::fmt;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::dead_letters::Reason;
use crate::error_chain::Source;
use crate::facts::{Creation, Fact, ReadError};
use crate::id::JobId;
use crate::job::Job;
use crate::producer::{Producer, Target};
use crate::publisher::PublishError;
use crate::queue::Lane;
use crate::rate_limit;
use crate::trace::Trace;

/// Handles the jobs of one queue.
pub trait Handler: Send + Sync + 'static {
    /// The kind of job. It also names the queue.
    type Job: Job;

    /// The time-out of an attempt, and the number and the delays of the retries. Defaults to [`RetryPolicy::default`].
    fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::default()
    }

    /// As [`Handler::retry_policy`], for one job: jobs of several kinds may share a queue. The service
    /// calls it after it has decoded the message; a message that it cannot decode falls under the handler's
    /// policy. Defaults to that policy.
    fn retry_policy_of(&self, _job: &Self::Job) -> RetryPolicy {
        self.retry_policy()
    }

    /// The most jobs a second that all replicas of the service start together. Defaults to the service's
    /// `RATE_LIMIT`, no limit unless set. An attempt counts as a job.
    ///
    /// It holds for each second of the clock, by counters on the broker. Jobs that wait for another second are kept in
    /// flight, and spend no attempt, unless the service stops meanwhile. While the broker does not answer, no job
    /// starts.
    fn rate_limit(&self) -> Option<NonZeroU32> {
        None
    }

    /// Refuses a job before it is handled; it becomes a dead letter. Defaults to admitting every job.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] with the reason why no attempt may handle this job.
    fn admit(&self, _job: &Self::Job, _cx: &Context) -> Result<(), Rejection> {
        Ok(())
    }

    /// Handles one job. The service may call it again with the same job, even at the same time, and may
    /// drop it at any await: every effect must be idempotent. It has to [publish](Context::publish) the same jobs in
    /// the same order each time, unless they have [ids of their own](Job::id).
    ///
    /// Returning `Ok` means that the effect is durable, and lets the broker forget the job. It must not
    /// block its thread, because other jobs run there, too: move blocking work to
    /// [`tokio::task::spawn_blocking`].
    fn handle(
        &self,
        job: Self::Job,
        cx: &Context,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// The time-out of an attempt, and the number and the delays of the retries. A delay is below a ceiling that doubles
/// from one attempt to the next.
///
/// ```
/// # use std::time::Duration;
/// # use workqueue::RetryPolicy;
/// let policy = RetryPolicy {
///     max_attempts: Some(3),
///     timeout: Some(Duration::from_secs(30)),
///     snoozes_count: false,
///     ..RetryPolicy::default()
/// };
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The most attempts that a job has; after the last it becomes a dead letter. Defaults to the service's
    /// `MAX_ATTEMPTS`, 10 unless set.
    pub max_attempts: Option<u64>,
    /// The ceiling of the delay after the first attempt. Defaults to 100 ms.
    pub first_delay: Duration,
    /// The highest ceiling. Defaults to 30 s.
    pub max_delay: Duration,
    /// The share of the ceiling within which the delay is drawn, evenly, from 0 to 1. With 0 each delay is its ceiling.
    /// Defaults to 1, any delay below the ceiling (full jitter), so that jobs which failed together do not come back
    /// together.
    pub jitter: f64,
    /// Time that one attempt may take, from its start or from its last [`Context::heartbeat`]; one that takes longer
    /// has failed as by [`Failure::Retry`]. Defaults to none.
    pub timeout: Option<Duration>,
    /// Whether [`Failure::RetryAfter`] spends an attempt. Defaults to true.
    ///
    /// With false, a handler can snooze a job any number of times. A copy of its message then replaces it at the end
    /// of the queue, so the user of the service needs the permission to publish there. If the queue has no room for
    /// the copy, the attempt is spent. If a process dies after it has published the copy, and before it acks the
    /// message, both remain, and the job is handled twice.
    pub snoozes_count: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: None,
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(30),
            jitter: 1.0,
            timeout: None,
            snoozes_count: true,
        }
    }
}

impl RetryPolicy {
    /// The same policy, with this limit of attempts if it has none.
    pub(crate) fn or_attempts(self, max_attempts: u64) -> Self {
        Self { max_attempts: self.max_attempts.or(Some(max_attempts)), ..self }
    }
}

/// Why a job could not be handled, and what to do about it.
///
/// `?` turns any error into [`Failure::Retry`], save for a [`PublishError`] that is permanent, which it rejects.
#[derive(Debug)]
pub enum Failure {
    /// A retry may succeed. The [`RetryPolicy`] limits the attempts, and sets the delay.
    Retry(Source),
    /// A retry may succeed after this delay (snooze). [`RetryPolicy::snoozes_count`] decides whether that spends an
    /// attempt. A snooze that does not is at most 30 days long.
    RetryAfter(Duration, Source),
    /// No retry can succeed: the job becomes a dead letter.
    Reject(Source),
}

impl Failure {
    /// A [`Failure::Retry`] for this reason.
    pub fn retry(reason: impl Into<Source>) -> Self {
        Self::Retry(reason.into())
    }

    /// A [`Failure::Reject`] for this reason.
    pub fn reject(reason: impl Into<Source>) -> Self {
        Self::Reject(reason.into())
    }

    /// The error behind this failure.
    #[must_use]
    pub fn source(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        match self {
            Self::Retry(source) | Self::RetryAfter(_, source) | Self::Reject(source) => &**source,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&crate::error_chain::chain(self.source()))
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let publishing = (&error as &dyn Any).downcast_ref();
        if publishing.is_some_and(PublishError::is_permanent) {
            Self::Reject(error.into())
        } else {
            Self::Retry(error.into())
        }
    }
}

/// Why a job is not handled at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The category of the dead letter.
    pub reason: Reason,
    /// An explanation for the operator.
    pub detail: String,
}

/// Which attempt at a job this is, from 1: the broker counts the deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(u64);

impl Attempt {
    /// The attempt with this number. The first is 1; so is 0, for a broker that cannot say.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(number.max(1))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// One attempt at a job: its number, and the calls with which a handler publishes jobs and creates facts.
#[derive(Debug)]
pub struct Context {
    id: JobId,
    attempt: Attempt,
    started_at: Timestamp,
    trace: Trace,
    shared: Arc<Shared>,
    /// How many jobs without an id of their own it has published.
    published: AtomicU64,
    heartbeat: Notify,
    /// How many publishes wait for the broker.
    waits: AtomicU64,
}

/// The state that the contexts of all jobs of one service share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) lane: Lane,
    pub(crate) producer: Producer,
    pub(crate) instance: String,
    pub(crate) facts_max_age: Duration,
}

impl Context {
    pub(crate) fn new(
        id: JobId,
        attempt: Attempt,
        started_at: Timestamp,
        trace: Trace,
        shared: Arc<Shared>,
    ) -> Self {
        let (published, heartbeat, waits) = (AtomicU64::new(0), Notify::new(), AtomicU64::new(0));
        Self { id, attempt, started_at, trace, shared, published, heartbeat, waits }
    }

    /// Waits for `work`, unless it goes without a heartbeat for longer than `limit`.
    pub(crate) async fn timeout<F: Future>(
        &self,
        limit: Duration,
        mut work: Pin<&mut F>,
    ) -> Option<F::Output> {
        loop {
            tokio::select! {
                biased;
                done = work.as_mut() => return Some(done),
                () = self.heartbeat.notified() => {}
                // Waiting for room counts as no processing time.
                () = sleep(limit), if self.waits.load(Ordering::Relaxed) == 0 => return None,
            }
        }
    }

    /// The id of the job.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// When this attempt started, after it had waited for a slot and for the rate limit, which counts it in
    /// this second.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// The trace that the job is part of. All that this context publishes is part of it, too.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The name of this replica.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.shared.instance
    }

    /// The time for which the facts of this service prevent a second effect, by the settings of its buckets on the
    /// broker. The effect of an older job could happen a second time.
    #[must_use]
    pub fn facts_max_age(&self) -> Duration {
        self.shared.facts_max_age
    }

    /// Reports progress of the job, and restarts its [`RetryPolicy::timeout`]. The heartbeats to the broker do not
    /// depend on this call.
    pub fn heartbeat(&self) {
        self.heartbeat.notify_one();
    }

    /// Asks for a permit under this key, such as the host that the job is about to call. All handlers of the queue, in
    /// all replicas, share `per_second` permits of a key in each second of the clock. A refused job does not wait in
    /// its slot: it is snoozed until one of the next seconds. The refused jobs are spread over these seconds, the more
    /// urgent first. A recording context grants every permit.
    ///
    /// A key is any text. If the account requires `MAX_BYTES`, all counters together have a megabyte, for some 5,000
    /// keys in ten seconds; with more keys the broker removes the oldest counters.
    ///
    /// A refusal spends an attempt unless the policy has [`snoozes_count: false`](RetryPolicy::snoozes_count). Ask
    /// before the first effect, because the job starts from the beginning.
    ///
    /// # Errors
    ///
    /// [`Failure::RetryAfter`] if no permit is left, if the broker does not answer, and in the second in which this
    /// replica has connected to it; [`Failure::Retry`] if the counters cannot be used.
    pub async fn permit(&self, key: &str, per_second: NonZeroU32) -> Result<(), Failure> {
        let Target::Broker(broker) = self.shared.producer.target() else { return Ok(()) };
        let asking = rate_limit::permit(broker, self.shared.lane, key, per_second);
        self.waiting(asking).await
    }

    /// Waits for the broker. This does not count as the job's time: its time-out restarts afterwards.
    async fn waiting<T>(&self, broker: impl Future<Output = T>) -> T {
        struct Waits<'a>(&'a Context);

        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.waits.fetch_sub(1, Ordering::Relaxed);
                self.0.heartbeat();
            }
        }

        self.waits.fetch_add(1, Ordering::Relaxed);
        self.heartbeat();
        let _waits = Waits(self);
        broker.await
    }

    /// Publishes another job, and ends once the broker has confirmed that it is stored. While its queue is
    /// full, it waits, and spends no attempt.
    ///
    /// If the job has no [id of its own](Job::id), its id is derived from the id of this job and the number of such
    /// jobs before it. So each attempt has to publish the same jobs in the same order: otherwise one of them gets the
    /// id of another one, and the broker may drop it as a duplicate. A handler that cannot ensure that gives its jobs
    /// ids of their own.
    ///
    /// # Errors
    ///
    /// If waiting does not help: the message is too large, or the broker rejects it.
    pub async fn publish<J: Job>(&self, job: &J) -> Result<(), Failure> {
        let id = self.id_of(job);
        Ok(self.waiting(self.shared.producer.publish(job, id, &self.trace, None)).await?)
    }

    /// Publishes another job, which is due at this time; as [`Context::publish`]. Its queue has to have
    /// [schedules](crate::Queue::with_schedules).
    ///
    /// # Errors
    ///
    /// As [`Context::publish`].
    pub async fn publish_later<J: Job>(&self, job: &J, at: Timestamp) -> Result<(), Failure> {
        let id = self.id_of(job);
        let publishing = self.shared.producer.publish_later(job, id, at, &self.trace, None);
        Ok(self.waiting(publishing).await?)
    }

    fn id_of<J: Job>(&self, job: &J) -> JobId {
        job.id().unwrap_or_else(|| {
            self.id.derived(J::QUEUE.stream, self.published.fetch_add(1, Ordering::Relaxed))
        })
    }

    /// Creates a fact, or returns the existing one, which wins.
    ///
    /// # Errors
    ///
    /// As [`Context::publish`].
    pub async fn create<F: Fact>(&self, fact: &F) -> Result<Creation<F>, Failure> {
        Ok(self.waiting(self.shared.producer.create(fact, &self.trace, None)).await?)
    }

    /// The fact that is kept under this key, if there is one. While the broker does not answer, it waits, and spends
    /// no attempt.
    ///
    /// # Errors
    ///
    /// If the value is not such a fact: [`ReadError::NoFact`].
    pub async fn read<F: Fact>(&self, key: &str) -> Result<Option<F>, ReadError> {
        self.waiting(self.shared.producer.read_patiently(key)).await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::testing::Recorder;

    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn message_that_cannot_be_published_is_rejected_at_once() {
        let source = || "a reason".into();
        for error in [PublishError::Invalid(source()), PublishError::TooLarge(source())] {
            assert!(matches!(Failure::from(error), Failure::Reject(_)));
        }
        let error = PublishError::Rejected(source());
        assert!(matches!(Failure::from(error), Failure::Retry(_)), "an operator may mend it");
    }

    #[tokio::test(start_paused = true)]
    async fn job_without_a_heartbeat_times_out() {
        let context = Recorder::new().context();
        assert_eq!(context.timeout(LIMIT, pin!(sleep(LIMIT * 2))).await, None);
        assert_eq!(context.timeout(LIMIT, pin!(sleep(LIMIT / 2))).await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn time_out_excludes_waiting_for_the_broker() {
        let context = Recorder::new().context();
        let steps = async |alone| {
            context.waiting(sleep(LIMIT * 9)).await;
            sleep(alone).await;
        };
        assert_eq!(context.timeout(LIMIT, pin!(steps(LIMIT / 2))).await, Some(()));
        assert_eq!(context.timeout(LIMIT, pin!(steps(LIMIT * 2))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_heartbeat_restarts_the_time_out() {
        let context = Recorder::new().context();
        let steps = async |last| {
            for step in [LIMIT / 2, LIMIT / 2, LIMIT / 2, last] {
                sleep(step).await;
                context.heartbeat();
            }
        };
        assert_eq!(context.timeout(LIMIT, pin!(steps(LIMIT / 2))).await, Some(()));
        assert_eq!(context.timeout(LIMIT, pin!(steps(LIMIT * 2))).await, None);
    }
}
