//! Finds the messages of a queue that no consumer would ever settle, and moves them: to the dead letters what no
//! client library can read, to the end of the queue what the broker would not deliver again.
//!
//! A broker stores whatever bytes it is given for headers and subject. A client that is sent some that it
//! cannot read takes its connection for broken, or panics, and the service behind it never learns of the
//! message: it is redelivered after each `ACK_WAIT`, for ever, and breaks the connection of each client
//! that takes it. So such a message is looked for among those that were delivered and not acknowledged,
//! which the broker shows one by one in JSON.
//!
//! A broker that is killed may forget that it has removed a message, and remember that it was acknowledged. It
//! does not deliver that message again, which takes up room in its queue for ever. It is published again
//! and then deleted, and not only deleted, because that stays right even where the broker is wrong about
//! the acknowledgment.
//!
//! A [`Sweeper`] is called every few seconds, from one place. It costs a question about the consumer and one
//! about the first message, and more only while a message was redelivered, or while the oldest one that is
//! not acknowledged stays the same: a client that has panicked takes nothing a second time. It looks at no
//! message twice.

#[cfg(test)]
mod agreement;
mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::pin::pin;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::Info;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::api::{self, ApiError};
use crate::chain::chain;
use crate::clock::now;
use crate::connection::Connection;
use crate::dead_letters::{Cause, Original, is_for_the_broker};
use crate::firing;
use crate::job::Publication;
use crate::log_once::LogOnce;
use crate::publisher::PublishError;
use crate::queue::Lane;

/// How many messages one sweep looks at. The next one goes on behind them.
const MOST: usize = 10_000;

/// Moves the messages of one lane that no consumer would ever settle.
#[derive(Debug)]
pub(crate) struct Sweeper {
    connection: Connection,
    lane: Lane,
    instance: String,
    /// When the consumer was created, in nanoseconds: the sequences of another one begin anew.
    created: i128,
    /// Up to which sequence everything was acknowledged at the last sweep.
    ack_floor: Option<u64>,
    /// Up to which sequence every message was looked at.
    looked_at: u64,
    /// The messages that are to go, and whether what takes their place is stored.
    remaining: BTreeMap<u64, bool>,
    /// Those that the last sweep has found although they were acknowledged. The broker removes a message after
    /// its consumer has done with it, so only the next sweep takes them for forgotten.
    acked: BTreeSet<u64>,
    swept: Swept,
    logged: LogOnce,
}

/// What a sweep has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many messages it has moved to the dead letters.
    pub dead_lettered: u64,
    /// How many messages it has moved to the end of their queue.
    pub requeued: u64,
}

/// A message as the broker shows it in JSON, with its bytes in base64.
#[derive(Debug, Deserialize)]
struct StoredMessage {
    subject: String,
    #[serde(rename = "seq")]
    sequence: u64,
    #[serde(rename = "hdrs", default)]
    headers: String,
    #[serde(rename = "data", default)]
    body: String,
    time: Timestamp,
}

/// The answer of the broker that was asked for a message.
#[derive(Debug, Deserialize)]
struct GetAnswer {
    message: StoredMessage,
}

/// The answer of the broker that was told to delete a message.
#[derive(Debug, Deserialize)]
struct DeleteAnswer {
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
    #[error("its replacement is not stored: {}", chain(.0))]
    NotStored(PublishError),
    #[error("the broker did not delete it")]
    Kept,
}

impl Sweeper {
    /// A sweeper of this lane, which signs the dead letters as `instance`.
    #[must_use]
    pub(crate) fn new(connection: &Connection, lane: Lane, instance: impl Into<String>) -> Self {
        Self {
            connection: connection.clone(),
            lane,
            instance: instance.into(),
            created: 0,
            ack_floor: None,
            looked_at: 0,
            remaining: BTreeMap::new(),
            acked: BTreeSet::new(),
            swept: Swept::default(),
            logged: LogOnce::default(),
        }
    }

    /// Looks for what the broker would not deliver again, and for unreadable messages if there is reason to,
    /// and moves them. Returns how many it has moved.
    ///
    /// What it cannot do it logs once, with the command that does it by hand, and tries again
    /// at the next sweep.
    pub(crate) async fn sweep(&mut self) -> Swept {
        self.swept = Swept::default();
        let (stream, consumer) = (self.stream(), self.lane.consumer());
        let info = format!("CONSUMER.INFO.{stream}.{consumer}");
        let info = match self.ask::<Info>(info, &json!({})).await {
            Ok(info) => info,
            Err(failure) => {
                debug!(stream, consumer, %failure, "the broker does not describe the consumer");
                return self.swept;
            }
        };
        let created = info.created.unix_timestamp_nanos();
        if mem::replace(&mut self.created, created) != created {
            self.ack_floor = None;
            self.looked_at = 0;
            self.remaining.clear();
            self.acked.clear();
        }
        let floor = info.ack_floor.stream_sequence;
        let stands_still = self.ack_floor.replace(floor).is_none_or(|before| before == floor);
        let may_be_unreadable =
            info.num_ack_pending > 0 && (stands_still || info.num_redelivered > 0);
        let mut searched = self.requeue_acked(floor).await;
        if may_be_unreadable && searched.is_ok() {
            searched = self.search(floor, info.delivered.stream_sequence).await;
        }
        match searched {
            Ok(()) if self.remaining.is_empty() => self.logged.forget(),
            Ok(()) | Err(SweepError::Unavailable) => {}
            Err(failure) if self.logged.is_first(&failure) => warn!(
                stream, %failure,
                "cannot look for messages that no service can settle. If services lose their \
                 connection each ACK_WAIT, remove the message behind it by hand: \
                 nats stream rmm {stream} <sequence>"
            ),
            Err(_) => {}
        }
        self.swept
    }

    /// Moves the messages up to `floor` to the end of the queue.
    async fn requeue_acked(&mut self, floor: u64) -> Result<(), SweepError> {
        let before = mem::take(&mut self.acked);
        let mut from = 1;
        while self.acked.len() < MOST
            && let Some(message) = self.next(from).await?
            && message.sequence <= floor
        {
            from = message.sequence + 1;
            self.acked.insert(message.sequence);
            if before.contains(&message.sequence) {
                self.look_at(&message, true).await;
            }
        }
        Ok(())
    }

    /// Looks at the messages behind `floor` up to `last`. In a queue, those that are there still are those
    /// that were not acknowledged.
    async fn search(&mut self, floor: u64, last: u64) -> Result<(), SweepError> {
        for sequence in self.remaining.keys().copied().collect::<Vec<_>>() {
            match self.next(sequence).await? {
                Some(message) if message.sequence == sequence => {
                    self.look_at(&message, false).await;
                }
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
                    self.look_at(&message, false).await;
                }
                _ => self.looked_at = last,
            }
        }
        Ok(())
    }

    /// Moves a message that is unreadable to the dead letters, and one that was acknowledged to the end of
    /// the queue.
    async fn look_at(&mut self, message: &StoredMessage, is_acked: bool) {
        // A broker stores nothing that is not base64.
        let Ok(block) = BASE64_STANDARD.decode(&message.headers) else { return };
        let Ok(body) = BASE64_STANDARD.decode(&message.body) else { return };
        let body = Bytes::from(body);
        let (stream, sequence) = (self.stream(), message.sequence);
        let flaw = parse::flaw(&message.subject, &block);
        let reason = match &flaw {
            Some(flaw) => format!("malformed: the client library cannot read it: {flaw}"),
            None if is_acked => "it was acknowledged, and is still there".to_owned(),
            None => return,
        };
        let successor = match flaw {
            Some(_) => self.dead_letter(message, &block, &body, &reason),
            None => self.copy(message, &block, body),
        };
        match self.replace(sequence, successor).await {
            Ok(()) if flaw.is_some() => {
                self.swept.dead_lettered += 1;
                warn!(queue = stream, sequence, reason, "dead-lettered");
            }
            Ok(()) => {
                self.swept.requeued += 1;
                warn!(queue = stream, sequence, reason, "requeued");
            }
            Err(SweepError::Unavailable) => {}
            Err(failure) if self.logged.is_first(format_args!("{sequence}: {failure}")) => warn!(
                stream, sequence, reason, %failure,
                "cannot move a message that no service can settle. One that is malformed breaks the connection of \
                 a service each ACK_WAIT; to remove it by hand: nats stream rmm {stream} {sequence}"
            ),
            Err(_) => {}
        }
    }

    fn dead_letter(
        &self,
        message: &StoredMessage,
        block: &[u8],
        body: &Bytes,
        reason: &str,
    ) -> Publication {
        let headers = parse::readable(block);
        let original = Original {
            queue: self.lane.queue,
            sequence: message.sequence,
            subject: &message.subject,
            headers: Some(&headers),
            body,
        };
        // That it was delivered is all that is known.
        let cause = Cause { reason, attempts: 1, at: now(), by: &self.instance };
        original.unreadable(block, &cause)
    }

    /// The same message, under a message id of its own: under the old one the broker would take it for the one
    /// that it has. The consumer's age is part of it, because the sequences of a stream that was deleted come again.
    fn copy(&self, message: &StoredMessage, block: &[u8], body: Bytes) -> Publication {
        let (mut headers, originals) = (HeaderMap::new(), parse::readable(block));
        let StoredMessage { subject, time, .. } = message;
        // A firing that is requeued stays the same job.
        let subject = firing::subject(self.lane.queue, subject, Some(&originals), *time)
            .unwrap_or_else(|| subject.clone());
        for (name, values) in originals.iter() {
            if is_for_the_broker(name.as_ref()) {
                continue;
            }
            for value in values {
                headers.append(name.clone(), value.clone());
            }
        }
        let id = format!("requeued:{}:{}:{}", self.stream(), self.created, message.sequence);
        headers.insert(NATS_MESSAGE_ID, id);
        Publication { subject, headers, body }
    }

    /// Publishes what takes the place of a message, and deletes the message only once that is confirmed. It is
    /// published once: a second one would be a duplicate only for as long as the broker remembers the first.
    async fn replace(&mut self, sequence: u64, successor: Publication) -> Result<(), SweepError> {
        if !*self.remaining.entry(sequence).or_default() {
            match self.connection.publish_once(successor).await {
                Ok(()) => self.remaining.insert(sequence, true),
                Err(error) if error.lost_connection() => return Err(SweepError::Unavailable),
                Err(error) => return Err(SweepError::NotStored(error)),
            };
        }
        self.delete(sequence).await?;
        self.remaining.remove(&sequence);
        Ok(())
    }

    async fn delete(&self, sequence: u64) -> Result<(), SweepError> {
        let subject = format!("STREAM.MSG.DELETE.{}", self.stream());
        let order = json!({ "seq": sequence, "no_erase": true });
        match self.ask::<DeleteAnswer>(subject, &order).await {
            Ok(DeleteAnswer { success: true }) => Ok(()),
            // Another sweeper may have been faster. All that counts is that it is gone.
            other => match self.next(sequence).await? {
                Some(message) if message.sequence == sequence => {
                    Err(other.err().unwrap_or(SweepError::Kept))
                }
                _ => Ok(()),
            },
        }
    }

    /// The first message of the lane from this sequence on.
    async fn next(&self, sequence: u64) -> Result<Option<StoredMessage>, SweepError> {
        let mut first: Option<StoredMessage> = None;
        for filter in self.lane.filters() {
            let subject = format!("STREAM.MSG.GET.{}", self.stream());
            let question = json!({ "seq": sequence, "next_by_subj": filter });
            match self.ask::<GetAnswer>(subject, &question).await {
                Ok(GetAnswer { message })
                    if first.as_ref().is_none_or(|first| message.sequence < first.sequence) =>
                {
                    first = Some(message);
                }
                Ok(_) => {}
                Err(SweepError::Api(ApiError::Refused(error)))
                    if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(first)
    }

    fn stream(&self) -> &'static str {
        self.lane.queue.stream
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
