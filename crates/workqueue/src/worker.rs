//! Works on deliveries, each on its own: run, settle.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::background::panic_text;
use crate::blocking::{self, Blocking};
use crate::clock::now;
use crate::delivery::Delivery;
use crate::handler::{Context, Failure, Handler, RetryPolicy, Shared};
use crate::headers::Trace;
use crate::job::Job;
use crate::metrics::QueueMetrics;
use crate::publisher::Publisher;
use crate::queue::Lane;
use crate::settle::{Delay, Outcome, Settlement, retry_delay, settle};
use crate::slots::Slots;

/// Works on the jobs of one lane of a queue.
pub(crate) struct Worker<H> {
    pub(crate) handler: Arc<H>,
    pub(crate) lane: Lane,
    /// In which the jobs of all lanes are handled, where there are several or a rate limit.
    pub(crate) slots: Option<Slots>,
    pub(crate) instance: String,
    /// Cancelled when there is no time left to finish what is in flight.
    pub(crate) abandoned: CancellationToken,
    pub(crate) policy: RetryPolicy,
    /// The queue itself, for jobs that are put off.
    pub(crate) queue: Arc<Publisher>,
    pub(crate) dead_letters: Arc<Publisher>,
    pub(crate) metrics: QueueMetrics,
}

/// What jobs have in common for as long as the consumer on the broker is the same.
pub(crate) struct Binding {
    /// How often to tell the broker that a job is being handled.
    pub(crate) heartbeat: Duration,
    pub(crate) blocking: Blocking,
    pub(crate) shared: Arc<Shared>,
}

impl<H: Handler> Worker<H> {
    /// Handles a delivery and settles it.
    pub(crate) async fn work(self: Arc<Self>, binding: Arc<Binding>, delivery: Delivery) {
        if let Some(delay) = delivery.waits() {
            // No attempt, and nothing that is to be counted.
            delivery.nak(Delay::Exactly(delay)).await;
            debug!(delivery = %delivery, ?delay, "waits");
            return;
        }
        let started = Instant::now();
        let _in_flight = self.metrics.in_flight();
        let (queue, id) = (self.lane.queue.stream, delivery.key());
        let (every, abandoned) = (binding.heartbeat, &self.abandoned);
        let (outcome, heartbeats) = {
            let run = self.handle(&delivery, &binding.shared);
            let run = pin!(AssertUnwindSafe(run).catch_unwind());
            let (ended, heartbeats) = delivery.keep_alive(run, every, abandoned).await;
            let outcome = match ended {
                Some(Ok(outcome)) => outcome,
                Some(Err(panic)) => {
                    let panic = panic_text(&*panic);
                    error!(queue, id, panic, "the handler panicked");
                    Outcome::Failed(Failure::retry(format!("the handler panicked: {panic}")))
                }
                None => Outcome::Interrupted,
            };
            (outcome, heartbeats)
        };
        let handled = started.elapsed();
        if blocking::is_late(handled, every, heartbeats) {
            binding.blocking.warn(queue, id, handled);
        }
        let counter = self.settle(&delivery, &outcome, every).await;
        self.metrics.settled(counter, started.elapsed());
    }

    async fn handle(&self, delivery: &Delivery, shared: &Arc<Shared>) -> Outcome {
        let slot = match &self.slots {
            Some(slots) => {
                let (priority, has_more) = (self.lane.priority, delivery.has_more());
                Some(slots.take(priority, delivery.sequence(), has_more).await)
            }
            None => None,
        };
        let started_at = slot.as_ref().map_or_else(now, |slot| slot.given_at);
        // Before the work, so that a job which ends every process that handles it comes to an end, too.
        let attempt = delivery.attempt();
        if self.policy.max_attempts.is_some_and(|most| attempt.number() > most) {
            return Outcome::Exhausted;
        }
        let decoded = H::Job::decode(delivery.subject(), delivery.headers(), delivery.body());
        let (id, job) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return Outcome::Undecodable(error),
        };
        let (trace, shared) = (Trace::of(delivery.headers()), Arc::clone(shared));
        let cx = Context::new(id, attempt, started_at, trace, shared);
        if let Err(rejection) = self.handler.admit(&job, &cx) {
            return Outcome::Rejected(rejection);
        }
        let mut work = pin!(self.handler.handle(job, &cx));
        let handled = match self.policy.timeout {
            None => work.await,
            Some(limit) => cx
                .timeout(limit, work.as_mut())
                .await
                .unwrap_or_else(|| Err(Failure::retry(format!("timed out after {limit:?}")))),
        };
        handled.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    /// Settles a delivery. Gives the counter of how that was possible.
    async fn settle(&self, delivery: &Delivery, outcome: &Outcome, every: Duration) -> &Counter {
        let queue = self.lane.queue.stream;
        let (id, attempt) = (delivery.key(), delivery.attempt().number());
        let mut settlement = settle(outcome, delivery.attempt(), &self.policy);
        if let Settlement::Snooze { delay } = settlement {
            // In a box, because it is rare, and would make every other delivery larger.
            let mut publishing = Box::pin(delivery.snooze(&self.queue, delay));
            let publishing = publishing.as_mut();
            let (is_there, _) = delivery.keep_alive(publishing, every, &self.abandoned).await;
            if is_there == Some(true) {
                delivery.ack().await;
                info!(queue, id, attempt, %outcome, "put off");
                return &self.metrics.snoozes;
            }
            let counted = RetryPolicy { snoozes_count: true, ..self.policy };
            settlement = settle(outcome, delivery.attempt(), &counted);
        }
        match settlement {
            Settlement::Ack => {
                delivery.ack().await;
                debug!(queue, id, attempt, "acked");
                &self.metrics.acks
            }
            Settlement::Nak { delay } => {
                delivery.nak(delay).await;
                info!(queue, id, attempt, %outcome, "given back");
                &self.metrics.naks
            }
            Settlement::DeadLetter { reason } => {
                let by = &self.instance;
                let mut moving = Box::pin(delivery.dead_letter(&self.dead_letters, &reason, by));
                let moving = moving.as_mut();
                let (moved, _) = delivery.keep_alive(moving, every, &self.abandoned).await;
                if moved == Some(true) {
                    delivery.ack().await;
                    warn!(queue, id, attempt, reason, "dead-lettered");
                    return &self.metrics.dead_letters;
                }
                // It stays in its queue, where nothing is lost, and is tried again ever later.
                delivery.nak(retry_delay(delivery.attempt(), &self.policy)).await;
                &self.metrics.naks
            }
            Settlement::Snooze { .. } => unreachable!("this policy counts it"),
        }
    }
}
