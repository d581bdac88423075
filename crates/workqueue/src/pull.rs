//! Asks the broker for messages, never for more than there are free slots.
//!
//! A pull gives the broker *credit*: it may send that many messages, until the pull expires. The
//! credit ends with the messages that come, and with the status by which the broker says that a
//! pull has expired, and how many it did not send. Pulls expire soon, so that a process that hangs
//! takes a message only once, and one that stops need not wait long: it asks for nothing more, and
//! loses nothing that is on its way.
//!
//! A pull can get lost, with a connection or with the broker that led the consumer. Its credit is
//! written off only when it is certain that nothing can come of it any more: the broker has
//! answered something that was asked after it, and the time of a pull has passed since.

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
use crate::spans::Batch;

/// How much later than a pull expires its status may still come.
const GRACE: Duration = Duration::from_millis(250);

/// How long there may be credit without a moment in which there is none. After that no more is
/// asked for until there is: what is left may be the credit of a pull that got lost.
const LONGEST_CREDIT: Duration = Duration::from_secs(10);

/// The first ceiling of the time between two questions after a consumer, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The time limit for handing a request to the client.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// The header of a status that says how many messages the broker did not send.
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";

/// The result of waiting for messages.
pub(crate) enum Arrival {
    /// A message, which takes one slot.
    Message(Message),
    /// The credit has changed; there may be something to ask for.
    Credit,
    /// The consumer no longer exists.
    Gone,
}

/// A durable consumer, as one of its replicas sees it.
pub(crate) struct Pull {
    connection: Connection,
    consumer: PullConsumer,
    messages: Subscriber,
    inbox: Subject,
    expires: Duration,
    credit: usize,
    /// The messages that have come since the last request for more.
    batch: Batch,
    /// Since when there has been credit without interruption.
    credit_since: Instant,
    /// By when something must have been heard of all pulls.
    silence: Pin<Box<Sleep>>,
    /// The number of established connections at the last check.
    times_connected: u64,
    write_off: Option<Pin<Box<dyn Future<Output = Fate> + Send>>>,
    /// Why the broker turned down pulls, as far as it was logged.
    turned_down: LogOnce,
}

/// What became of a consumer whose pulls went unheard.
enum Fate {
    /// It is there, and nothing can come of these pulls any more.
    Alive,
    Gone,
}

impl Pull {
    pub(crate) async fn new(
        connection: &Connection,
        consumer: PullConsumer,
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
            batch: Batch::default(),
            credit_since: now,
            silence: Box::pin(tokio::time::sleep_until(now)),
            times_connected: connection.times_connected(),
            write_off: None,
            turned_down: LogOnce::default(),
        })
    }

    /// How many messages may still come.
    pub(crate) fn credit(&self) -> usize {
        self.credit
    }

    /// Asks for one message for each free slot without credit, unless there are too few such slots to be
    /// worth a request.
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
                let earlier = std::mem::replace(&mut self.batch, Batch::begin());
                earlier.end(&self.consumer.cached_info().stream_name);
                self.silence.as_mut().reset(now + self.expires + GRACE);
            }
            Ok(Err(error)) => warn!(%error, "pull request failed; retrying"),
            Err(_) => warn!("pull request timed out; retrying"),
        }
    }

    /// Waits for a message, or for a change of the credit. Nothing is lost when the future is
    /// dropped.
    pub(crate) async fn next(&mut self) -> Arrival {
        // Under load there nearly always is one. A connection that was lost is then noticed when
        // more is asked for.
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
            // Without a connection nothing is asked for, so this must wake up when there is one.
            () = self.connection.reconnected(self.times_connected), if self.credit == 0 => {
                self.times_connected = self.connection.times_connected();
                Arrival::Credit
            }
        }
    }

    fn arrived(&mut self, message: Message) -> Arrival {
        match message.status {
            None | Some(StatusCode::OK) => {
                self.spend(1);
                self.batch.add(message.headers.as_ref());
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
                    // It does not say which pull it ends, or by how much.
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
