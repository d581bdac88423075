//! One delivery of a message, and the ways to answer for it.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::{self, AckKind, Context};
use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use tokio::time::timeout;
use tracing::warn;

use crate::Queue;
use crate::attempt::Attempt;
use crate::connection::Connection;
use crate::dead_letters::Original;
use crate::heartbeat::{Heartbeat, Next};
use crate::settle::Delay;

/// How long handing an answer to the client may take. It takes long only while the broker is away
/// and the client has no room for more that it is to send then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A message as it was delivered, which waits for its settlement.
#[derive(Debug)]
pub(crate) struct Delivery {
    message: Message,
    /// Where to answer for it.
    reply: Subject,
    connection: Connection,
    queue: Queue,
    sequence: u64,
    attempt: Attempt,
}

impl Delivery {
    /// The delivery that this message is.
    ///
    /// # Errors
    ///
    /// Where it lacks `JetStream` metadata: then it can be neither counted nor dead-lettered under a name of
    /// its own, and is left to come again.
    pub(crate) fn new(
        message: Message,
        reader: &mut Reader,
        queue: Queue,
        connection: &Connection,
    ) -> Result<Self, async_nats::Error> {
        let (mut message, place) = reader.read(message);
        let (sequence, attempt) = place?;
        let reply = message.reply.take().ok_or("it has no reply subject")?;
        let attempt = Attempt::new(u64::try_from(attempt).unwrap_or(1));
        let connection = connection.clone();
        Ok(Self { message, reply, connection, queue, sequence, attempt })
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

    pub(crate) fn body(&self) -> &Bytes {
        &self.message.payload
    }

    /// The part of the subject that names the job.
    pub(crate) fn key(&self) -> &str {
        self.queue.key(self.subject()).unwrap_or_default()
    }

    pub(crate) fn original(&self) -> Original<'_> {
        Original {
            stream: self.queue.stream,
            sequence: self.sequence,
            subject: self.subject(),
            headers: self.headers(),
            body: self.body(),
        }
    }

    /// Waits for `work`, and tells the broker at each beat that it is under way. Gives nothing where the
    /// drain has no time left for it.
    pub(crate) async fn keep_alive<F: Future>(
        &self,
        heartbeat: &Heartbeat,
        mut work: Pin<&mut F>,
    ) -> Option<F::Output> {
        loop {
            match heartbeat.next(work.as_mut()).await {
                Next::Done(done) => return Some(done),
                // Without a connection the client would keep it for later, when it is of no use.
                Next::Beat if self.connection.is_connected() => {
                    self.answer(AckKind::Progress).await;
                }
                Next::Beat => {}
                Next::Abandon => return None,
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
        let id = self.key();
        let answer = self.connection.client().publish(self.reply.clone(), kind.into());
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, id, "could not settle a delivery; it will come again");
            }
            Err(_) => warn!(id, "settling a delivery timed out; it will come again"),
        }
    }
}

/// Reads which delivery a message is. The library does so only for a message with a JetStream context.
/// To make one for each costs more than to read; this one is lent to all.
pub(crate) struct Reader(Option<Context>);

impl Reader {
    pub(crate) fn new(connection: &Connection) -> Self {
        Self(Some(connection.context().clone()))
    }

    /// Gives the message back, with its sequence in its stream and how many times it was delivered.
    fn read(&mut self, message: Message) -> (Message, Result<(u64, i64), async_nats::Error>) {
        let context = self.0.take().expect("it is put back below");
        let message = jetstream::Message { message, context };
        let place = message.info().map(|info| (info.stream_sequence, info.delivered));
        let jetstream::Message { message, context } = message;
        self.0 = Some(context);
        (message, place)
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.queue.stream, self.sequence)
    }
}
