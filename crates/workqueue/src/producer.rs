//! Submits jobs, and creates and reads facts, each confirmed by the broker.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::Backoff;
use crate::connect_error::ConnectError;
use crate::connection::Connection;
use crate::dead_letters;
use crate::declare::declare;
use crate::facts::{Creation, Fact, ReadError, read_fact};
use crate::id::JobId;
use crate::job::{Job, Publication};
use crate::lease;
use crate::metrics::Metrics;
use crate::publisher::{PublishError, Publisher, check_subject};
use crate::queue::Queue;
use crate::recorder::Recorder;
use crate::settings::Settings;
use crate::spans::Span;
use crate::topology::{DeclareError, Declared, Limits, Topology};
use crate::trace::Trace;

/// The first ceiling of the time between two tries to create the same fact, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Submits jobs, and creates and reads facts. Cheap to clone.
///
/// Each call returns once the broker has confirmed that it stored the message. While a queue is full, or the
/// broker unreachable, the call waits. The first job of a queue, and the first fact of a bucket, creates the
/// queue or bucket on the broker if it is missing.
#[derive(Clone, Debug)]
pub struct Producer(Target);

#[derive(Clone, Debug)]
pub(crate) enum Target {
    Broker(Arc<BrokerTarget>),
    /// Records the messages and sends none, for unit tests of handlers.
    Recorder(Arc<Recorder>),
}

#[derive(Debug)]
pub(crate) struct BrokerTarget {
    pub(crate) connection: Connection,
    pub(crate) limits: Limits,
    /// The most messages to one stream that may wait for their confirmation at a time.
    capacity: usize,
    /// The most jobs in a message.
    bundle_limit: usize,
    metrics: Arc<Metrics>,
    publishers: Mutex<Vec<Arc<Publisher>>>,
}

impl Producer {
    /// Connects to the broker, and tries until it succeeds.
    ///
    /// # Errors
    ///
    /// If another try cannot help: a setting is invalid, or the broker refuses the credentials.
    pub async fn connect(settings: &Settings) -> Result<Self, ConnectError> {
        let connection =
            Connection::establish(&settings.nats, &settings.instance, |_connected| {}).await?;
        Ok(Self::of_service(&connection, settings, &Metrics::new("producer")))
    }

    /// A producer on this connection. It creates missing streams with these limits, has at most `capacity` messages to
    /// each stream waiting for their confirmation at a time, and counts them in these metrics.
    #[must_use]
    pub fn new(
        connection: &Connection,
        limits: Limits,
        capacity: usize,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self::with_bundles(connection, limits, capacity, 1, metrics)
    }

    /// The producer of a service with these settings.
    pub(crate) fn of_service(
        connection: &Connection,
        settings: &Settings,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let &Settings { limits, concurrency, bundle_limit, .. } = settings;
        Self::with_bundles(connection, limits, concurrency, bundle_limit, metrics)
    }

    fn with_bundles(
        connection: &Connection,
        limits: Limits,
        capacity: usize,
        bundle_limit: usize,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (connection, metrics) = (connection.clone(), Arc::clone(metrics));
        let publishers = Mutex::default();
        let broker =
            BrokerTarget { connection, limits, capacity, bundle_limit, metrics, publishers };
        Self(Target::Broker(Arc::new(broker)))
    }

    /// Declares this topology now instead of with the first job or fact. Retries until the broker answers.
    ///
    /// # Errors
    ///
    /// If waiting does not help, see [`DeclareError`].
    pub async fn declare(&self, topology: &Topology) -> Result<Declared, DeclareError> {
        let Target::Broker(broker) = &self.0 else { return Ok(Declared::default()) };
        let declared = declare(&broker.connection, topology, &broker.limits).await?;
        for queue in &topology.queues {
            broker.open(queue.stream, Topology::new(&[*queue], &[]));
        }
        for bucket in &topology.buckets {
            broker.open(bucket.stream, Topology::new(&[], &[*bucket]));
        }
        Ok(declared)
    }

    pub(crate) fn target(&self) -> &Target {
        &self.0
    }

    pub(crate) fn recording(recorder: &Arc<Recorder>) -> Self {
        Self(Target::Recorder(Arc::clone(recorder)))
    }

    /// Submits a job. Returns its id once the broker has confirmed that the job is stored in its queue.
    ///
    /// Within two minutes after a job with an id of its own was stored, the broker takes another one under that id for
    /// a duplicate, and does not store it, also if the first one was done, removed or discarded meanwhile. A queue
    /// [without message ids](Queue::without_message_ids) stores it.
    ///
    /// # Errors
    ///
    /// [`PublishError::TooLarge`] and [`PublishError::Invalid`], for which a retry does not help, and
    /// [`PublishError::Rejected`].
    pub async fn submit<J: Job>(&self, job: &J) -> Result<JobId, PublishError> {
        let id = job.id().unwrap_or_else(JobId::new);
        self.publish(job, id, &Trace::default(), None).await?;
        Ok(id)
    }

    /// Publishes a job under this id, as part of this trace, and repeats that until the broker has confirmed it. If
    /// the queue is still full after `stop`, it gives up with [`PublishError::Full`], and nothing is stored. With
    /// [bundles](crate::Settings::bundle_limit), concurrent calls for a queue have to share one `stop`: the jobs of a
    /// bundle wait until that of the first job is cancelled.
    ///
    /// # Errors
    ///
    /// As [`Producer::submit`], and [`PublishError::Full`] after `stop`.
    pub async fn publish<J: Job>(
        &self,
        job: &J,
        id: JobId,
        trace: &Trace,
        stop: Option<&CancellationToken>,
    ) -> Result<(), PublishError> {
        match &self.0 {
            Target::Broker(broker) => {
                let publisher = broker.publisher_of::<J>(stop).await?;
                let span = Span::send(J::QUEUE.stream, || id.to_string(), trace);
                let trace = span.trace(trace);
                span.end(publisher.publish_job(job, id, &trace, stop).await)
            }
            Target::Recorder(recorder) => recorder.publish(job.publication(id, trace)),
        }
    }

    /// Creates a fact as part of this trace, or returns the existing one. Retries until the broker answers. If there
    /// is still no room after `stop`, it gives up with [`PublishError::Full`], and nothing is stored.
    ///
    /// # Errors
    ///
    /// As [`Producer::publish`]; [`PublishError::Rejected`] also if the value under the key is not a fact.
    pub async fn create<F: Fact>(
        &self,
        fact: &F,
        trace: &Trace,
        stop: Option<&CancellationToken>,
    ) -> Result<Creation<F>, PublishError> {
        let broker = match &self.0 {
            Target::Broker(broker) => broker,
            Target::Recorder(recorder) => return recorder.create(fact),
        };
        let span = Span::send(F::BUCKET.stream, || fact.key(), trace);
        let trace = span.trace(trace);
        span.end(broker.create(fact, &trace, stop).await)
    }

    /// The fact that is kept under this key, if there is one.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn read<F: Fact>(&self, key: &str) -> Result<Option<F>, ReadError> {
        match &self.0 {
            Target::Broker(broker) => read_fact(&broker.connection, key).await,
            Target::Recorder(recorder) => recorder.read(key),
        }
    }

    /// As [`Producer::read`], and retries until the broker answers. A missing bucket is declared.
    pub(crate) async fn read_patiently<F: Fact>(&self, key: &str) -> Result<Option<F>, ReadError> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut is_logged = false;
        loop {
            match (self.read(key).await, &self.0) {
                (Err(ReadError::Unknown), Target::Broker(broker)) => {
                    if !mem::replace(&mut is_logged, true) {
                        warn!(bucket = F::BUCKET.stream, key, "cannot read a fact; trying again");
                    }
                    let needs = Topology::new(&[], &[F::BUCKET]);
                    broker.open(F::BUCKET.stream, needs).declare_again().await;
                }
                (known, _) => return known,
            }
            backoff.wait().await;
        }
    }

    /// A publisher to the dead letters.
    pub(crate) fn dead_letters(&self) -> Arc<Publisher> {
        self.open(dead_letters::STREAM, Topology::of_dead_letters())
    }

    /// A publisher to a queue, for copies of its messages.
    pub(crate) fn queue(&self, queue: Queue) -> Arc<Publisher> {
        self.open(queue.stream, Topology::new(&[queue], &[]))
    }

    /// A publisher to the counters of the rate limits.
    pub(crate) fn rates(&self) -> Arc<Publisher> {
        self.open(lease::STREAM, Topology::default().with_rates())
    }

    fn open(&self, stream: &'static str, needs: Topology) -> Arc<Publisher> {
        match &self.0 {
            Target::Broker(broker) => broker.open(stream, needs),
            Target::Recorder(_) => unreachable!("only a consumer asks, and it has a broker"),
        }
    }
}

impl BrokerTarget {
    async fn create<F: Fact>(
        &self,
        fact: &F,
        trace: &Trace,
        stop: Option<&CancellationToken>,
    ) -> Result<Creation<F>, PublishError> {
        let publisher =
            self.publisher(F::BUCKET.stream, || Topology::new(&[], &[F::BUCKET]), stop).await?;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        // Whether an earlier try may have been stored without a confirmation.
        let mut unknown = false;
        loop {
            let full = match publisher.try_publish(fact.creation(trace)?).await {
                Ok(()) => return Ok(Creation::Created),
                Err(PublishError::AlreadyExists) => None,
                // A full bucket refuses before the broker checks whether the key exists.
                Err(full @ PublishError::Full(_)) => Some(full),
                Err(PublishError::Unconfirmed(_)) => {
                    unknown = true;
                    backoff.wait().await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let stopping = stop.is_some_and(CancellationToken::is_cancelled);
            if full.is_none() || stopping {
                // In a box, because it is rare, and would make every other creation larger.
                match Box::pin(read_fact::<F>(&self.connection, &fact.key())).await {
                    Ok(Some(existing)) => return Ok(Creation::AlreadyExists(existing)),
                    Ok(None) if !unknown && let Some(full) = full => return Err(full),
                    // The refusal may be due to another creation that is not confirmed yet, and may still fail. It
                    // counts once the fact can be read.
                    Ok(None) | Err(ReadError::Unknown) => {}
                    Err(error @ ReadError::NoFact(_)) => {
                        return Err(PublishError::Rejected(error.into()));
                    }
                }
            }
            backoff.wait().await;
        }
    }

    /// The publisher to the queue of these jobs, see [`BrokerTarget::publisher`].
    pub(crate) async fn publisher_of<J: Job>(
        &self,
        stop: Option<&CancellationToken>,
    ) -> Result<Arc<Publisher>, PublishError> {
        self.publisher(J::QUEUE.stream, || Topology::new(&[J::QUEUE], &[]), stop).await
    }

    /// The publisher to this stream. The stream is declared on the broker before the first use.
    pub(crate) async fn publisher(
        &self,
        stream: &'static str,
        needs: impl FnOnce() -> Topology,
        stop: Option<&CancellationToken>,
    ) -> Result<Arc<Publisher>, PublishError> {
        let found = self.publishers().iter().find(|publisher| publisher.stream == stream).cloned();
        if let Some(publisher) = found {
            return Ok(publisher);
        }
        let needs = needs();
        // In a box, because it happens once.
        let declaring = Box::pin(declare(&self.connection, &needs, &self.limits));
        let declared = match stop {
            Some(stop) => stop.run_until_cancelled(declaring).await,
            None => Some(declaring.await),
        };
        match declared {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(PublishError::Rejected(error.into())),
            None => return Err(PublishError::Full("its stream is not there yet".into())),
        }
        Ok(self.open(stream, needs))
    }

    fn open(&self, stream: &'static str, needs: Topology) -> Arc<Publisher> {
        let mut publishers = self.publishers();
        if let Some(publisher) = publishers.iter().find(|publisher| publisher.stream == stream) {
            return Arc::clone(publisher);
        }
        let Self { connection, limits, metrics, capacity, bundle_limit, .. } = self;
        let publisher =
            Publisher::new(connection, metrics, *limits, stream, needs, *capacity, *bundle_limit);
        let publisher = Arc::new(publisher);
        publishers.push(Arc::clone(&publisher));
        publisher
    }

    fn publishers(&self) -> MutexGuard<'_, Vec<Arc<Publisher>>> {
        self.publishers.lock().expect("nothing panics while it holds this lock")
    }
}

impl Recorder {
    fn publish(
        &self,
        publication: Result<Publication, serde_json::Error>,
    ) -> Result<(), PublishError> {
        let publication = publication?;
        check_subject(&publication.subject)?;
        self.add(publication);
        Ok(())
    }

    fn create<F: Fact>(&self, fact: &F) -> Result<Creation<F>, PublishError> {
        match self.read(&fact.key()) {
            Ok(Some(existing)) => Ok(Creation::AlreadyExists(existing)),
            Ok(None) => self.publish(fact.creation(&Trace::default())).map(|()| Creation::Created),
            Err(error) => Err(PublishError::Rejected(error.into())),
        }
    }

    fn read<F: Fact>(&self, key: &str) -> Result<Option<F>, ReadError> {
        let body = self.last(&F::BUCKET.subject_of(key));
        let fact = body.map(|body| F::from_body(&body)).transpose();
        fact.map_err(|error| ReadError::NoFact(error.to_string()))
    }
}
