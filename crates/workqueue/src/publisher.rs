//! Publishes until the broker has confirmed.

use std::error::Error;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::context::{
    PublishError as NatsPublishError, PublishErrorKind as NatsErrorKind,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, ErrorCode};
use contract::Publication;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::metrics::{Metrics, PublishMetrics};
use crate::said::Said;

/// The first ceiling of the time between two tries of the same publish, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Publishes to one stream. What is published at the same time is under way at the same time.
///
/// Each stream has a publisher of its own, with places of its own for what is under way: what waits
/// for room in one queue never keeps another from moving.
#[derive(Clone, Debug)]
pub struct Publisher {
    connection: Connection,
    context: Context,
    stream: &'static str,
    metrics: PublishMetrics,
    obstacle: Arc<Obstacle>,
    missing: Arc<Notify>,
}

/// The broker has stored the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It was not there before.
    Stored,
    /// It was there already, under the same message id.
    Duplicate,
}

/// What came of a single try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no room. Nothing was stored; try again later.
    #[error("no room: {0}")]
    Full(String),
    /// Nobody knows whether the message was stored; try again under the same id.
    #[error("not confirmed: {0}")]
    Unconfirmed(String),
    /// The message was to be the first under its subject, and another is there, or on its way.
    #[error("there is one already")]
    Exists,
    /// The message is larger than the broker takes, and always will be.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The broker will not have it, for another reason.
    #[error("refused: {0}")]
    Refused(String),
}

/// The broker will not have a message, however often it is published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is too large, and always will be.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The broker says no, and may say otherwise at another time.
    #[error("refused: {0}")]
    Refused(String),
}

impl Publisher {
    pub(crate) fn new(
        connection: &Connection,
        metrics: &Metrics,
        missing: &Arc<Notify>,
        stream: &'static str,
        capacity: usize,
    ) -> Self {
        Self {
            connection: connection.clone(),
            context: connection.publishing_context(capacity),
            stream,
            metrics: metrics.publishes_to(stream),
            obstacle: Arc::default(),
            missing: Arc::clone(missing),
        }
    }

    /// Publishes, and repeats that under the same message id until the broker has confirmed that
    /// the message is stored. While the queue is full, or the broker away, it waits.
    ///
    /// The publication is made for each try: there is nearly always one, for which nothing has to be
    /// copied, nor kept while it waits.
    ///
    /// Dropping the future gives up: the message may then have been stored, or not.
    ///
    /// # Errors
    ///
    /// Where repeating is of no use, see [`Refusal`].
    pub async fn publish(
        &self,
        publication: impl Fn() -> Publication,
    ) -> Result<Confirmation, Refusal> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.try_publish(publication()).await {
                Ok(confirmation) => return Ok(confirmation),
                Err(error) => refused(error)?,
            }
            backoff.wait().await;
        }
    }

    /// As [`Publisher::publish`], but gives up, with `None`, where the queue is still full after
    /// `stop`: then nothing of the message was stored.
    ///
    /// # Errors
    ///
    /// As [`Publisher::publish`].
    pub async fn publish_unless_full(
        &self,
        publication: impl Fn() -> Publication,
        stop: &CancellationToken,
    ) -> Result<Option<Confirmation>, Refusal> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.try_publish(publication()).await {
                Ok(confirmation) => return Ok(Some(confirmation)),
                Err(PublishError::Full(_)) if stop.is_cancelled() => return Ok(None),
                Err(PublishError::Full(_)) => {
                    stop.run_until_cancelled(backoff.wait()).await;
                }
                Err(error) => {
                    refused(error)?;
                    backoff.wait().await;
                }
            }
        }
    }

    /// Publishes once. Waits for a connection, and for the broker's answer.
    ///
    /// # Errors
    ///
    /// See [`PublishError`], whose variants say what to do next.
    pub async fn try_publish(
        &self,
        publication: Publication,
    ) -> Result<Confirmation, PublishError> {
        let Publication { subject, headers, body } = publication;
        let message = PublishMessage::build().payload(body).headers(headers);
        let publish = async { self.context.send_publish(subject, message).await?.await };
        let answer = self.connection.ask(pin!(publish)).await;
        if let Some(Err(error)) = &answer
            && error.kind() == NatsErrorKind::StreamNotFound
        {
            self.missing.notify_one();
        }
        let result = match answer {
            Some(Ok(ack)) if ack.duplicate => Ok(Confirmation::Duplicate),
            Some(Ok(_)) => Ok(Confirmation::Stored),
            Some(Err(error)) => Err(PublishError::from(&error)),
            None => Err(PublishError::Unconfirmed("the connection was lost".to_owned())),
        };
        count(&self.metrics, &result).inc();
        self.obstacle.note(self.stream, result.as_ref().err());
        result
    }
}

/// Fails unless another try may succeed.
fn refused(error: PublishError) -> Result<(), Refusal> {
    match error {
        PublishError::Full(_) | PublishError::Unconfirmed(_) => Ok(()),
        PublishError::TooLarge(reason) => Err(Refusal::TooLarge(reason)),
        PublishError::Refused(reason) => Err(Refusal::Refused(reason)),
        PublishError::Exists => Err(Refusal::Refused(error.to_string())),
    }
}

/// Where this result is counted.
fn count<'a>(
    metrics: &'a PublishMetrics,
    result: &Result<Confirmation, PublishError>,
) -> &'a Counter {
    match result {
        Ok(Confirmation::Stored) => &metrics.confirmed,
        Ok(Confirmation::Duplicate) => &metrics.duplicate,
        Err(PublishError::Exists) => &metrics.exists,
        Err(PublishError::Full(_)) => &metrics.full,
        Err(PublishError::Unconfirmed(_)) => &metrics.unconfirmed,
        Err(PublishError::TooLarge(_) | PublishError::Refused(_)) => &metrics.refused,
    }
}

impl From<&NatsPublishError> for PublishError {
    fn from(error: &NatsPublishError) -> Self {
        let source = error.source();
        let reason = || source.map_or_else(|| error.to_string(), ToString::to_string);
        match error.kind() {
            NatsErrorKind::WrongLastSequence => Self::Exists,
            NatsErrorKind::MaxPayloadExceeded => Self::TooLarge(reason()),
            NatsErrorKind::WrongLastMessageId => Self::Refused(reason()),
            // Nobody answers for the stream: the broker still reads it from its disk, a cluster
            // elects a leader, or somebody has deleted it.
            NatsErrorKind::StreamNotFound => {
                Self::Unconfirmed("no stream takes it at present".to_owned())
            }
            NatsErrorKind::TimedOut | NatsErrorKind::BrokenPipe | NatsErrorKind::MaxAckPending => {
                Self::Unconfirmed(error.to_string())
            }
            NatsErrorKind::Other => {
                match source.and_then(|source| source.downcast_ref::<jetstream::Error>()) {
                    Some(answer) => Self::from(answer),
                    None => Self::Unconfirmed(reason()),
                }
            }
        }
    }
}

impl From<&jetstream::Error> for PublishError {
    fn from(answer: &jetstream::Error) -> Self {
        /// The stream's limit of the size of a message, and the broker's of that of all its
        /// headers; async-nats has no names for them.
        const EXCEEDS_MAXIMUM: [u64; 2] = [10054, 10097];

        let reason = answer.to_string();
        match answer.error_code() {
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE
            | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Self::Exists,
            ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
            | ErrorCode::INSUFFICIENT_RESOURCES
            | ErrorCode::MEMORY_RESOURCES_EXCEEDED
            | ErrorCode::STORAGE_RESOURCES_EXCEEDED
            | ErrorCode::STREAM_TOO_MANY_REQUESTS => Self::Full(reason),
            // This code stands for whatever goes wrong in the stream's store; only the text tells
            // a full queue from the rest. None of it is the message's fault.
            ErrorCode::STREAM_STORE_FAILED if is_full(&reason) => Self::Full(reason),
            ErrorCode::STREAM_STORE_FAILED | ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => {
                Self::Unconfirmed(reason)
            }
            code if EXCEEDS_MAXIMUM.contains(&code.0) => Self::TooLarge(reason),
            _ if answer.code() == 503 => Self::Unconfirmed(reason),
            _ => Self::Refused(reason),
        }
    }
}

fn is_full(reason: &str) -> bool {
    ["maximum messages", "maximum bytes", "no space left"].iter().any(|sign| reason.contains(sign))
}

/// What keeps a publisher from publishing: each reason is said once when it comes up, and it is said
/// once when all are gone, however many messages wait, and however many get through in between.
#[derive(Debug, Default)]
struct Obstacle {
    present: AtomicBool,
    met: Mutex<Option<Met>>,
}

/// The obstacle since it came up.
#[derive(Debug)]
struct Met {
    last: Instant,
    said: Said,
}

impl Obstacle {
    /// How long it must not have been met to be gone: a full queue takes a message now and then.
    const CALM: Duration = Duration::from_secs(2);

    fn note(&self, stream: &'static str, error: Option<&PublishError>) {
        if let Some(error @ (PublishError::Full(_) | PublishError::Unconfirmed(_))) = error {
            let reason = error.to_string();
            if self.is_news(&reason) {
                warn!(stream, reason, "waiting to publish; nothing is dropped");
            }
        } else if self.present.load(Ordering::Relaxed) {
            // Anything else is an answer of a broker that has room.
            let mut met = self.met.lock().expect("nothing panics while it holds this lock");
            if met.take_if(|met| met.last.elapsed() > Self::CALM).is_some() {
                self.present.store(false, Ordering::Relaxed);
                info!(stream, "publishing again");
            }
        }
    }

    /// Notes that the obstacle was met. Tells whether its reason is to be said.
    fn is_news(&self, reason: &str) -> bool {
        let now = Instant::now();
        let mut met = self.met.lock().expect("nothing panics while it holds this lock");
        let met = met.get_or_insert_with(|| Met { last: now, said: Said::default() });
        met.last = now;
        self.present.store(true, Ordering::Relaxed);
        met.said.is_news(reason)
    }
}
