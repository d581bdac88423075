//! Takes jobs from a queue, has them handled, and settles them: pull, run, settle.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::FutureExt;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::background::panic_text;
use crate::blocking::{self, Blocking};
use crate::consumer_state;
use crate::declare::{bind, declare};
use crate::delivery::Delivery;
use crate::handler::{Context, Failure, Handler, RetryPolicy, Shared};
use crate::headers::Trace;
use crate::job::{Job, Queue};
use crate::metrics::QueueMetrics;
use crate::publisher::Publisher;
use crate::pull::{Arrival, Pull};
use crate::running::{Running, ServiceError};
use crate::settings::Settings;
use crate::settle::{Outcome, Settlement, retry_delay, settle};

/// The longest time for which a pull waits for messages. A stopping service may wait that long, and a
/// broker may send that long to one that hangs.
const LONGEST_PULL: Duration = Duration::from_secs(1);

/// Consumes one queue for as long as a service runs.
pub(crate) struct Consumer<H> {
    handler: Arc<H>,
    running: Running,
    settings: Settings,
    dead_letters: Arc<Publisher>,
    metrics: QueueMetrics,
}

/// Why a consumer stopped consuming.
enum End {
    /// It was told to, and nothing more can come.
    Stopped,
    /// It is not there any more on the broker, or not as it was.
    Gone,
}

impl<H: Handler> Consumer<H> {
    pub(crate) fn new(handler: Arc<H>, running: &Running, settings: &Settings) -> Self {
        let queue = H::Job::QUEUE;
        running.health.set_bound(queue, false);
        Self {
            handler,
            running: running.clone(),
            settings: settings.clone(),
            dead_letters: running.producer.dead_letters(),
            metrics: running.metrics.of(queue),
        }
    }

    /// Consumes until the service stops, and then until what is in flight is settled.
    pub(crate) async fn run(self) {
        let mut in_flight = JoinSet::new();
        if let Err(error) = self.consume_on(&mut in_flight).await {
            self.running.fail(error);
        }
        while let Some(ended) = in_flight.join_next().await {
            log_panic(H::Job::QUEUE, ended);
        }
    }

    /// Consumes until the service stops. Where the consumer goes missing on the broker, it is declared
    /// again, with its stream and the buckets of the service; jobs in flight go on meanwhile.
    async fn consume_on(&self, in_flight: &mut JoinSet<()>) -> Result<(), ServiceError> {
        let queue = H::Job::QUEUE;
        let Running { connection, stopping, .. } = &self.running;
        let mut facts_max_age = self.running.facts_max_age;
        loop {
            let Some(bound) = stopping.run_until_cancelled(bind(connection, queue)).await else {
                return Ok(());
            };
            let Some(bound) = bound else {
                warn!(queue = queue.stream, "the consumer is gone; declaring it again");
                let limits = &self.settings.limits;
                let declaring = declare(connection, &self.running.topology, limits);
                let Some(found) = stopping.run_until_cancelled(declaring).await else {
                    return Ok(());
                };
                facts_max_age = found?.facts_max_age();
                continue;
            };
            self.running.health.set_bound(queue, true);
            let consumed = tokio::select! {
                consumed = self.consume(bound.clone(), facts_max_age, in_flight) => consumed?,
                never = consumer_state::watch(connection, &bound, queue) => match never {},
            };
            match consumed {
                End::Stopped => return Ok(()),
                End::Gone => self.running.health.set_bound(queue, false),
            }
        }
    }

    fn worker(&self, ack_wait: Duration, facts_max_age: Duration) -> Arc<Worker<H>> {
        let (producer, instance) = (self.running.producer.clone(), self.settings.instance.clone());
        Arc::new(Worker {
            handler: Arc::clone(&self.handler),
            policy: self.handler.retry_policy(),
            timeout: self.handler.timeout(),
            max_attempts: self.settings.max_attempts,
            dead_letters: Arc::clone(&self.dead_letters),
            metrics: self.metrics.clone(),
            // Often enough that one heartbeat may get lost.
            heartbeat: ack_wait / 3,
            blocking: Blocking::default(),
            abandoned: self.running.abandoned.clone(),
            shared: Arc::new(Shared { producer, instance, facts_max_age }),
        })
    }

    /// Consumes until the service stops, and then until all that was asked for has come.
    async fn consume(
        &self,
        consumer: PullConsumer,
        facts_max_age: Duration,
        in_flight: &mut JoinSet<()>,
    ) -> Result<End, async_nats::SubscribeError> {
        let queue = H::Job::QUEUE;
        let Running { connection, stopping, abandoned, .. } = &self.running;
        let Settings { concurrency, drain_timeout, .. } = self.settings;
        let ack_wait = consumer.cached_info().config.ack_wait;
        let worker = self.worker(ack_wait, facts_max_age);
        // Sooner than a delivery comes again, and sooner than the drain ends.
        let expires = LONGEST_PULL.min(ack_wait / 2).min(drain_timeout / 2);
        let expires = expires.max(Duration::from_millis(10));
        let mut pull = Pull::new(connection, consumer, expires).await?;
        loop {
            while let Some(ended) = in_flight.try_join_next() {
                log_panic(queue, ended);
            }
            let taking = !stopping.is_cancelled();
            if taking {
                pull.ask(concurrency, concurrency.saturating_sub(in_flight.len())).await;
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
                        match Delivery::new(message, queue, connection) {
                            // In a box, because a task's future is moved several times.
                            Ok(delivery) => {
                                in_flight.spawn(Box::pin(Arc::clone(&worker).work(delivery)));
                            }
                            Err(error) => {
                                error!(error, "delivery without JetStream metadata; skipped");
                            }
                        }
                    }
                    Arrival::Credit => {}
                    Arrival::Gone => return Ok(End::Gone),
                },
                Some(ended) = in_flight.join_next() => log_panic(queue, ended),
                () = stopping.cancelled(), if taking => {}
                () = abandoned.cancelled(), if !taking => {}
            }
        }
    }
}

/// A panic of the handler is caught before. This one leaves the job to be delivered again.
fn log_panic(queue: Queue, ended: Result<(), JoinError>) {
    if let Err(panic) = ended.map_err(JoinError::into_panic) {
        error!(queue = queue.stream, panic = panic_text(&*panic), "settling a delivery panicked");
    }
}

/// What all jobs of one consumer have in common.
struct Worker<H> {
    handler: Arc<H>,
    policy: RetryPolicy,
    timeout: Option<Duration>,
    max_attempts: u64,
    dead_letters: Arc<Publisher>,
    metrics: QueueMetrics,
    /// How often to tell the broker that a job is being handled.
    heartbeat: Duration,
    blocking: Blocking,
    abandoned: CancellationToken,
    shared: Arc<Shared>,
}

impl<H: Handler> Worker<H> {
    /// Handles a delivery and settles it.
    async fn work(self: Arc<Self>, delivery: Delivery) {
        let started = Instant::now();
        let _in_flight = self.metrics.in_flight();
        let (queue, id) = (H::Job::QUEUE.stream, delivery.key());
        let mut heartbeats = 0;
        let outcome = {
            let run = pin!(AssertUnwindSafe(self.run(&delivery)).catch_unwind());
            let since = (started, self.heartbeat);
            match delivery.keep_alive(since, &mut heartbeats, &self.abandoned, run).await {
                Some(Ok(outcome)) => outcome,
                Some(Err(panic)) => {
                    let panic = panic_text(&*panic);
                    error!(queue, id, panic, "the handler panicked");
                    Outcome::Failed(Failure::retry(format!("the handler panicked: {panic}")))
                }
                None => Outcome::Interrupted,
            }
        };
        let handled = started.elapsed();
        if blocking::is_late(handled, self.heartbeat, heartbeats) {
            self.blocking.warn(queue, id, handled);
        }
        let settlement = settle(&outcome, delivery.attempt(), &self.policy, self.max_attempts);
        let counter = match self.settle(&delivery, &outcome, settlement).await {
            Settlement::Ack => &self.metrics.acks,
            Settlement::Nak { .. } => &self.metrics.naks,
            Settlement::DeadLetter { .. } => &self.metrics.dead_letters,
        };
        self.metrics.settled(counter, started.elapsed());
    }

    async fn run(&self, delivery: &Delivery) -> Outcome {
        // Before the work, so that a job which ends every process that handles it comes to an end, too.
        let attempt = delivery.attempt();
        if attempt.number() > self.policy.max_attempts.unwrap_or(self.max_attempts) {
            return Outcome::Exhausted;
        }
        let decoded = H::Job::decode(delivery.subject(), delivery.headers(), delivery.body());
        let (id, job) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => return Outcome::Undecodable(error),
        };
        let trace = Trace::of(delivery.headers());
        let cx = Context::new(id, attempt, trace, Arc::clone(&self.shared));
        if let Err(rejection) = self.handler.admit(&job, &cx) {
            return Outcome::Rejected(rejection);
        }
        let mut work = pin!(self.handler.handle(job, &cx));
        let handled = match self.timeout {
            None => work.await,
            Some(limit) => cx
                .timeout(limit, work.as_mut())
                .await
                .unwrap_or_else(|| Err(Failure::retry(format!("timed out after {limit:?}")))),
        };
        handled.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    /// Settles a delivery. Gives how that was possible.
    async fn settle(
        &self,
        delivery: &Delivery,
        outcome: &Outcome,
        settlement: Settlement,
    ) -> Settlement {
        let queue = H::Job::QUEUE.stream;
        let (id, attempt) = (delivery.key(), delivery.attempt().number());
        match &settlement {
            Settlement::Ack => {
                delivery.ack().await;
                debug!(queue, id, attempt, "acked");
            }
            Settlement::Nak { delay } => {
                delivery.nak(*delay).await;
                info!(queue, id, attempt, %outcome, "given back");
            }
            Settlement::DeadLetter { reason } => {
                // In a box, because it is rare, and would make every other delivery larger.
                let by = &self.shared.instance;
                let mut moving = Box::pin(delivery.dead_letter(&self.dead_letters, reason, by));
                let since = (Instant::now(), self.heartbeat);
                let moving = moving.as_mut();
                let moved = delivery.keep_alive(since, &mut 0, &self.abandoned, moving).await;
                if moved == Some(true) {
                    delivery.ack().await;
                    warn!(queue, id, attempt, reason, "dead-lettered");
                } else {
                    // It stays in its queue, where nothing is lost, and is tried again ever later.
                    let delay = retry_delay(delivery.attempt(), &self.policy);
                    delivery.nak(delay).await;
                    return Settlement::Nak { delay };
                }
            }
        }
        settlement
    }
}
