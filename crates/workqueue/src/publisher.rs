//! Publishes a message, and waits until the broker has confirmed that it is stored.

use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::bundle::Bundler;
use crate::commands;
use crate::connection::Connection;
use crate::error_chain::{Source, chain};
use crate::job::Publication;
use crate::log_once::LogOnce;
use crate::metrics::{Metrics, PublishMetrics};
use crate::pub_acks::{Stored, Unconfirmed};
use crate::topology::{self, DeclareError, Limits, Topology};

/// The first ceiling of the time between two tries of the same publish, and the highest.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Publishes to one stream, several messages concurrently.
///
/// Each stream has its own publisher, with its own limit of concurrent publishes: a message that waits for
/// room in one queue never blocks another queue.
#[derive(Debug)]
pub(crate) struct Publisher {
    connection: Connection,
    /// One permit for each concurrent publish.
    places: Semaphore,
    pub(crate) stream: &'static str,
    /// Collects jobs into bundles, if bundles are enabled.
    pub(crate) bundler: Option<Bundler>,
    metrics: PublishMetrics,
    obstacle: Obstacle,
    /// The streams and consumers that it needs, and their limits when they are created.
    needs: (Topology, Limits),
    /// Locked while the stream is declared again. Contains the logged reasons for failures.
    declaring: tokio::sync::Mutex<LogOnce>,
}

/// Why a publish has no confirmation. Its source is the error of the client library.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no room. Nothing was stored; try again later.
    #[error("no room")]
    Full(#[source] Source),
    /// It is unknown whether the message was stored; try again under the same id.
    #[error("not confirmed")]
    Unconfirmed(#[source] Source),
    /// The message had to be the first under its subject, and another one is stored there, or about to be.
    #[error("there is one already")]
    AlreadyExists,
    /// The message is larger than the broker accepts. A retry does not help.
    #[error("too large")]
    TooLarge(#[source] Source),
    /// The message cannot be published: its subject is invalid, or its body does not serialize.
    #[error("cannot be published")]
    Invalid(#[source] Source),
    /// The broker rejects the message for another reason, or the value under the key is not a fact. An operator may
    /// fix that.
    #[error("rejected")]
    Rejected(#[source] Source),
}

impl From<serde_json::Error> for PublishError {
    fn from(error: serde_json::Error) -> Self {
        Self::Invalid(error.into())
    }
}

impl PublishError {
    /// Whether a retry may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Unconfirmed(_))
    }

    /// The name of this kind in the metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Full(_) => "full",
            Self::Unconfirmed(_) => "unconfirmed",
            Self::AlreadyExists => "exists",
            Self::TooLarge(_) | Self::Invalid(_) | Self::Rejected(_) => "rejected",
        }
    }

    /// Whether no retry can succeed.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::TooLarge(_) | Self::Invalid(_))
    }

    /// Whether the connection was lost before an answer came.
    pub(crate) fn lost_connection(&self) -> bool {
        matches!(self.unconfirmed(), Some(Unconfirmed::Lost))
    }

    /// Whether the broker was there, and gave no answer.
    pub(crate) fn timed_out(&self) -> bool {
        matches!(self.unconfirmed(), Some(Unconfirmed::TimedOut))
    }

    /// Whether no stream answered.
    fn lacks_stream(&self) -> bool {
        matches!(self.unconfirmed(), Some(Unconfirmed::NoStream))
    }

    fn unconfirmed(&self) -> Option<&Unconfirmed> {
        let Self::Unconfirmed(source) = self else { return None };
        source.downcast_ref()
    }
}

impl Publisher {
    pub(crate) fn new(
        connection: &Connection,
        metrics: &Metrics,
        limits: Limits,
        stream: &'static str,
        needs: Topology,
        capacity: usize,
        bundle_limit: usize,
    ) -> Self {
        Self {
            connection: connection.clone(),
            places: Semaphore::new(capacity.min(Semaphore::MAX_PERMITS)),
            stream,
            bundler: Bundler::new(bundle_limit),
            metrics: metrics.publishes_to(stream),
            obstacle: Obstacle::default(),
            needs: (needs, limits),
            declaring: tokio::sync::Mutex::default(),
        }
    }

    /// Publishes, and repeats that until the broker has confirmed that the message is stored. A message without a
    /// message id may then be stored twice. While the queue is full, or the broker away, it waits. If the queue is
    /// still full after `stop`, it gives up with [`PublishError::Full`], and nothing is stored.
    ///
    /// `publication` is called for each try: there is nearly always one, and so the message is neither copied nor kept
    /// while it waits.
    ///
    /// If the future is dropped, the message may have been stored, or not.
    pub(crate) async fn publish(
        &self,
        publication: impl Fn() -> Result<Publication, serde_json::Error>,
        stop: Option<&CancellationToken>,
    ) -> Result<(), PublishError> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        // Whether an earlier try may have been stored.
        let mut unknown = false;
        loop {
            match (self.try_publish(publication()?).await, stop) {
                (Ok(()), _) => return Ok(()),
                (Err(full @ PublishError::Full(_)), Some(stop)) if !unknown => {
                    if stop.run_until_cancelled(backoff.wait()).await.is_none() {
                        return Err(full);
                    }
                    continue;
                }
                (Err(PublishError::Full(_)), _) => {}
                (Err(PublishError::Unconfirmed(_)), _) => unknown = true,
                (Err(error), _) => return Err(error),
            }
            backoff.wait().await;
        }
    }

    /// Waits until a queue with schedules has room for one more job. If it is still full after `stop`, it gives up with
    /// [`PublishError::Full`].
    pub(crate) async fn wait_for_room(
        &self,
        stop: Option<&CancellationToken>,
    ) -> Result<(), PublishError> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Err(full) = self.check_room().await {
            self.obstacle.note(self.stream, Some(&full));
            let Some(stop) = stop else {
                backoff.wait().await;
                continue;
            };
            if stop.run_until_cancelled(backoff.wait()).await.is_none() {
                return Err(full);
            }
        }
        Ok(())
    }

    /// Whether a queue with schedules, whose stream has no limit, has room for one more job: [`PublishError::Full`] if
    /// not. Retries until the broker answers. Concurrent callers may exceed the limit together.
    pub(crate) async fn check_room(&self) -> Result<(), PublishError> {
        let _place = self.places.acquire().await;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let asking = topology::stream_state(self.connection.context(), self.stream);
            let unknown = match self.connection.ask(pin!(asking)).await {
                Some(Ok(stream)) => {
                    let reason = topology::no_room(&stream);
                    return reason.map_or(Ok(()), |reason| Err(PublishError::Full(reason.into())));
                }
                // The publish detects this as well, and declares the stream again, or fails.
                Some(Err(DeclareError::Refused { .. })) => return Ok(()),
                _ if self.connection.has_ended() => return Ok(()),
                Some(Err(error)) => PublishError::Unconfirmed(error.into()),
                None => Unconfirmed::Lost.into(),
            };
            self.obstacle.note(self.stream, Some(&unknown));
            backoff.wait().await;
        }
    }

    /// Publishes once. Waits for a connection, and for the broker's answer.
    pub(crate) async fn try_publish(&self, publication: Publication) -> Result<(), PublishError> {
        self.send(publication).await.map(drop)
    }

    /// Publishes once to a counter, and returns its total.
    pub(crate) async fn count(&self, publication: Publication) -> Result<u64, PublishError> {
        let total = self.send(publication).await?.total;
        let total = total.and_then(|total| total.parse().ok());
        total.ok_or_else(|| PublishError::Rejected("the stream does not count".into()))
    }

    async fn send(&self, publication: Publication) -> Result<Stored, PublishError> {
        let place = self.places.acquire().await;
        let result = send_once(&self.connection, publication).await;
        drop(place);
        if result.as_ref().is_err_and(PublishError::lacks_stream) {
            // In a box, because it is rare, and would make every other publish larger.
            Box::pin(self.declare_again()).await;
        }
        counter(&self.metrics, &result).inc();
        self.obstacle.note(self.stream, result.as_ref().err());
        result
    }

    /// Declares the needed streams again if no stream answers: it may have been deleted, or the broker may have an
    /// empty store now. One publish at a time does so; the others only retry.
    pub(crate) async fn declare_again(&self) {
        let Ok(mut logged) = self.declaring.try_lock() else { return };
        let (topology, limits) = &self.needs;
        let (context, known) = (self.connection.context(), self.connection.known());
        let declaring = pin!(topology::declare(context, known, topology, limits));
        let declared = tokio::select! {
            declared = self.connection.ask(declaring) => declared,
            // The broker sends no other answer. Another user may create the stream meanwhile, such as the counters of
            // the rate limits after each restart of the broker.
            reason = self.connection.creation_refused() => {
                if logged.is_first(&reason) {
                    let declare = commands::declare();
                    warn!(stream = self.stream, reason, "this stream is missing and this user may not create it; waiting for {declare}");
                }
                return;
            }
        };
        match declared {
            Some(Ok(declared)) => {
                logged.forget();
                // Streams that were there before were logged when they were declared.
                if !declared.created.is_empty() {
                    declared.log(&mut logged);
                }
            }
            // A cluster elects a leader: the stream exists, and will be visible soon.
            Some(Err(DeclareError::Unavailable { .. })) => {}
            Some(Err(error)) if logged.is_first(&error) => {
                error!(stream = self.stream, %error, "cannot create a missing stream");
            }
            Some(Err(_)) | None => {}
        }
    }
}

impl Connection {
    /// Publishes once. Waits for a connection, and for the broker's answer.
    ///
    /// # Errors
    ///
    /// See [`PublishError`]. It does not retry.
    pub async fn publish_once(&self, publication: Publication) -> Result<(), PublishError> {
        send_once(self, publication).await.map(drop)
    }
}

async fn send_once(
    connection: &Connection,
    mut publication: Publication,
) -> Result<Stored, PublishError> {
    check_subject(&publication.subject)?;
    publication.subject = connection.address_of(publication.subject);
    let published = match connection.pub_acks().await {
        Some((acks, times_connected)) => acks.publish(publication, times_connected).await,
        None => Err(Unconfirmed::Lost.into()),
    };
    match published {
        Err(_) if connection.has_ended() => {
            Err(PublishError::Rejected("the NATS client has ended".into()))
        }
        published => published,
    }
}

/// Whether a message can be published under this subject, and read by every client: tokens without white space, of
/// which none is a wildcard, separated by dots.
pub(crate) fn check_subject(subject: &str) -> Result<(), PublishError> {
    let is_token = |token| !matches!(token, "" | "*" | ">");
    if subject.contains(char::is_whitespace) || !subject.split('.').all(is_token) {
        return Err(PublishError::Invalid(format!("'{subject}' is not a subject").into()));
    }
    Ok(())
}

/// The counter of this result.
fn counter<'a>(metrics: &'a PublishMetrics, result: &Result<Stored, PublishError>) -> &'a Counter {
    match result {
        Ok(ack) if ack.duplicate => &metrics.duplicate,
        Ok(_) => &metrics.confirmed,
        Err(PublishError::AlreadyExists) => &metrics.exists,
        Err(PublishError::Full(_)) => &metrics.full,
        Err(PublishError::Unconfirmed(_)) => &metrics.unconfirmed,
        Err(PublishError::TooLarge(_) | PublishError::Invalid(_) | PublishError::Rejected(_)) => {
            &metrics.rejected
        }
    }
}

/// The obstacles of a publisher. Each reason is logged once when it occurs, and the end is logged once when all
/// reasons are gone, however many messages wait or are published meanwhile.
#[derive(Debug, Default)]
struct Obstacle {
    present: AtomicBool,
    met: Mutex<Option<Met>>,
}

/// The current obstacle.
#[derive(Debug)]
struct Met {
    last: Instant,
    logged: LogOnce,
}

impl Obstacle {
    /// The time without the obstacle after which it counts as gone: a full queue accepts a message from time to time.
    const CALM: Duration = Duration::from_secs(2);

    fn note(&self, stream: &'static str, error: Option<&PublishError>) {
        if let Some(error) = error.filter(|error| error.is_transient()) {
            let reason = chain(error);
            if self.is_first(&reason) {
                warn!(stream, reason, "waiting to publish; nothing is dropped");
            }
        } else if self.present.load(Ordering::Relaxed) {
            // Any other result means that the broker has room.
            let mut met = self.met.lock().expect("nothing panics while it holds this lock");
            if met.take_if(|met| met.last.elapsed() > Self::CALM).is_some() {
                self.present.store(false, Ordering::Relaxed);
                info!(stream, "publishing again");
            }
        }
    }

    /// Records the obstacle. Returns whether its reason has to be logged.
    fn is_first(&self, reason: &str) -> bool {
        let now = Instant::now();
        let mut met = self.met.lock().expect("nothing panics while it holds this lock");
        let met = met.get_or_insert_with(|| Met { last: now, logged: LogOnce::default() });
        met.last = now;
        self.present.store(true, Ordering::Relaxed);
        met.logged.is_first(reason)
    }
}
