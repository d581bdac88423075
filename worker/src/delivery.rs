//! One delivery of a message, and the ways to answer for it.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, AckKind};
use contract::dead_letters::Original;
use contract::queues::Queue;
use tracing::warn;

use crate::settle::{Attempt, Delay};

/// A message as it was delivered, which waits for its settlement.
#[derive(Debug)]
pub(crate) struct Delivery {
    message: jetstream::Message,
    queue: Queue,
    sequence: u64,
    attempt: Attempt,
}

impl Delivery {
    pub(crate) fn new(message: jetstream::Message, queue: Queue) -> Self {
        let (sequence, attempt) = match message.info() {
            Ok(info) => (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)),
            Err(error) => {
                // Without it the message can still be handled, only not counted.
                warn!(error, "the broker sends a delivery that does not say which it is");
                (0, 1)
            }
        };
        Self { message, queue, sequence, attempt: Attempt::new(attempt) }
    }

    pub(crate) fn attempt(&self) -> Attempt {
        self.attempt
    }

    pub(crate) fn subject(&self) -> &str {
        &self.message.subject
    }

    pub(crate) fn headers(&self) -> Option<&HeaderMap> {
        self.message.headers.as_ref()
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.message.payload
    }

    /// The part of the subject that names the request.
    pub(crate) fn key(&self) -> &str {
        self.queue.key(self.subject()).unwrap_or_default()
    }

    pub(crate) fn original(&self) -> Original<'_> {
        Original {
            stream: self.queue.stream,
            sequence: self.sequence,
            subject: self.subject(),
            headers: self.headers(),
            body: &self.message.payload,
        }
    }

    /// Tells the broker each `beat` that somebody is still at work, until `work` is done.
    pub(crate) async fn keep_alive<F: Future>(
        &self,
        beat: Duration,
        mut work: Pin<&mut F>,
    ) -> F::Output {
        loop {
            match tokio::time::timeout(beat, work.as_mut()).await {
                Ok(done) => return done,
                Err(_) => self.answer(AckKind::Progress).await,
            }
        }
    }

    pub(crate) async fn ack(&self) {
        self.answer(AckKind::Ack).await;
    }

    pub(crate) async fn nak(&self, delay: Delay) {
        self.answer(AckKind::Nak(Some(delay.draw()))).await;
    }

    /// An answer that gets lost is no loss: the message is delivered again, and the facts see to
    /// it that nothing happens twice.
    async fn answer(&self, kind: AckKind) {
        if let Err(error) = self.message.ack_with(kind).await {
            warn!(error, id = self.key(), "could not answer for a delivery; it will come again");
        }
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.queue.stream, self.sequence)
    }
}
