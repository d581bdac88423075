//! Finds the messages that the client cannot read, and moves them to the dead letters.
//!
//! A broker stores whatever bytes it is given for headers and subject. The client takes the
//! connection for broken when it is sent some that it cannot read, or panics, and the service never
//! learns of the message: it would come again after each `ACK_WAIT`, for ever, and break the
//! connection of whoever takes it. So such a message is not looked for among those that arrive, but
//! among those that were delivered and that nobody has answered for, which the broker shows one by
//! one in JSON:
//!
//! - before a service pulls for the first time: its predecessor may have died of one;
//! - after each connection that was lost, if something was delivered more than once. That leaves out
//!   what was only in flight while a broker restarted, and finds what has broken the connection for
//!   the second time.

#[cfg(test)]
mod agreement;
mod parse;

use std::collections::HashSet;
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream::consumer::{Info, PullConsumer};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use contract::dead_letters::{Original, Verdict};
use contract::queues::Queue;
use futures_util::future::try_join_all;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::Rules;
use crate::backoff::Backoff;
use crate::clock::now;
use crate::connection::Connection;
use crate::metrics::Settled;
use parse::Flaw;

/// How long a service that starts waits for the first search to end. It is over sooner, unless the
/// broker does not show its messages; then it goes on beside the work.
const HEAD_START: Duration = Duration::from_secs(2);

/// How many messages are looked at in one search at most. There are only more where very many were
/// given back, and those that give back can read.
const MOST: usize = 10_000;

/// How many messages the broker is asked for at a time.
const AT_A_TIME: u64 = 8;

/// How often the broker is asked for the same, if there is no answer. Where this user may not ask,
/// there never is one; and the connection may be lost before that is certain.
const TRIES: u32 = 5;

/// The first ceiling of the time between two tries, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Searches once, if anything waits for an answer, and gives the task that does so again whenever
/// there is reason to.
pub(crate) async fn watch(
    connection: &Connection,
    consumer: &PullConsumer,
    rules: &Arc<Rules>,
) -> AbortOnDropHandle<()> {
    let mut times_connected = connection.times_connected();
    let mut search = Search {
        connection: connection.clone(),
        rules: Arc::clone(rules),
        obstacle_said: false,
        buried: Mutex::default(),
    };
    let consumer = consumer.clone();
    let (searched, first) = oneshot::channel();
    let task = tokio::spawn(async move {
        let info = consumer.cached_info();
        if info.num_ack_pending > 0 {
            search.run(info).await;
        }
        // It does not matter whether anybody still waits for that.
        let _ = searched.send(());
        loop {
            search.connection.reconnected(times_connected).await;
            times_connected = search.connection.times_connected();
            if let Some(info) = search.info(&consumer).await
                && info.num_redelivered > 0
            {
                search.run(&info).await;
            }
        }
    });
    let task = AbortOnDropHandle::new(task);
    if timeout(HEAD_START, first).await.is_err() {
        debug!(queue = rules.queue.stream, "searching on for unreadable messages while at work");
    }
    task
}

/// The search for unreadable messages.
struct Search {
    connection: Connection,
    rules: Arc<Rules>,
    /// Whether it was said what keeps it from looking at messages.
    obstacle_said: bool,
    /// Those that are among the dead letters, and could not be deleted. They come again, and a second
    /// dead letter would only be a duplicate for as long as the broker remembers the first.
    buried: Mutex<HashSet<u64>>,
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

/// What came of a question to the broker that came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Refused(#[from] jetstream::Error),
    #[error("no answer; perhaps this user may not ask for that")]
    Unanswered,
    #[error("the broker did not delete it")]
    Kept,
}

/// Which message could not be looked at, and why.
struct Unseen {
    sequence: u64,
    failure: Failure,
}

impl Search {
    /// Looks at all messages that the consumer has delivered and that nobody has answered for. Says
    /// once what keeps it from that, and leaves it there.
    async fn run(&mut self, info: &Info) {
        let first = info.ack_floor.stream_sequence + 1;
        let last = info.delivered.stream_sequence;
        if let Err(Unseen { sequence, failure }) = self.among(first, last).await
            && !mem::replace(&mut self.obstacle_said, true)
        {
            let stream = self.rules.queue.stream;
            warn!(
                stream, sequence, error = %failure,
                "cannot look for messages that the client cannot read. If the connection is lost \
                 each ACK_WAIT, remove the one behind it by hand: nats stream rmm {stream} <sequence>"
            );
        }
    }

    async fn among(&self, first: u64, last: u64) -> Result<(), Unseen> {
        // Alone, because it tells where to begin, and whether the broker shows anything at all.
        let Some(message) = self.next(first).await? else { return Ok(()) };
        let looked_at = AtomicUsize::new(1);
        let first = message.sequence + 1;
        if first > last + 1 {
            return Ok(());
        }
        self.look_at(&message).await;
        let share = (last + 1 - first).div_ceil(AT_A_TIME).max(1);
        let shares = (0..AT_A_TIME).map(|number| {
            let first = first + number * share;
            self.each(first, last.min(first + share - 1), &looked_at)
        });
        try_join_all(shares).await?;
        let looked_at = looked_at.into_inner();
        let queue = self.rules.queue.stream;
        debug!(queue, looked_at, "looked for messages that the client cannot read");
        Ok(())
    }

    /// Looks at each message from `first` to `last`. In a queue, those that are there still are
    /// those that nobody has answered for.
    async fn each(&self, first: u64, last: u64, looked_at: &AtomicUsize) -> Result<(), Unseen> {
        let mut sequence = first;
        while sequence <= last && looked_at.fetch_add(1, Ordering::Relaxed) < MOST {
            match self.next(sequence).await? {
                Some(message) if message.sequence <= last => {
                    self.look_at(&message).await;
                    sequence = message.sequence + 1;
                }
                _ => break,
            }
        }
        Ok(())
    }

    async fn look_at(&self, message: &Shown) {
        // What is not base64 is nothing that this broker has stored.
        let Ok(block) = BASE64_STANDARD.decode(&message.headers) else { return };
        let Some(flaw) = parse::flaw(&message.subject, &block) else { return };
        let Ok(body) = BASE64_STANDARD.decode(&message.body) else { return };
        self.bury(message, &block, body, flaw).await;
    }

    /// Moves a message to the dead letters, and only then deletes it from its queue. Any number of
    /// replicas may do so at once: the second dead letter is a duplicate.
    async fn bury(&self, message: &Shown, block: &[u8], body: Vec<u8>, flaw: Flaw) {
        let started = Instant::now();
        let Rules { queue, instance, dead_letters, metrics, .. } = &*self.rules;
        let (stream, sequence) = (queue.stream, message.sequence);
        let is_new = !self.buried().contains(&sequence);
        let reason = format!("malformed: the client library cannot read it: {flaw}");
        if is_new {
            let headers = parse::readable(block);
            let original = Original {
                stream,
                sequence,
                subject: &message.subject,
                headers: Some(&headers),
                body: &body.into(),
            };
            // That it was delivered is all that is known.
            let verdict = Verdict { reason: &reason, attempts: 1, at: now(), by: instance };
            if let Err(refusal) =
                dead_letters.publish(|| original.unreadable(block, &verdict)).await
            {
                warn!(
                    stream, sequence, reason, %refusal,
                    "cannot move a message to the dead letters that the client cannot read. It \
                     breaks the connection each ACK_WAIT; to remove it by hand: \
                     nats stream rmm {stream} {sequence}"
                );
                return;
            }
            self.buried().insert(sequence);
        }
        match self.delete(sequence).await {
            Ok(()) => {
                metrics.settled(Settled::DeadLetter, started.elapsed());
                warn!(queue = stream, sequence, reason, "dead-lettered");
            }
            Err(error) if is_new => warn!(
                stream, sequence, reason, %error,
                "a message that the client cannot read is among the dead letters, but cannot be \
                 deleted from its queue. It breaks the connection each ACK_WAIT; to remove it by \
                 hand: nats stream rmm {stream} {sequence}"
            ),
            Err(error) => debug!(stream, sequence, %error, "still cannot delete it"),
        }
    }

    fn buried(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.buried.lock().expect("nothing panics while it holds this lock")
    }

    async fn delete(&self, sequence: u64) -> Result<(), Failure> {
        let subject = format!("STREAM.MSG.DELETE.{}", self.rules.queue.stream);
        let order = json!({ "seq": sequence, "no_erase": true });
        let deleted = self.ask::<Deleted>(subject, &order).await;
        match deleted {
            Ok(Deleted { success: true }) => Ok(()),
            // Another replica may have been faster. All that counts is that it is gone.
            other => match self.next(sequence).await {
                Ok(Some(message)) if message.sequence == sequence => {
                    Err(other.err().unwrap_or(Failure::Kept))
                }
                _ => Ok(()),
            },
        }
    }

    /// The first message of the queue from this sequence on.
    async fn next(&self, sequence: u64) -> Result<Option<Shown>, Unseen> {
        let Queue { stream, .. } = self.rules.queue;
        let question = json!({ "seq": sequence, "next_by_subj": self.rules.queue.filter() });
        match self.ask(format!("STREAM.MSG.GET.{stream}"), &question).await {
            Ok(Answer { message }) => Ok(Some(message)),
            Err(Failure::Refused(error)) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            Err(failure) => Err(Unseen { sequence, failure }),
        }
    }

    /// How the consumer is, or nothing where it is gone.
    async fn info(&self, consumer: &PullConsumer) -> Option<Info> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.connection.ask(pin!(consumer.get_info())).await {
                Some(Ok(info)) => return Some(info),
                Some(Err(error)) => match error.kind() {
                    ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => {
                        return None;
                    }
                    _ => debug!(%error, "the broker does not say how the consumer is"),
                },
                None => {}
            }
            backoff.wait().await;
        }
    }

    /// Asks the broker, and again where there is no answer, but only so often.
    async fn ask<T: DeserializeOwned>(
        &self,
        subject: String,
        question: &serde_json::Value,
    ) -> Result<T, Failure> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        for _ in 0..TRIES {
            let request = self.connection.context().request(subject.clone(), question);
            match self.connection.ask(pin!(request)).await {
                Some(Ok(Response::Ok(answer))) => return Ok(answer),
                // Unless it calls itself unavailable, such as a cluster that elects a leader.
                Some(Ok(Response::Err { error })) if error.code() != 503 => {
                    return Err(Failure::Refused(error));
                }
                Some(Ok(Response::Err { error })) => debug!(%error, "no answer yet"),
                Some(Err(error)) => debug!(%error, "no answer yet"),
                None => {}
            }
            backoff.wait().await;
        }
        Err(Failure::Unanswered)
    }
}
