//! Finds the messages that no client library can read, and moves them to the dead letters.
//!
//! A broker stores whatever bytes it is given for headers and subject. A client that is sent some that it
//! cannot read takes its connection for broken, or panics, and the service behind it never learns of the
//! message: it is redelivered after each `ACK_WAIT`, for ever, and breaks the connection of each client
//! that takes it. So such a message is looked for among those that were delivered and not acknowledged,
//! which the broker shows one by one in JSON.
//!
//! A [`Sweeper`] is called every few seconds, from one place. It costs a question about the consumer, and
//! more only while a message was redelivered, or while the oldest one that is not acknowledged stays the
//! same: a client that has panicked takes nothing a second time. It looks at no message twice.

#[cfg(test)]
mod agreement;
mod parse;

use std::collections::BTreeMap;
use std::mem;
use std::pin::pin;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::Info;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::Queue;
use crate::api::{self, ApiError};
use crate::chain::chain;
use crate::clock::now;
use crate::connection::Connection;
use crate::dead_letters::{Cause, Original};
use crate::log_once::LogOnce;
use crate::publisher::PublishError;

/// How many messages one sweep looks at. The next one goes on behind them.
const MOST: usize = 10_000;

/// Moves the unreadable messages of one queue to the dead letters.
#[derive(Debug)]
pub struct Sweeper {
    connection: Connection,
    queue: Queue,
    instance: String,
    /// When the consumer was created, in nanoseconds: the sequences of another one begin anew.
    created: i128,
    /// Up to which sequence everything was acknowledged at the last sweep.
    ack_floor: Option<u64>,
    /// Up to which sequence every message was looked at.
    looked_at: u64,
    /// The unreadable messages that are still in the queue, and whether their dead letter is stored.
    remaining: BTreeMap<u64, bool>,
    /// How many messages were moved so far.
    moved: u64,
    logged: LogOnce,
}

/// A message as the broker shows it in JSON, with its bytes in base64.
#[derive(Debug, Deserialize)]
struct Shown {
    subject: String,
    #[serde(rename = "seq")]
    sequence: u64,
    #[serde(rename = "hdrs", default)]
    headers: String,
    #[serde(rename = "data", default)]
    body: String,
}

/// The answer of the broker that was asked for a message.
#[derive(Debug, Deserialize)]
struct Answer {
    message: Shown,
}

/// The answer of the broker that was told to delete a message.
#[derive(Debug, Deserialize)]
struct Deleted {
    success: bool,
}

/// Why the broker did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    /// The next sweep has better chances.
    #[error("the broker is not available")]
    Unavailable,
    #[error(transparent)]
    Api(ApiError),
    #[error("the dead letter is not stored: {}", chain(.0))]
    NotStored(PublishError),
    #[error("the broker did not delete it")]
    Kept,
}

impl Sweeper {
    /// A sweeper of this queue, which signs the dead letters as `instance`.
    #[must_use]
    pub fn new(connection: &Connection, queue: Queue, instance: impl Into<String>) -> Self {
        Self {
            connection: connection.clone(),
            queue,
            instance: instance.into(),
            created: 0,
            ack_floor: None,
            looked_at: 0,
            remaining: BTreeMap::new(),
            moved: 0,
            logged: LogOnce::default(),
        }
    }

    /// Looks for unreadable messages if there is reason to, and moves them. Gives how many it has moved.
    ///
    /// What it cannot do it logs once, with the command that does it by hand, and tries again
    /// at the next sweep.
    pub async fn sweep(&mut self) -> u64 {
        let Queue { stream, consumer, .. } = self.queue;
        let info = format!("CONSUMER.INFO.{stream}.{consumer}");
        let info = match self.ask::<Info>(info, &json!({})).await {
            Ok(info) => info,
            Err(failure) => {
                debug!(stream, consumer, %failure, "the broker does not describe the consumer");
                return 0;
            }
        };
        let created = info.created.unix_timestamp_nanos();
        if mem::replace(&mut self.created, created) != created {
            self.ack_floor = None;
            self.looked_at = 0;
            self.remaining.clear();
        }
        let floor = info.ack_floor.stream_sequence;
        let stands_still = self.ack_floor.replace(floor).is_none_or(|before| before == floor);
        if info.num_ack_pending == 0 || !(stands_still || info.num_redelivered > 0) {
            return 0;
        }
        let moved_before = self.moved;
        match self.search(floor, info.delivered.stream_sequence).await {
            Ok(()) if self.remaining.is_empty() => self.logged.forget(),
            Ok(()) | Err(SweepError::Unavailable) => {}
            Err(failure) if self.logged.is_first(&failure) => warn!(
                stream, %failure,
                "cannot look for messages that the client cannot read. If services lose their \
                 connection each ACK_WAIT, remove the message behind it by hand: \
                 nats stream rmm {stream} <sequence>"
            ),
            Err(_) => {}
        }
        self.moved - moved_before
    }

    /// Looks at the messages behind `floor` up to `last`. In a queue, those that are there still are those
    /// that were not acknowledged.
    async fn search(&mut self, floor: u64, last: u64) -> Result<(), SweepError> {
        for sequence in self.remaining.keys().copied().collect::<Vec<_>>() {
            match self.next(sequence).await? {
                Some(message) if message.sequence == sequence => self.look_at(&message).await,
                _ => drop(self.remaining.remove(&sequence)),
            }
        }
        self.looked_at = self.looked_at.max(floor);
        for _ in 0..MOST {
            if self.looked_at >= last {
                break;
            }
            match self.next(self.looked_at + 1).await? {
                Some(message) if message.sequence <= last => {
                    self.looked_at = message.sequence;
                    self.look_at(&message).await;
                }
                _ => self.looked_at = last,
            }
        }
        Ok(())
    }

    /// Moves a message, if it is unreadable.
    async fn look_at(&mut self, message: &Shown) {
        // What is not base64 is nothing that this broker has stored.
        let Ok(block) = BASE64_STANDARD.decode(&message.headers) else { return };
        let Some(flaw) = parse::flaw(&message.subject, &block) else { return };
        let Ok(body) = BASE64_STANDARD.decode(&message.body) else { return };
        let (stream, sequence) = (self.queue.stream, message.sequence);
        let reason = format!("malformed: the client library cannot read it: {flaw}");
        match self.dead_letter(message, &block, body, &reason).await {
            Ok(()) => {
                self.remaining.remove(&sequence);
                self.moved += 1;
                warn!(queue = stream, sequence, reason, "dead-lettered");
            }
            Err(SweepError::Unavailable) => {}
            Err(failure) if self.logged.is_first(format_args!("{sequence}: {failure}")) => warn!(
                stream, sequence, reason, %failure,
                "cannot move a message to the dead letters that the client cannot read. It breaks the \
                 connection of a service each ACK_WAIT; to remove it by hand: \
                 nats stream rmm {stream} {sequence}"
            ),
            Err(_) => {}
        }
    }

    /// Publishes the dead letter, and deletes the message only once that is confirmed. It is published
    /// once: a second one would be a duplicate only for as long as the broker remembers the first.
    async fn dead_letter(
        &mut self,
        message: &Shown,
        block: &[u8],
        body: Vec<u8>,
        reason: &str,
    ) -> Result<(), SweepError> {
        let sequence = message.sequence;
        if !*self.remaining.entry(sequence).or_default() {
            let headers = parse::readable(block);
            let original = Original {
                stream: self.queue.stream,
                sequence,
                subject: &message.subject,
                headers: Some(&headers),
                body: &body.into(),
            };
            // That it was delivered is all that is known.
            let cause = Cause { reason, attempts: 1, at: now(), by: &self.instance };
            let dead = original.unreadable(block, &cause);
            self.connection.publish_once(dead).await.map_err(SweepError::NotStored)?;
            self.remaining.insert(sequence, true);
        }
        self.delete(sequence).await
    }

    async fn delete(&self, sequence: u64) -> Result<(), SweepError> {
        let subject = format!("STREAM.MSG.DELETE.{}", self.queue.stream);
        let order = json!({ "seq": sequence, "no_erase": true });
        match self.ask::<Deleted>(subject, &order).await {
            Ok(Deleted { success: true }) => Ok(()),
            // Another sweeper may have been faster. All that counts is that it is gone.
            other => match self.next(sequence).await? {
                Some(message) if message.sequence == sequence => {
                    Err(other.err().unwrap_or(SweepError::Kept))
                }
                _ => Ok(()),
            },
        }
    }

    /// The first message of the queue from this sequence on.
    async fn next(&self, sequence: u64) -> Result<Option<Shown>, SweepError> {
        let subject = format!("STREAM.MSG.GET.{}", self.queue.stream);
        let question = json!({ "seq": sequence, "next_by_subj": self.queue.filter() });
        match self.ask::<Answer>(subject, &question).await {
            Ok(Answer { message }) => Ok(Some(message)),
            Err(SweepError::Api(ApiError::Refused(error)))
                if error.error_code() == ErrorCode::NO_MESSAGE_FOUND =>
            {
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        subject: String,
        question: &Value,
    ) -> Result<T, SweepError> {
        let call = api::call(self.connection.context(), subject, question);
        match self.connection.ask(pin!(call)).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error @ ApiError::Refused(_))) => Err(SweepError::Api(error)),
            Some(Err(error @ ApiError::TimedOut)) if self.connection.is_connected() => {
                Err(SweepError::Api(error))
            }
            Some(Err(_)) | None => Err(SweepError::Unavailable),
        }
    }
}
