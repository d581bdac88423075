//! Finds the messages of a queue that no consumer would ever settle, and moves them: messages that no client library
//! can read to the dead letters, and messages that the broker would not redeliver to the end of the queue.
//!
//! A broker stores any bytes as headers and subject. A client that receives a message that it cannot read closes its
//! connection, or panics, and its service never gets the message. The broker redelivers the message after each
//! `ACK_WAIT`, forever, and it breaks the connection of each client. So the sweeper looks for it among the messages
//! that were delivered and not acked, which the broker shows one by one in JSON.
//!
//! A killed broker may still have a message that it had removed after an ack. It never redelivers that message, which
//! takes up room in the queue forever. The sweeper publishes it again before it deletes it. That is correct even if
//! the broker is wrong about the ack.
//!
//! A [`Sweeper`] is called every few seconds, from one process. A sweep costs one request for the consumer and one for
//! the first message. It costs more only while a message was redelivered, or while the oldest unacked message stays
//! the same: a client that has panicked takes nothing a second time. It looks at no message twice.

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
use crate::clock::now;
use crate::connection::Connection;
use crate::dead_letters::{Cause, Original, is_for_the_broker};
use crate::error_chain::chain;
use crate::firing;
use crate::job::Publication;
use crate::log_once::LogOnce;
use crate::publisher::PublishError;
use crate::queue::Lane;

/// The most messages in one sweep. The next sweep continues after them.
const MOST: usize = 10_000;

/// Moves the messages of one lane that no consumer would ever settle.
#[derive(Debug)]
pub(crate) struct Sweeper {
    connection: Connection,
    lane: Lane,
    instance: String,
    /// When the consumer was created, in nanoseconds. Another consumer has new sequences.
    created: i128,
    /// The sequence up to which all messages were acked at the last sweep.
    ack_floor: Option<u64>,
    /// The sequence up to which all messages were examined.
    looked_at: u64,
    /// The messages to delete, and whether their replacements are stored.
    remaining: BTreeMap<u64, bool>,
    /// The messages that the last sweep has found although they were acked. The broker removes a message some time
    /// after its ack, so only the next sweep moves them.
    acked: BTreeSet<u64>,
    swept: Swept,
    logged: LogOnce,
}

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The number of messages moved to the dead letters.
    pub dead_lettered: u64,
    /// The number of messages moved to the end of their queue.
    pub requeued: u64,
}

/// A message as the broker shows it in JSON, with its bytes in base64.
#[derive(Debug, Deserialize)]
struct JsonMessage {
    subject: String,
    #[serde(rename = "seq")]
    sequence: u64,
    #[serde(rename = "hdrs", default)]
    headers: String,
    #[serde(rename = "data", default)]
    body: String,
    time: Timestamp,
}

/// The answer of the broker with a message.
#[derive(Debug, Deserialize)]
struct GetAnswer {
    message: JsonMessage,
}

/// The answer of the broker to the deletion of a message.
#[derive(Debug, Deserialize)]
struct DeleteAnswer {
    success: bool,
}

/// The error of a step of a sweep.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    /// The next sweep may succeed.
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

    /// Looks for messages that the broker would not redeliver, and, if there is a sign of them, for unreadable
    /// messages, and moves them. Returns the numbers of moved messages.
    ///
    /// It logs each failure once, with the command for doing the step by hand, and retries at the next sweep.
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

    /// Examines the messages after `floor` up to `last`. In a queue, the existing messages are the unacked ones.
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

    /// Moves an unreadable message to the dead letters, and an acked one to the end of the queue.
    async fn look_at(&mut self, message: &JsonMessage, is_acked: bool) {
        // A broker stores nothing that is not base64.
        let Ok(block) = BASE64_STANDARD.decode(&message.headers) else { return };
        let Ok(body) = BASE64_STANDARD.decode(&message.body) else { return };
        let body = Bytes::from(body);
        let (stream, sequence) = (self.stream(), message.sequence);
        let flaw = parse::flaw(&message.subject, &block);
        let reason = match &flaw {
            Some(flaw) => format!("malformed: the client library cannot read it: {flaw}"),
            None if is_acked => "it was acked, and the broker still has it".to_owned(),
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
        message: &JsonMessage,
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

    /// The same message with another message id: with the old one the broker would drop it as a duplicate. The
    /// creation time of the consumer is part of the id, because the sequences of a deleted stream are used again.
    fn copy(&self, message: &JsonMessage, block: &[u8], body: Bytes) -> Publication {
        let (mut headers, originals) = (HeaderMap::new(), parse::readable(block));
        let JsonMessage { subject, time, .. } = message;
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

    /// Publishes the replacement of a message, and deletes the message only once the broker has confirmed that. It
    /// publishes once: the broker drops a second publish only within its deduplication window.
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
    async fn next(&self, sequence: u64) -> Result<Option<JsonMessage>, SweepError> {
        let mut first: Option<JsonMessage> = None;
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
