//! One delivery of a message, and the ways to settle it.

use std::fmt;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_nats::jetstream::{self, AckKind};
use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::backoff::Backoff;
use crate::bundle;
use crate::clock::now;
use crate::connection::Connection;
use crate::dead_letters::{self, Cause, Original};
use crate::error_chain::chain;
use crate::firing;
use crate::handler::Attempt;
use crate::id::JobId;
use crate::publisher::{PublishError, Publisher, RETRY};
use crate::queue::Queue;
use crate::settle::Delay;
use crate::snooze::{self, Snooze};
use crate::spans;
use crate::trace::Trace;

/// The time limit for handing a settlement to the client. It takes long only while the broker is unreachable
/// and the client's buffer is full.
pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// A message as it was delivered, which waits for its settlement.
#[derive(Debug)]
pub(crate) struct Delivery {
    message: Message,
    /// The subject for its settlement.
    reply: Subject,
    connection: Connection,
    queue: Queue,
    sequence: u64,
    has_more: bool,
    snooze: Option<Snooze>,
    attempt: Attempt,
    /// How often the broker has delivered the message, this time included.
    deliveries: u64,
    /// Whether there is a span for its processing.
    is_processed: AtomicBool,
    /// Whether it is a job of a bundle that has nothing more to wait for.
    is_settled: AtomicBool,
    /// Whether it is a job of a bundle, which is acked as a whole.
    is_bundled: bool,
}

impl Delivery {
    /// The delivery that this message is.
    ///
    /// # Errors
    ///
    /// If the message lacks `JetStream` metadata. Without it the message has no attempt number and no unique id for a
    /// dead letter, so it stays unsettled, and the broker redelivers it.
    pub(crate) fn new(
        message: Message,
        queue: Queue,
        connection: &Connection,
    ) -> Result<Self, async_nats::Error> {
        let context = connection.context().clone();
        let message = jetstream::Message { message, context };
        let info = message.info();
        let info = info.map(|info| {
            let stored = Timestamp::from_nanosecond(info.published.unix_timestamp_nanos());
            (info.stream_sequence, info.delivered, info.pending > 0, stored.unwrap_or_default())
        });
        let jetstream::Message { mut message, .. } = message;
        let (sequence, delivered, has_more, stored) = info?;
        if let Some(subject) =
            firing::subject(queue, &message.subject, message.headers.as_ref(), stored)
        {
            message.subject = subject.into();
        }
        // Only a job has been snoozed. Any other message is no job, and becomes a dead letter at once.
        let is_job = || queue.key(&message.subject).is_some_and(|key| key.parse::<JobId>().is_ok());
        let snooze = Snooze::of(message.headers.as_ref()).filter(|_| is_job());
        let deliveries = u64::try_from(delivered).unwrap_or(1);
        let attempt = snooze::attempt(snooze, deliveries);
        let reply = message.reply.take().ok_or("it has no reply subject")?;
        let connection = connection.clone();
        Ok(Self {
            message,
            reply,
            connection,
            queue,
            sequence,
            has_more,
            snooze,
            attempt,
            deliveries,
            is_processed: AtomicBool::default(),
            is_settled: AtomicBool::default(),
            is_bundled: false,
        })
    }

    /// The jobs of a bundle. `None` if the message is not a bundle.
    pub(crate) fn jobs(&self) -> Option<Vec<Self>> {
        let job = |message| Self {
            message,
            reply: self.reply.clone(),
            connection: self.connection.clone(),
            snooze: None,
            is_processed: AtomicBool::default(),
            is_settled: AtomicBool::default(),
            is_bundled: true,
            ..*self
        };
        Some(bundle::jobs(&self.message, self.key())?.into_iter().map(job).collect())
    }

    /// Whether it is a job of a bundle.
    pub(crate) fn is_bundled(&self) -> bool {
        self.is_bundled
    }

    pub(crate) fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Whether the broker has delivered this message before.
    pub(crate) fn is_redelivered(&self) -> bool {
        self.deliveries > 1
    }

    /// The number by which spans know this delivery, and that of the delivery with the attempt before it. The second is
    /// missing if that was the delivery of another message, of which this one is a copy. The second delivery of a copy
    /// that had to wait counts as the first attempt, also if the first one came too late to wait: nothing records that.
    pub(crate) fn numbers(&self) -> (u64, Option<u64>) {
        let first = 1 + u64::from(self.snooze.is_some_and(Snooze::waits_first));
        (
            self.deliveries,
            Some(self.deliveries.saturating_sub(1)).filter(|_| self.deliveries > first),
        )
    }

    /// Notes that it has nothing more to wait for.
    pub(crate) fn set_settled(&self) {
        self.is_settled.store(true, Relaxed);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled.load(Relaxed)
    }

    /// Notes that there is a span for its processing.
    pub(crate) fn set_processed(&self) {
        self.is_processed.store(true, Relaxed);
    }

    pub(crate) fn is_processed(&self) -> bool {
        self.is_processed.load(Relaxed)
    }

    pub(crate) fn queue(&self) -> Queue {
        self.queue
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether more messages of its lane waited behind it.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more
    }

    pub(crate) fn subject(&self) -> &str {
        &self.message.subject
    }

    pub(crate) fn headers(&self) -> Option<&HeaderMap> {
        self.message.headers.as_ref()
    }

    pub(crate) fn body(&self) -> &Bytes {
        &self.message.payload
    }

    /// The id of the trace in its message.
    pub(crate) fn trace_id(&self) -> Option<&str> {
        Trace::id_of(self.headers()?)
    }

    /// The part of the subject that names the job.
    pub(crate) fn key(&self) -> &str {
        self.queue.key(self.subject()).unwrap_or_default()
    }

    fn original(&self) -> Original<'_> {
        Original {
            queue: self.queue,
            sequence: self.sequence,
            subject: self.subject(),
            headers: self.headers(),
            body: self.body(),
        }
    }

    /// Waits for `work`, and sends a heartbeat to the broker once each `every`. Returns the output, or `None` if the
    /// drain runs out of time, and the number of heartbeats that were due, also while there was no connection.
    pub(crate) async fn keep_alive<F: Future>(
        &self,
        mut work: Pin<&mut F>,
        every: Duration,
        abandoned: &CancellationToken,
    ) -> (Option<F::Output>, u32) {
        let mut heartbeats = 0;
        let mut next = Instant::now() + every;
        let mut heartbeat = pin!(sleep_until(next));
        loop {
            tokio::select! {
                biased;
                () = abandoned.cancelled() => return (None, heartbeats),
                done = work.as_mut() => return (Some(done), heartbeats),
                () = heartbeat.as_mut() => {
                    heartbeats += 1;
                    next += every;
                    heartbeat.as_mut().reset(next);
                    // Without a connection the client would send it later, when it has no use. A bundle has one
                    // heartbeat for all of its jobs.
                    if self.connection.is_connected() && !self.is_bundled {
                        self.answer(AckKind::Progress).await;
                    }
                }
            }
        }
    }

    /// Acks the message, soon. For a job of a bundle it does nothing: the bundle is acked once all of its jobs are
    /// settled.
    pub(crate) fn ack(&self) {
        if !self.is_bundled {
            self.connection.acks().add(self.reply.clone());
        }
    }

    pub(crate) async fn nak(&self, delay: Delay) {
        self.answer(AckKind::Nak(Some(delay.draw()))).await;
    }

    /// How long the job still has to wait, if it was snoozed.
    pub(crate) fn waits(&self) -> Option<Duration> {
        self.snooze?.remaining(now())
    }

    /// Publishes a copy of the message, which is due after this delay and has this attempt. Returns whether the copy is
    /// stored. It waits for a broker that is away, but not for room in the queue, and not for a broker that is there and
    /// gives no answer twice: it does not answer if the service may not publish to this queue. If the copy is stored all
    /// the same, the job is handled twice.
    pub(crate) async fn publish_copy(
        &self,
        to: &Publisher,
        attempt: Attempt,
        delay: Duration,
    ) -> bool {
        let until = now().saturating_add(delay.min(snooze::LONGEST)).unwrap_or(Timestamp::MAX);
        let until = Some(until).filter(|_| !delay.is_zero());
        let message_id = format!("{self}:snooze");
        let (subject, headers, body) = (self.subject(), self.headers(), self.body());
        let span = spans::last_attempt(self);
        let copy =
            || snooze::copy(&message_id, subject, headers, body, attempt, until, span.clone());
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut is_silent = false;
        let published = loop {
            match to.try_publish(copy()).await {
                Err(error) if error.timed_out() && mem::replace(&mut is_silent, true) => {
                    break Err(error);
                }
                Err(PublishError::Unconfirmed(_)) => {}
                published => break published,
            }
            backoff.wait().await;
        };
        match published {
            Ok(()) => true,
            Err(error) => {
                let (error, trace) = (chain(&error), self.trace_id());
                warn!(error, delivery = %self, trace, "cannot publish the copy of a message");
                false
            }
        }
    }

    /// Moves the message to the dead letters, with the name of this instance. Returns whether the broker has
    /// stored the dead letter.
    pub(crate) async fn dead_letter(&self, to: &Publisher, reason: &str, by: &str) -> bool {
        let cause = Cause { reason, attempts: self.attempt.number(), at: now(), by };
        let dead_letter = || {
            let original = self.original();
            // The jobs of a bundle share its sequence, so their ids tell them apart.
            Ok(if self.is_bundled {
                original.bundled(&cause)
            } else {
                original.dead_letter(&cause)
            })
        };
        match to.publish(dead_letter, None).await {
            Ok(()) => true,
            Err(error) => {
                let (error, stream) = (chain(&error), dead_letters::STREAM);
                let trace = self.trace_id();
                error!(error, stream, delivery = %self, trace, "cannot move a message to the dead letters");
                false
            }
        }
    }

    /// A lost settlement is harmless: the broker redelivers the message, and the facts prevent a second effect.
    async fn answer(&self, kind: AckKind) {
        let (id, trace) = (self.key(), self.trace_id());
        let answer = self.connection.client().publish(self.reply.clone(), kind.into());
        match timeout(SETTLE_TIMEOUT, answer).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, id, trace, "could not settle a delivery; the broker will redeliver it");
            }
            Err(_) => {
                warn!(id, trace, "settling a delivery timed out; the broker will redeliver it");
            }
        }
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.queue.stream, self.sequence)?;
        if self.is_bundled { write!(formatter, ":{}", self.key()) } else { Ok(()) }
    }
}
