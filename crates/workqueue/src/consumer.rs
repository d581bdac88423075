//! Takes jobs from a lane of a queue, never more than there is room for, and hands them to a worker.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tracing::{error, warn};

use crate::background::panic_text;
use crate::blocking::Blocking;
use crate::consumer_state;
use crate::declare::{bind, declare};
use crate::delivery::Delivery;
use crate::handler::{Handler, RetryPolicy, Shared};
use crate::job::Job;
use crate::pull::{Arrival, Pull};
use crate::queue::Lane;
use crate::rate_limit::RateLimit;
use crate::running::{Running, ServiceError};
use crate::settings::Settings;
use crate::slots::Slots;
use crate::worker::{Binding, Worker};

/// The longest time for which a pull waits for messages. A stopping service may wait that long, and a
/// broker may send that long to one that hangs.
const LONGEST_PULL: Duration = Duration::from_secs(1);

/// Consumes one lane of a queue for as long as a service runs.
pub(crate) struct Consumer<H> {
    worker: Arc<Worker<H>>,
    lane: Lane,
    running: Running,
    settings: Settings,
}

/// Why a consumer stopped consuming.
enum End {
    /// It was told to, and nothing more can come.
    Stopped,
    /// It is not there any more on the broker, or not as it was.
    Gone,
}

impl<H: Handler> Consumer<H> {
    /// A consumer for each lane of the queue.
    pub(crate) fn of_each_lane(
        handler: &Arc<H>,
        running: &Running,
        settings: &Settings,
    ) -> impl Iterator<Item = Self> {
        let queue = H::Job::QUEUE;
        let metrics = running.metrics.of(queue);
        let limit = handler.rate_limit().or(settings.rate_limit);
        let limit = limit.map(|limit| RateLimit::new(queue, limit, running));
        let slots = (queue.has_priorities() || limit.is_some()).then(|| {
            let rate_limited = metrics.rate_limited.clone();
            Slots::new(settings.concurrency, queue.has_priorities(), limit, rate_limited)
        });
        let policy = handler.retry_policy();
        let max_attempts = policy.max_attempts.or(Some(settings.max_attempts));
        queue.lanes().map(move |lane| {
            running.health.set_bound(lane, false);
            let worker = Arc::new(Worker {
                handler: Arc::clone(handler),
                lane,
                slots: slots.clone(),
                instance: settings.instance.clone(),
                abandoned: running.abandoned.clone(),
                policy: RetryPolicy { max_attempts, ..policy },
                queue: running.producer.queue(queue),
                dead_letters: running.producer.dead_letters(),
                metrics: metrics.clone(),
            });
            Self { worker, lane, running: running.clone(), settings: settings.clone() }
        })
    }

    /// Consumes until the service stops, and then until what is in flight is settled.
    pub(crate) async fn run(self) {
        let mut in_flight = JoinSet::new();
        if let Err(error) = self.consume_on(&mut in_flight).await {
            self.running.fail(error);
        }
        while let Some(ended) = in_flight.join_next().await {
            self.log_panic(ended);
        }
    }

    /// Consumes until the service stops. Where the consumer goes missing on the broker, it is declared
    /// again, with its stream and the buckets of the service; jobs in flight go on meanwhile.
    async fn consume_on(&self, in_flight: &mut JoinSet<()>) -> Result<(), ServiceError> {
        let lane = self.lane;
        let Running { connection, stopping, .. } = &self.running;
        let mut facts_max_age = self.running.facts_max_age;
        loop {
            let Some(bound) = stopping.run_until_cancelled(bind(connection, lane)).await else {
                return Ok(());
            };
            let Some(bound) = bound else {
                warn!("{} is gone; declaring it again", lane.described());
                let limits = &self.settings.limits;
                let declaring = declare(connection, &self.running.topology, limits);
                let Some(found) = stopping.run_until_cancelled(declaring).await else {
                    return Ok(());
                };
                facts_max_age = found?.facts_max_age();
                continue;
            };
            self.running.health.set_bound(lane, true);
            let consumed = tokio::select! {
                consumed = self.consume(bound.clone(), facts_max_age, in_flight) => consumed?,
                never = consumer_state::watch(connection, &bound, lane) => match never {},
            };
            match consumed {
                End::Stopped => return Ok(()),
                End::Gone => self.running.health.set_bound(lane, false),
            }
        }
    }

    /// Consumes until the service stops, and then until all that was asked for has come.
    async fn consume(
        &self,
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
            shared: Arc::new(Shared { producer, instance, facts_max_age }),
        });
        // Sooner than a delivery comes again, and sooner than the drain ends.
        let expires = LONGEST_PULL.min(ack_wait / 2).min(drain_timeout / 2);
        let expires = expires.max(Duration::from_millis(10));
        let mut pull = Pull::new(connection, consumer, expires).await?;
        let slots = self.worker.slots.as_ref();
        let mut room = slots.map_or_else(|| watch::channel(()).1, Slots::watch_room);
        loop {
            while let Some(ended) = in_flight.try_join_next() {
                self.log_panic(ended);
            }
            let taking = !stopping.is_cancelled();
            if taking {
                let free = concurrency.saturating_sub(in_flight.len());
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
                                let worker = Arc::clone(&self.worker);
                                let work = worker.work(Arc::clone(&binding), delivery);
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

    /// A panic of the handler is caught before. This one leaves the job to be delivered again.
    fn log_panic(&self, ended: Result<(), JoinError>) {
        if let Err(panic) = ended.map_err(JoinError::into_panic) {
            let (queue, panic) = (self.lane.queue.stream, panic_text(&*panic));
            error!(queue, panic, "settling a delivery panicked");
        }
    }
}
