//! Consumes one lane of a queue: pulls jobs, at most as many as its service has slots, handles them, and settles them.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::FutureExt;
use futures_util::future::join_all;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
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

/// The longest time for which a pull waits for messages. A stopping service may have to wait for it, and for this time
/// the broker may send messages to a process that hangs.
const LONGEST_PULL: Duration = Duration::from_secs(1);

/// How long a stopping service waits until the copies of the jobs of a message are stored. This is a part of the time in
/// which it gives jobs back.
const TIME_TO_COPY: Duration = Duration::from_millis(500);

/// Consumes the jobs of one lane of a queue for as long as a service runs.
pub(crate) struct Consumer<H> {
    pub(crate) handler: Arc<H>,
    pub(crate) lane: Lane,
    /// Limits the jobs that are handled at a time. A message may have several jobs.
    pub(crate) places: Semaphore,
    /// The slots that all lanes share, if there are several lanes or a rate limit.
    pub(crate) slots: Option<Slots>,
    /// The policy for messages that are not decoded.
    pub(crate) policy: RetryPolicy,
    /// The queue itself, for copies of its messages.
    pub(crate) queue: Arc<Publisher>,
    pub(crate) dead_letters: Arc<Publisher>,
    pub(crate) metrics: QueueMetrics,
    pub(crate) running: Running,
    pub(crate) settings: Settings,
}

/// Why a consumer stopped consuming.
pub(crate) enum End {
    /// The service stops, and no more messages can arrive.
    Stopped,
    /// The settings of the consumer or the age of the facts have changed on the broker, and no more messages can arrive.
    Changed,
    /// The consumer on the broker was deleted or replaced.
    Gone,
}

/// The state that jobs share while the consumer on the broker is the same.
struct Binding {
    /// The interval of the heartbeats for a job that is being handled.
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
    /// Consumes until the service stops, or the settings on the broker have `changed`, and then until all requested
    /// messages have arrived.
    pub(crate) async fn consume(
        self: &Arc<Self>,
        consumer: PullConsumer,
        facts_max_age: Duration,
        changed: &CancellationToken,
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
        // A pull ends before the redelivery of a message, and before the end of the drain.
        let expires = LONGEST_PULL.min(ack_wait / 2).min(drain_timeout / 2);
        let expires = expires.max(Duration::from_millis(10));
        let mut pull = Pull::new(connection, consumer, self.lane.queue, expires).await?;
        let slots = self.slots.as_ref();
        let mut room = slots.map_or_else(|| watch::channel(()).1, Slots::watch_room);
        loop {
            while let Some(ended) = in_flight.try_join_next() {
                self.log_panic(ended);
            }
            let taking = !(stopping.is_cancelled() || changed.is_cancelled());
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
                // No more messages can arrive, so only the jobs in flight are left.
                return Ok(if stopping.is_cancelled() { End::Stopped } else { End::Changed });
            }
            // A bundle needs places for its jobs, and is in flight until the last of them is settled.
            let lacks_places = taking
                && pull.credit() == 0
                && self.places.available_permits() == 0
                && in_flight.len() < concurrency;
            tokio::select! {
                // Arrived messages come first, because that is the usual case. The other branches only end the
                // wait: the code above checks their conditions at each turn.
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
                Ok(_place) = self.places.acquire(), if lacks_places => {}
                Ok(()) = room.changed(), if taking => {}
                () = stopping.cancelled(), if taking => {}
                () = changed.cancelled(), if taking => {}
                () = abandoned.cancelled(), if !taking => {}
            }
        }
    }

    /// Handles the job of a message, or those of a bundle.
    async fn work_on(self: Arc<Self>, binding: Arc<Binding>, delivery: Delivery) {
        match delivery.jobs() {
            // The delay is for a job of a bundle.
            None => drop(self.work(&binding, &delivery).await),
            // In a box, because it would make the work on any other message larger.
            Some(jobs) => Box::pin(self.work_on_bundle(&binding, &delivery, &jobs)).await,
        }
    }

    /// Handles the jobs of a bundle, and acks the bundle once all of them are settled. A redelivered bundle is split
    /// into a message for each job for which the queue has room, and only the others are handled here. If a job can be
    /// settled only with its bundle, the bundle is redelivered after the longest delay of such a job. At a stop each
    /// job that is not settled becomes a message of its own, so that the others are not handled again.
    async fn work_on_bundle(&self, binding: &Binding, bundle: &Delivery, jobs: &[Delivery]) {
        let work = async {
            // Those that are messages of their own are handled as such.
            let left = jobs.iter().map(async |job| {
                let attempt = bundle.attempt();
                let is_split = bundle.is_redelivered()
                    && job.publish_copy(&self.queue, attempt, Duration::ZERO).await;
                if is_split {
                    job.set_settled();
                }
                (!is_split).then_some(job)
            });
            let left = join_all(left).await.into_iter().flatten();
            let settled = join_all(left.map(|job| self.work(binding, job))).await;
            settled.into_iter().filter_map(Result::err).max()
        };
        let (every, abandoned) = (binding.heartbeat, &self.running.abandoned);
        let (delay, _) = bundle.keep_alive(pin!(work), every, abandoned).await;
        match delay {
            Some(None) => bundle.ack(),
            _ if abandoned.is_cancelled() && self.replace_at_the_stop(bundle, jobs).await => {}
            Some(Some(delay)) => bundle.nak(Delay::Exactly(delay)).await,
            None => bundle.nak(GIVE_BACK).await,
        }
    }

    /// Handles a delivery and settles it. A job of a bundle may need its bundle to be redelivered, after the delay in
    /// the error.
    async fn work(&self, binding: &Binding, delivery: &Delivery) -> Result<(), Duration> {
        if let Some(delay) = delivery.waits() {
            // This is not an attempt, and no metric counts it. But the broker counts the delivery, so only the first
            // one may be given back; a later one is replaced by a copy.
            let attempt = delivery.attempt();
            if !(delivery.is_redelivered()
                && self.replace(delivery, attempt, delay, binding.heartbeat).await)
            {
                delivery.nak(Delay::Exactly(delay)).await;
            }
            debug!(delivery = %delivery, ?delay, "waits");
            return Ok(());
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
                    let (panic, trace) = (panic_text(&*panic), delivery.trace_id());
                    error!(queue, id, trace, panic, "the handler panicked");
                    Outcome::Failed(Failure::retry(format!("the handler panicked: {panic}")))
                }
                None => Outcome::Interrupted,
            };
            (outcome, heartbeats)
        };
        let handled = started.elapsed();
        if blocking::is_late(handled, every, heartbeats) {
            binding.blocking.warn(delivery, handled);
        }
        handling.span.end_with(&outcome);
        let settled = self.settle(delivery, &outcome, &handling, every).await;
        if settled.is_ok() {
            delivery.set_settled();
        }
        let counter = settled.unwrap_or(&self.metrics.naks);
        self.metrics.settled(counter, started.elapsed(), &handling.span);
        settled.map(|_counter| ())
    }

    /// Handles a delivery, and fills in `handling`.
    async fn handle(
        &self,
        delivery: &Delivery,
        shared: &Arc<Shared>,
        handling: &mut Handling,
    ) -> Outcome {
        let decoded = H::Job::decode(delivery.subject(), delivery.headers(), delivery.body());
        if let Ok((_, job)) = &decoded {
            // Before the job waits for its turn, because a stop may end the wait.
            let policy = self.handler.retry_policy_of(job);
            handling.policy = policy.or_attempts(self.settings.max_attempts);
        }
        let _place = self.places.acquire().await;
        let slot = match &self.slots {
            Some(slots) => {
                let (priority, has_more) = (self.lane.priority, delivery.has_more());
                Some(slots.take(priority, delivery.sequence(), has_more).await)
            }
            None => None,
        };
        let started_at = slot.as_ref().map_or_else(now, |slot| slot.given_at);
        handling.span = Span::process(delivery);
        let (id, job) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return Outcome::Undecodable(error),
        };
        let (attempt, policy) = (delivery.attempt(), handling.policy);
        // Before the work, so that a job that kills every process that handles it also becomes a dead letter.
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

    /// Settles a delivery. Returns the counter of the settlement, or, if it is a job of a bundle that cannot be settled
    /// independently, the delay after which the bundle has to be redelivered.
    async fn settle(
        &self,
        delivery: &Delivery,
        mut outcome: &Outcome,
        Handling { policy, span }: &Handling,
        every: Duration,
    ) -> Result<&Counter, Duration> {
        let queue = self.lane.queue.stream;
        let (id, attempt) = (delivery.key(), delivery.attempt().number());
        let mut settlement = settle(outcome, delivery.attempt(), policy);
        // A closure, because it is needed only for log lines that are written.
        let trace = || match span.trace_id() {
            Some(id) => Some(id.to_string()),
            None => delivery.trace_id().map(str::to_owned),
        };
        let mut settling = span.settle(delivery, &settlement);
        if let Settlement::Snooze { delay } = settlement {
            if self.replace(delivery, delivery.attempt(), delay, every).await {
                info!(queue, id, attempt, trace = trace(), %outcome, "snoozed");
                return Ok(&self.metrics.snoozes);
            }
            if self.running.abandoned.is_cancelled() {
                // The stop has cut it short, and must not spend the last attempt.
                outcome = &Outcome::Interrupted;
            }
            let counted = RetryPolicy { snoozes_count: true, ..*policy };
            settlement = settle(outcome, delivery.attempt(), &counted);
            settling.fail("not_stored", "the copy is not stored");
            settling = span.settle(delivery, &settlement);
        }
        match settlement {
            Settlement::Ack => {
                delivery.ack();
                debug!(queue, id, attempt, trace = trace(), "acked");
                Ok(&self.metrics.acks)
            }
            Settlement::Nak { delay } => {
                let is_interrupted = matches!(outcome, Outcome::Interrupted);
                if delivery.is_bundled() {
                    let (next, delay) = (Attempt::new(attempt.saturating_add(1)), delay.draw());
                    if is_interrupted || !self.replace(delivery, next, delay, every).await {
                        settling.fail("with_its_bundle", "only its bundle is redelivered");
                        return Err(delay);
                    }
                } else {
                    // The broker counts this delivery, so after the last attempt another one would be one too many. An
                    // earlier attempt is given back, and keeps its place in the queue.
                    let is_last = policy.max_attempts.is_some_and(|most| attempt >= most);
                    if !(is_interrupted
                        && is_last
                        && self.replace_at_the_stop(delivery, slice::from_ref(delivery)).await)
                    {
                        delivery.nak(delay).await;
                    }
                }
                info!(queue, id, attempt, trace = trace(), %outcome, "given back");
                Ok(&self.metrics.naks)
            }
            Settlement::DeadLetter { reason } => {
                let by = &self.settings.instance;
                let mut moving = Box::pin(delivery.dead_letter(&self.dead_letters, &reason, by));
                let moving = moving.as_mut();
                let (moved, _) = delivery.keep_alive(moving, every, &self.running.abandoned).await;
                if moved == Some(true) {
                    delivery.ack();
                    warn!(queue, id, attempt, trace = trace(), reason, "dead-lettered");
                    return Ok(&self.metrics.dead_letters);
                }
                settling.fail("not_stored", "the dead letter is not stored");
                // The message stays in its queue, and is retried with growing delays.
                let delay = retry_delay(delivery.attempt(), policy);
                if delivery.is_bundled() {
                    return Err(delay.draw());
                }
                delivery.nak(delay).await;
                Ok(&self.metrics.naks)
            }
            Settlement::Snooze { .. } => unreachable!("this policy counts it"),
        }
    }

    /// Replaces the delivery of a stopping service by a copy of each job that is not settled, with the same attempt.
    /// Returns whether all copies are stored.
    async fn replace_at_the_stop(&self, delivery: &Delivery, jobs: &[Delivery]) -> bool {
        let attempt = delivery.attempt();
        let left = jobs.iter().filter(|job| !job.is_settled());
        let copies = left.map(|job| job.publish_copy(&self.queue, attempt, Duration::ZERO));
        let stored = timeout(TIME_TO_COPY, Box::pin(join_all(copies))).await;
        let are_there = stored.is_ok_and(|each| each.into_iter().all(|is_there| is_there));
        if are_there {
            delivery.ack();
        }
        are_there
    }

    /// Replaces a delivery by a copy, which is due after this delay and has this attempt. Returns whether the copy is
    /// stored.
    async fn replace(
        &self,
        delivery: &Delivery,
        attempt: Attempt,
        delay: Duration,
        every: Duration,
    ) -> bool {
        // In a box, because it is rare, and would make every other delivery larger.
        let mut publishing = Box::pin(delivery.publish_copy(&self.queue, attempt, delay));
        let publishing = publishing.as_mut();
        let (is_there, _) = delivery.keep_alive(publishing, every, &self.running.abandoned).await;
        if is_there == Some(true) {
            delivery.ack();
        }
        is_there == Some(true)
    }

    /// Logs a panic outside of the handler, whose panics are caught earlier. The broker redelivers the job.
    pub(crate) fn log_panic(&self, ended: Result<(), JoinError>) {
        if let Err(panic) = ended.map_err(JoinError::into_panic) {
            let (queue, panic) = (self.lane.queue.stream, panic_text(&*panic));
            error!(queue, panic, "settling a delivery panicked");
        }
    }
}
