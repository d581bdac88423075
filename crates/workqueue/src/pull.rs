//! Asks the broker for messages of a lane, never for more than the service has slots.
//!
//! A pull gives the broker *credit*: the broker may send this number of messages until the pull expires. Each message
//! spends credit. When a pull expires, the broker sends a status with the number of messages that it did not send,
//! which ends the rest of the credit. Pulls expire soon. So a process that hangs takes a message only once, and a
//! process that stops need not wait long: it sends no more pulls, and loses no message that is under way.
//!
//! A pull can get lost, with a connection or with the broker that led the consumer. Its credit is written off only
//! when no message of it can arrive any more: the broker has answered a later request, and since then the time of a
//! pull has passed.

use std::pin::{Pin, pin};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::BatchConfig;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::{Message, StatusCode, Subject, SubscribeError, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Instant, Sleep, timeout};
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::log_once::LogOnce;
use crate::queue::Queue;
use crate::spans::Batch;

/// The longest time after the end of a pull in which its status may still arrive.
const GRACE: Duration = Duration::from_millis(250);

/// The longest time for which there may be credit without interruption. After that no more pulls are sent until the
/// credit is gone: the rest may be the credit of a lost pull.
const LONGEST_CREDIT: Duration = Duration::from_secs(10);

/// The first ceiling of the time between two requests for the state of a consumer, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The time limit for handing a request to the client.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The header of a status with the number of messages that the broker did not send.
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";

/// The result of waiting for messages.
pub(crate) enum Arrival {
    /// A message, which takes one slot.
    Message(Message),
    /// The credit has changed, so another pull may be needed.
    Credit,
    /// The consumer no longer exists.
    Gone,
}

/// The pulls of one replica from a durable consumer.
pub(crate) struct Pull {
    connection: Connection,
    consumer: PullConsumer,
    messages: Subscriber,
    inbox: Subject,
    queue: Queue,
    expires: Duration,
    credit: usize,
    /// The messages that have arrived since the last pull.
    batch: Batch,
    /// The time since which there has been credit without interruption.
    credit_since: Instant,
    /// The time by which all pulls must have been answered.
    silence: Pin<Box<Sleep>>,
    /// The number of established connections at the last check.
    times_connected: u64,
    write_off: Option<Pin<Box<dyn Future<Output = Fate> + Send>>>,
    /// The logged reasons for which the broker refused pulls.
    turned_down: LogOnce,
}

/// The state of a consumer whose pulls had no answer.
enum Fate {
    /// It exists, and no message of these pulls can arrive any more.
    Alive,
    Gone,
}

impl Pull {
    pub(crate) async fn new(
        connection: &Connection,
        consumer: PullConsumer,
        queue: Queue,
        expires: Duration,
    ) -> Result<Self, SubscribeError> {
        let inbox = Subject::from(connection.client().new_inbox());
        let messages = connection.client().subscribe(inbox.clone()).await?;
        let now = Instant::now();
        Ok(Self {
            connection: connection.clone(),
            consumer,
            messages,
            inbox,
            expires,
            credit: 0,
            queue,
            batch: Batch::begin(queue),
            credit_since: now,
            silence: Box::pin(tokio::time::sleep_until(now)),
            times_connected: connection.times_connected(),
            write_off: None,
            turned_down: LogOnce::default(),
        })
    }

    /// The number of messages that may still arrive.
    pub(crate) fn credit(&self) -> usize {
        self.credit
    }

    /// Asks for one message for each free slot without credit, unless these slots are too few for a request.
    pub(crate) async fn ask(&mut self, slots: usize, free: usize) {
        let room = free.saturating_sub(self.credit);
        let worth_it = room > 0 && (self.credit == 0 || room >= slots.div_ceil(4));
        if !worth_it || self.write_off.is_some() || !self.connection.is_connected() {
            return;
        }
        let now = Instant::now();
        if self.credit == 0 {
            self.credit_since = now;
            self.times_connected = self.connection.times_connected();
        } else if now - self.credit_since > LONGEST_CREDIT
            || self.times_connected != self.connection.times_connected()
        {
            self.begin_write_off();
            return;
        }
        let batch =
            BatchConfig { batch: room, expires: Some(self.expires), ..BatchConfig::default() };
        let request = self.consumer.request_batch(batch, self.inbox.clone());
        match timeout(ASK_TIMEOUT, request).await {
            Ok(Ok(())) => {
                self.credit += room;
                self.batch = Batch::begin(self.queue);
                self.silence.as_mut().reset(now + self.expires + GRACE);
                return;
            }
            Ok(Err(error)) => warn!(%error, "pull request failed; retrying"),
            Err(_) => warn!("pull request timed out; retrying"),
        }
        // The request may have been sent all the same. Without credit, only a write-off wakes the consumer up again.
        self.begin_write_off();
    }

    /// Waits for a message, or for a change of the credit. Nothing is lost when the future is
    /// dropped.
    pub(crate) async fn next(&mut self) -> Arrival {
        // Under load there is nearly always a message. A lost connection is then noticed at the next pull.
        if let Some(Some(message)) = self.messages.next().now_or_never() {
            return self.arrived(message);
        }
        let waiting = self.credit > 0 && self.write_off.is_none();
        tokio::select! {
            message = self.messages.next() => match message {
                Some(message) => self.arrived(message),
                None => Arrival::Gone,
            },
            () = self.connection.reconnected(self.times_connected), if waiting => {
                self.begin_write_off();
                Arrival::Credit
            }
            () = &mut self.silence, if waiting => {
                self.begin_write_off();
                Arrival::Credit
            }
            fate = async { self.write_off.as_mut().expect("checked").await },
                if self.write_off.is_some() =>
            {
                self.write_off = None;
                match fate {
                    Fate::Gone => Arrival::Gone,
                    Fate::Alive => {
                        debug!(credit = self.credit, "gave up pulls that had no answer");
                        self.credit = 0;
                        Arrival::Credit
                    }
                }
            }
            // Without a connection no pull is sent, so this must wake up when there is one.
            () = self.connection.reconnected(self.times_connected), if self.credit == 0 => {
                self.times_connected = self.connection.times_connected();
                Arrival::Credit
            }
        }
    }

    fn arrived(&mut self, message: Message) -> Arrival {
        match status_of(&message, &self.inbox) {
            None | Some(StatusCode::OK) => {
                self.spend(1);
                self.batch.add(&message);
                Arrival::Message(message)
            }
            Some(StatusCode::IDLE_HEARTBEAT) => Arrival::Credit,
            Some(status) => {
                let description = message.description.as_deref().unwrap_or_default();
                let pending = message
                    .headers
                    .as_ref()
                    .and_then(|headers| headers.get(PENDING_MESSAGES))
                    .and_then(|pending| pending.as_str().parse().ok());
                if status == StatusCode::REQUEST_TERMINATED
                    && description.eq_ignore_ascii_case("consumer deleted")
                {
                    return Arrival::Gone;
                }
                match pending {
                    Some(pending) => self.spend(pending),
                    // The status does not name its pull, nor the number of messages.
                    None if self.credit > 0 => {
                        if self.turned_down.is_first(description) {
                            warn!(%status, description, "the broker refused a pull request");
                        } else {
                            debug!(%status, description, "the broker refused a pull request again");
                        }
                        self.begin_write_off();
                    }
                    None => {}
                }
                Arrival::Credit
            }
        }
    }

    fn spend(&mut self, messages: usize) {
        self.credit = self.credit.saturating_sub(messages);
        if self.credit == 0 {
            // All is accounted for, so there is nothing left to write off.
            self.write_off = None;
        }
    }

    fn begin_write_off(&mut self) {
        if self.write_off.is_some() {
            return;
        }
        self.times_connected = self.connection.times_connected();
        let connection = self.connection.clone();
        let consumer = self.consumer.clone();
        let time_of_a_pull = self.expires + GRACE;
        self.write_off = Some(Box::pin(async move {
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            loop {
                match connection.ask(pin!(consumer.get_info())).await {
                    Some(Ok(_)) => break,
                    Some(Err(error)) => match error.kind() {
                        ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => {
                            return Fate::Gone;
                        }
                        _ => debug!(%error, "the broker does not describe the consumer"),
                    },
                    None => {}
                }
                backoff.wait().await;
            }
            tokio::time::sleep(time_of_a_pull).await;
            Fate::Alive
        }));
    }
}

/// The status of an answer to the pulls with this inbox. A stored message has none: brokers before 2.12.6 may keep one
/// in its headers, but its subject is not the inbox.
fn status_of(message: &Message, inbox: &Subject) -> Option<StatusCode> {
    message.status.filter(|_| message.subject == *inbox)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_message_is_no_answer() {
        let inbox = Subject::from_static("_INBOX.pull");
        let message = |subject: &'static str| Message {
            subject: subject.into(),
            reply: None,
            payload: "".into(),
            headers: None,
            status: Some(StatusCode::REQUEST_TERMINATED),
            description: Some("Consumer Deleted".to_owned()),
            length: 0,
        };
        let status = |subject| status_of(&message(subject), &inbox);
        assert_eq!(status("_INBOX.pull"), Some(StatusCode::REQUEST_TERMINATED));
        assert_eq!(status("greetings.1"), None);
    }
}
