//! Takes messages from a queue, has them handled, and settles them.

mod pull;
pub(crate) mod pulse;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use contract::dead_letters::{self, Verdict};
use contract::headers::Trace;
use contract::queues::{DecodeError, Message, Queue};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::clock::now;
use crate::connection::Connection;
use crate::crew::{Crew, Work};
use crate::delivery::{Delivery, Reader};
use crate::metrics::{QueueMetrics, Settled};
use crate::publisher::{Publisher, Refusal};
use crate::settle::{Outcome, Settlement, settle};
use pull::{Arrival, Pull};
use pulse::Pulse;

/// The longest time for which a pull waits for messages. It is what a service that stops may wait
/// for, and what a broker may send to one that hangs.
const LONGEST_PULL: Duration = Duration::from_secs(1);

/// How far the clock of whoever asked may be ahead of ours. Facts are kept that much longer than
/// the promises hold; a request from a later time would outlive them.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// Does what the messages of one queue ask for.
pub trait Handler: Send + Sync + 'static {
    /// The message, which also says from which queue.
    type Message: Message;

    /// Handles one message. It may be called again with the same message, at the same time too,
    /// and may be dropped at any await: every effect must be one that can be repeated.
    ///
    /// Returning `Ok` means that the effect is durable, and lets the broker forget the message.
    fn handle(
        &self,
        message: Self::Message,
        trace: &Trace,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Why a message could not be handled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// It may succeed another time.
    #[error("{0}")]
    Transient(String),
    /// It never will.
    #[error("{0}")]
    Permanent(String),
}

impl From<Refusal> for HandlerError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooLarge(_) => Self::Permanent(refusal.to_string()),
            Refusal::Refused(_) => Self::Transient(refusal.to_string()),
        }
    }
}

/// What all deliveries of one consumer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) queue: Queue,
    pub(crate) instance: String,
    pub(crate) concurrency: usize,
    pub(crate) max_attempts: u64,
    pub(crate) ack_wait: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) facts_max_age: Duration,
    pub(crate) dead_letters: Publisher,
    pub(crate) metrics: QueueMetrics,
    /// Cancelled when there is no time left to finish what is in flight.
    pub(crate) abandon: CancellationToken,
}

/// Why a consumer stopped consuming.
pub(crate) enum End {
    /// It was told to, and has settled all that it took.
    Stopped,
    /// It is not there any more on the broker, or not as it was.
    Gone,
}

/// Consumes until `stop`, and then until all that was asked for is settled. The crew outlives the
/// consumer: what is being handled goes on while the consumer is declared again.
pub(crate) async fn consume<H: Handler>(
    connection: &Connection,
    consumer: PullConsumer,
    rules: &Arc<Rules>,
    handler: &Arc<H>,
    stop: &CancellationToken,
    crew: &mut Crew<Assignment<H>>,
) -> Result<End, async_nats::SubscribeError> {
    // Sooner than a delivery comes again, and sooner than the drain ends.
    let expires = LONGEST_PULL.min(rules.ack_wait / 2).min(rules.drain_timeout / 2);
    let expires = expires.max(Duration::from_millis(10));
    let mut pull = Pull::new(connection, consumer, expires).await?;
    let mut reader = Reader::new(connection);
    // Often enough that one beat may get lost.
    let pulse = Arc::new(Pulse::start(rules.ack_wait / 3, &rules.abandon));
    loop {
        let taking = !stop.is_cancelled();
        if taking {
            let free = rules.concurrency.saturating_sub(crew.under_way());
            pull.ask(rules.concurrency, free).await;
        } else if pull.credit() == 0 || !connection.is_connected() || rules.abandon.is_cancelled() {
            // Nothing more can come, so only what is in flight is left.
            crew.finish().await;
            return Ok(End::Stopped);
        }
        tokio::select! {
            // What has come is taken first, because there most often is something. The others only end
            // the wait: whatever they tell of is looked at above in each turn.
            biased;
            arrival = pull.next() => match arrival {
                Arrival::Message(message) => {
                    match Delivery::new(message, &mut reader, rules.queue, connection) {
                        Ok(delivery) => crew.give(Assignment {
                            delivery,
                            rules: Arc::clone(rules),
                            handler: Arc::clone(handler),
                            pulse: Arc::clone(&pulse),
                        }),
                        Err(error) => error!(error, "a delivery that does not say which it is"),
                    }
                }
                Arrival::Credit => {}
                Arrival::Gone => return Ok(End::Gone),
            },
            () = crew.progress() => {}
            () = stop.cancelled(), if taking => {}
            () = rules.abandon.cancelled(), if !taking => {}
        }
    }
}

/// One delivery, and what is to be done with it.
pub(crate) struct Assignment<H> {
    delivery: Delivery,
    rules: Arc<Rules>,
    handler: Arc<H>,
    pulse: Arc<Pulse>,
}

impl<H: Handler> Work for Assignment<H> {
    /// Handles the delivery and settles it.
    async fn carry_out(self) {
        let Self { delivery, rules, handler, pulse } = self;
        let started = Instant::now();
        let _in_flight = InFlight::new(&rules.metrics);
        let outcome = {
            let work = pin!(handle(&delivery, &rules, &*handler));
            delivery.keep_alive(&pulse, work).await.unwrap_or(Outcome::Interrupted)
        };
        let settlement = settle(&outcome, delivery.attempt(), rules.max_attempts);
        let queue = rules.queue.stream;
        let id = delivery.key();
        let attempt = delivery.attempt().number();
        let settled = match settlement {
            Settlement::Ack => {
                delivery.ack().await;
                debug!(queue, id, attempt, "acked");
                Settled::Ack
            }
            Settlement::Nak { delay } => {
                delivery.nak(delay).await;
                info!(queue, id, attempt, ?outcome, "given back");
                Settled::Nak
            }
            Settlement::DeadLetter { reason } => {
                // In a box, because it is rare, and would make every other delivery larger.
                let mut burial = Box::pin(bury(&delivery, &rules, &reason));
                let buried = delivery.keep_alive(&pulse, burial.as_mut()).await;
                if buried == Some(true) {
                    delivery.ack().await;
                    warn!(queue, id, attempt, reason, "dead-lettered");
                    Settled::DeadLetter
                } else {
                    // It stays in its queue, where nothing is lost, and is tried again ever later.
                    let failed = Outcome::Failed("it could not be buried".to_owned());
                    if let Settlement::Nak { delay } = settle(&failed, delivery.attempt(), u64::MAX)
                    {
                        delivery.nak(delay).await;
                    }
                    Settled::Nak
                }
            }
        };
        rules.metrics.settled(settled, started.elapsed());
    }
}

async fn handle<H: Handler>(delivery: &Delivery, rules: &Rules, handler: &H) -> Outcome {
    // Before the work, so that a message that ends whoever handles it comes to an end, too.
    if delivery.attempt().number() > rules.max_attempts {
        return Outcome::Exhausted;
    }
    let decoded = H::Message::decode(delivery.subject(), delivery.headers(), delivery.body());
    let message = match decoded {
        Ok(message) => message,
        Err(error @ DecodeError::NewerVersion(_)) => {
            return Outcome::NewerVersion(error.to_string());
        }
        Err(error) => return Outcome::Malformed(error.to_string()),
    };
    if let Some(outcome) = untimely(message.requested_at(), now(), rules.facts_max_age) {
        return outcome;
    }
    match handler.handle(message, &Trace::of(delivery.headers())).await {
        Ok(()) => Outcome::Done,
        Err(HandlerError::Transient(reason)) => Outcome::Failed(reason),
        Err(HandlerError::Permanent(reason)) => Outcome::Impossible(reason),
    }
}

/// Why a message of this age is not to be worked on, if it is not. The facts that stand guard over
/// a request are kept for a limited time, so nothing may happen to it after that.
fn untimely(requested_at: Timestamp, now: Timestamp, facts_max_age: Duration) -> Option<Outcome> {
    let age = now.duration_since(requested_at);
    if age > SignedDuration::try_from(facts_max_age).unwrap_or(SignedDuration::MAX) {
        return Some(Outcome::Expired(format!(
            "asked at {requested_at}, and nothing older than {facts_max_age:?} is worked on"
        )));
    }
    if age < -CLOCK_TOLERANCE {
        return Some(Outcome::Malformed(format!(
            "asked at {requested_at}, which is more than an hour ahead of {now}"
        )));
    }
    None
}

/// Moves a message to the dead letters. Tells whether it is there.
async fn bury(delivery: &Delivery, rules: &Rules, reason: &str) -> bool {
    let verdict =
        Verdict { reason, attempts: delivery.attempt().number(), at: now(), by: &rules.instance };
    let dead_letter = || delivery.original().dead_letter(&verdict);
    match rules.dead_letters.publish(dead_letter).await {
        Ok(_) => true,
        Err(refusal) => {
            let stream = dead_letters::STREAM;
            error!(%refusal, stream, %delivery, "cannot move a message to the dead letters");
            false
        }
    }
}

/// Counts a delivery for as long as it lives, however it ends.
struct InFlight<'a>(&'a QueueMetrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a QueueMetrics) -> Self {
        metrics.in_flight(1);
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_request_older_than_its_facts_is_not_worked_on() {
        let noon = at("2026-01-02T12:00:00Z");
        assert_eq!(untimely(at("2026-01-01T12:00:00Z"), noon, DAY), None);
        let outcome = untimely(at("2026-01-01T11:59:59Z"), noon, DAY);
        assert!(matches!(outcome, Some(Outcome::Expired(_))), "{outcome:?}");
        assert_eq!(untimely(Timestamp::MIN, noon, Duration::MAX), None);
    }

    #[test]
    fn a_request_from_a_later_time_than_its_facts_can_guard_is_not_worked_on() {
        let noon = at("2026-01-02T12:00:00Z");
        assert_eq!(untimely(at("2026-01-02T13:00:00Z"), noon, DAY), None);
        let outcome = untimely(at("2026-01-02T13:00:01Z"), noon, DAY);
        assert!(matches!(outcome, Some(Outcome::Malformed(_))), "{outcome:?}");
    }
}
