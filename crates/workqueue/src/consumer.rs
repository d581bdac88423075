//! Consumes one lane of a queue: pulls jobs, never more than there is room for, runs them, and settles them.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::FutureExt;
use futures_util::future::join_all;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::background::panic_text;
use crate::blocking::{self, Blocking};
use crate::clock::now;
use crate::delivery::Delivery;
use crate::handler::{Attempt, Context, Failure, Handler, RetryPolicy, Shared};
use crate::job::Job;
use crate::metrics::QueueMetrics;
use crate::publisher::Publisher;
use crate::pull::{Arrival, Pull};
use crate::queue::Lane;
use crate::running::Running;
use crate::settings::Settings;
use crate::settle::{Delay, GIVE_BACK, Outcome, Settlement, retry_delay, settle};
use crate::slots::Slots;
use crate::spans::Span;
use crate::trace::Trace;

/// The longest time for which a pull waits for messages. A stopping service may wait that long, and a
/// broker may send that long to one that hangs.
const LONGEST_PULL: Duration = Duration::from_secs(1);

/// Consumes the jobs of one lane of a queue for as long as a service runs.
pub(crate) struct Consumer<H> {
    pub(crate) handler: Arc<H>,
    pub(crate) lane: Lane,
    /// How many jobs are handled at a time: there may be several in a message.
    pub(crate) places: Semaphore,
    /// In which the jobs of all lanes are handled, where there are several or a rate limit.
    pub(crate) slots: Option<Slots>,
    /// That of messages that are not decoded.
    pub(crate) policy: RetryPolicy,
    /// The queue itself, for jobs that are put off.
    pub(crate) queue: Arc<Publisher>,
    pub(crate) dead_letters: Arc<Publisher>,
    pub(crate) metrics: QueueMetrics,
    pub(crate) running: Running,
    pub(crate) settings: Settings,
}

/// Why a consumer stopped consuming.
pub(crate) enum End {
    /// It was told to, and nothing more can come.
    Stopped,
    /// It is not there any more on the broker, or not as it was.
    Gone,
}

/// What jobs have in common for as long as the consumer on the broker is the same.
struct Binding {
    /// How often to tell the broker that a job is being handled.
    heartbeat: Duration,
    blocking: Blocking,
    shared: Arc<Shared>,
}

/// A delivery that is being handled.
struct Handling {
    policy: RetryPolicy,
    span: Span,
}

impl<H: Handler> Consumer<H> {
    /// Consumes until the service stops, and then until all that was asked for has come.
    pub(crate) async fn consume(
        self: &Arc<Self>,
        consumer: PullConsumer,
        facts_max_age: Duration,
        in_flight: &mut JoinSet<()>,
    ) -> Result<End, async_nats::SubscribeError> {
        let Running { producer, connection, stopping, abandoned, .. } = &self.running;
        let Settings { concurrency, drain_timeout, .. } = self.settings;
        let ack_wait = consumer.cached_info().config.ack_wait;
        let (producer, instance) = (producer.clone(), self.settings.instance.clone());
        let binding = Arc::new(Binding {
            // Often enough that one heartbeat may get lost.
            heartbeat: ack_wait / 3,
            blocking: Blocking::default(),
            shared: Arc::new(Shared { lane: self.lane, producer, instance, facts_max_age }),
        });
        // Sooner than a delivery comes again, and sooner than the drain ends.
        let expires = LONGEST_PULL.min(ack_wait / 2).min(drain_timeout / 2);
        let expires = expires.max(Duration::from_millis(10));
        let mut pull = Pull::new(connection, consumer, expires).await?;
        let slots = self.slots.as_ref();
        let mut room = slots.map_or_else(|| watch::channel(()).1, Slots::watch_room);
        loop {
            while let Some(ended) = in_flight.try_join_next() {
                self.log_panic(ended);
            }
            let taking = !stopping.is_cancelled();
            if taking {
                let free = concurrency.saturating_sub(in_flight.len());
                let free = free.min(self.places.available_permits());
                match slots.and_then(|slots| Some((slots, slots.room(self.lane.priority)?))) {
                    Some((slots, (room, on_their_way))) => {
                        pull.ask(room, free.min(on_their_way)).await;
                        slots.set_on_their_way(self.lane.priority, pull.credit());
                    }
                    None => pull.ask(concurrency, free).await,
                }
            } else if pull.credit() == 0 || !connection.is_connected() || abandoned.is_cancelled() {
                // Nothing more can come, so only what is in flight is left.
                return Ok(End::Stopped);
            }
            tokio::select! {
                // What has come is taken first, because there most often is something. The others only
                // end the wait: each turn looks above at what they tell of.
                biased;
                arrival = pull.next() => match arrival {
                    Arrival::Message(message) => {
                        match Delivery::new(message, self.lane.queue, connection) {
                            // In a box, because a task's future is moved several times.
                            Ok(delivery) => {
                                let work = Arc::clone(self).work_on(Arc::clone(&binding), delivery);
                                in_flight.spawn(Box::pin(work));
                            }
                            Err(error) => {
                                error!(error, "delivery without JetStream metadata; skipped");
                            }
                        }
                    }
                    Arrival::Credit => {}
                    Arrival::Gone => return Ok(End::Gone),
                },
                Some(ended) = in_flight.join_next() => self.log_panic(ended),
                Ok(()) = room.changed(), if taking => {}
                () = stopping.cancelled(), if taking => {}
                () = abandoned.cancelled(), if !taking => {}
            }
        }
    }

    /// Handles the job of a message, or those of a bundle.
    async fn work_on(self: Arc<Self>, binding: Arc<Binding>, delivery: Delivery) {
        match delivery.jobs() {
            None => {
                self.work(&binding, &delivery).await;
            }
            // In a box, because it would make the work on any other message larger.
            Some(jobs) => Box::pin(self.work_on_bundle(&binding, &delivery, &jobs)).await,
        }
    }

    /// Handles the jobs of a bundle, and acks it once all of them are settled. One that is delivered again becomes a
    /// message for each job, where there is room for them.
    async fn work_on_bundle(&self, binding: &Binding, bundle: &Delivery, jobs: &[Delivery]) {
        let is_split = async {
            let attempt = bundle.attempt();
            let split = jobs.iter().map(|job| job.put_off(&self.queue, attempt, Duration::ZERO));
            bundle.is_redelivered() && all(split).await
        };
        let work =
            async { is_split.await || all(jobs.iter().map(|job| self.work(binding, job))).await };
        let (every, abandoned) = (binding.heartbeat, &self.running.abandoned);
        match bundle.keep_alive(pin!(work), every, abandoned).await {
            (Some(true), _) => bundle.ack().await,
            _ => bundle.nak(GIVE_BACK).await,
        }
    }

    /// Handles a delivery and settles it. Returns whether nothing more is to be done about it, which for a job of a
    /// bundle may be otherwise.
    async fn work(&self, binding: &Binding, delivery: &Delivery) -> bool {
        if let Some(delay) = delivery.waits() {
            // No attempt, and nothing that is to be counted. The broker counts it, so that only the first may be so.
            let attempt = delivery.attempt();
            if delivery.is_redelivered()
                && Box::pin(delivery.put_off(&self.queue, attempt, delay)).await
            {
                delivery.ack().await;
            } else {
                delivery.nak(Delay::Exactly(delay)).await;
            }
            debug!(delivery = %delivery, ?delay, "waits");
            return true;
        }
        let started = Instant::now();
        let _in_flight = self.metrics.in_flight();
        let (queue, id) = (self.lane.queue.stream, delivery.key());
        let (every, abandoned) = (binding.heartbeat, &self.running.abandoned);
        let mut handling = Handling { policy: self.policy, span: Span::default() };
        let (outcome, heartbeats) = {
            let run = self.handle(delivery, &binding.shared, &mut handling);
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
        handling.span.end_with(&outcome);
        let counter = self.settle(delivery, &outcome, &handling, every).await;
        if let Some(counter) = counter {
            self.metrics.settled(counter, started.elapsed(), &handling.span);
        }
        counter.is_some()
    }

    /// Handles a delivery, and notes what becomes known of it meanwhile.
    async fn handle(
        &self,
        delivery: &Delivery,
        shared: &Arc<Shared>,
        handling: &mut Handling,
    ) -> Outcome {
        let _place = self.places.acquire().await;
        let slot = match &self.slots {
            Some(slots) => {
                let (priority, has_more) = (self.lane.priority, delivery.has_more());
                Some(slots.take(priority, delivery.sequence(), has_more).await)
            }
            None => None,
        };
        let started_at = slot.as_ref().map_or_else(now, |slot| slot.given_at);
        handling.span = Span::process(delivery, self.lane.queue.consumer);
        let attempt = delivery.attempt();
        let decoded = H::Job::decode(delivery.subject(), delivery.headers(), delivery.body());
        let (id, job) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return Outcome::Undecodable(error),
        };
        let policy = self.handler.retry_policy_of(&job).or_attempts(self.settings.max_attempts);
        handling.policy = policy;
        // Before the work, so that a job which ends every process that handles it comes to an end, too.
        if policy.max_attempts.is_some_and(|most| attempt.number() > most) {
            return Outcome::Exhausted;
        }
        let trace = Trace::of(delivery.headers());
        let (trace, shared) = (handling.span.trace(&trace).into_owned(), Arc::clone(shared));
        let cx = Context::new(id, attempt, started_at, trace, shared);
        if let Err(rejection) = self.handler.admit(&job, &cx) {
            return Outcome::Rejected(rejection);
        }
        let mut work = pin!(self.handler.handle(job, &cx));
        let handled = match policy.timeout {
            None => work.await,
            Some(limit) => cx
                .timeout(limit, work.as_mut())
                .await
                .unwrap_or_else(|| Err(Failure::retry(format!("timed out after {limit:?}")))),
        };
        handled.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    /// Settles a delivery. Returns the counter of how that was possible; none where a job of a bundle cannot be settled
    /// without the others.
    async fn settle(
        &self,
        delivery: &Delivery,
        outcome: &Outcome,
        Handling { policy, span }: &Handling,
        every: Duration,
    ) -> Option<&Counter> {
        let queue = self.lane.queue.stream;
        let (id, attempt) = (delivery.key(), delivery.attempt().number());
        let mut settlement = settle(outcome, delivery.attempt(), policy);
        // Only for a line that is written.
        let trace = || match span.trace_id() {
            Some(id) => Some(id.to_string()),
            None => Trace::id_of(delivery.headers()?).map(str::to_owned),
        };
        let _settling = span.settle(delivery, &settlement);
        if let Settlement::Snooze { delay } = settlement {
            if self.put_off(delivery, delivery.attempt(), delay, every).await {
                info!(queue, id, attempt, trace = trace(), %outcome, "snoozed");
                return Some(&self.metrics.snoozes);
            }
            let counted = RetryPolicy { snoozes_count: true, ..*policy };
            settlement = settle(outcome, delivery.attempt(), &counted);
        }
        match settlement {
            Settlement::Ack => {
                delivery.ack().await;
                debug!(queue, id, attempt, trace = trace(), "acked");
                Some(&self.metrics.acks)
            }
            Settlement::Nak { delay } => {
                if delivery.is_bundled() {
                    let next = Attempt::new(attempt.saturating_add(1));
                    if matches!(outcome, Outcome::Interrupted)
                        || !self.put_off(delivery, next, delay.draw(), every).await
                    {
                        return None;
                    }
                } else {
                    delivery.nak(delay).await;
                }
                info!(queue, id, attempt, trace = trace(), %outcome, "given back");
                Some(&self.metrics.naks)
            }
            Settlement::DeadLetter { reason } => {
                let by = &self.settings.instance;
                let mut moving = Box::pin(delivery.dead_letter(&self.dead_letters, &reason, by));
                let moving = moving.as_mut();
                let (moved, _) = delivery.keep_alive(moving, every, &self.running.abandoned).await;
                if moved == Some(true) {
                    delivery.ack().await;
                    warn!(queue, id, attempt, trace = trace(), reason, "dead-lettered");
                    return Some(&self.metrics.dead_letters);
                }
                if delivery.is_bundled() {
                    return None;
                }
                // It stays in its queue, where nothing is lost, and is tried again ever later.
                delivery.nak(retry_delay(delivery.attempt(), policy)).await;
                Some(&self.metrics.naks)
            }
            Settlement::Snooze { .. } => unreachable!("this policy counts it"),
        }
    }

    /// Publishes a copy that takes the place of a delivery, to be handled after this time in this attempt. Returns
    /// whether it is there.
    async fn put_off(
        &self,
        delivery: &Delivery,
        attempt: Attempt,
        delay: Duration,
        every: Duration,
    ) -> bool {
        // In a box, because it is rare, and would make every other delivery larger.
        let mut publishing = Box::pin(delivery.put_off(&self.queue, attempt, delay));
        let publishing = publishing.as_mut();
        let (is_there, _) = delivery.keep_alive(publishing, every, &self.running.abandoned).await;
        if is_there == Some(true) {
            delivery.ack().await;
        }
        is_there == Some(true)
    }

    /// A panic of the handler is caught before. This one leaves the job to be delivered again.
    pub(crate) fn log_panic(&self, ended: Result<(), JoinError>) {
        if let Err(panic) = ended.map_err(JoinError::into_panic) {
            let (queue, panic) = (self.lane.queue.stream, panic_text(&*panic));
            error!(queue, panic, "settling a delivery panicked");
        }
    }
}

/// Does all of these at once. Returns whether each of them is done for.
async fn all(doing: impl Iterator<Item = impl Future<Output = bool>>) -> bool {
    join_all(doing).await.into_iter().all(|is_done| is_done)
}
