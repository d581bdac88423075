//! Keeps each lane of a queue consumed: binds to its consumer on the broker, and binds again if the consumer is
//! missing.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::consumer::{Consumer, End};
use crate::consumer_state;
use crate::declare::{bind, declare};
use crate::handler::Handler;
use crate::job::Job;
use crate::rate_limit::RateLimit;
use crate::running::{Running, ServiceError};
use crate::settings::Settings;
use crate::slots::Slots;

/// A consumer for each lane of the queue.
pub(crate) fn consumers<H: Handler>(
    handler: &Arc<H>,
    running: &Running,
    settings: &Settings,
) -> impl Iterator<Item = Arc<Consumer<H>>> {
    let queue = H::Job::QUEUE;
    let metrics = running.metrics.of(queue);
    let limit = handler.rate_limit().or(settings.rate_limit);
    let limit = limit.map(|limit| RateLimit::new(queue, limit, running));
    let slots = (queue.has_priorities() || limit.is_some()).then(|| {
        let rate_limited = metrics.rate_limited.clone();
        Slots::new(settings.concurrency, queue.has_priorities(), limit, rate_limited)
    });
    let policy = handler.retry_policy().or_attempts(settings.max_attempts);
    queue.lanes().map(move |lane| {
        running.health.set_bound(lane, false);
        Arc::new(Consumer {
            handler: Arc::clone(handler),
            lane,
            places: Semaphore::new(settings.concurrency),
            slots: slots.clone(),
            policy,
            queue: running.producer.queue(queue),
            dead_letters: running.producer.dead_letters(),
            metrics: metrics.clone(),
            running: running.clone(),
            settings: settings.clone(),
        })
    })
}

impl<H: Handler> Consumer<H> {
    /// Consumes until the service stops, and then until the jobs in flight are settled.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut in_flight = JoinSet::new();
        if let Err(error) = self.consume_on(&mut in_flight).await {
            self.running.fail(error);
        }
        while let Some(ended) = in_flight.join_next().await {
            self.log_panic(ended);
        }
    }

    /// Consumes until the service stops. If the consumer disappears from the broker, this declares it again, with its
    /// stream and the buckets of the service. Jobs in flight continue meanwhile.
    async fn consume_on(self: &Arc<Self>, in_flight: &mut JoinSet<()>) -> Result<(), ServiceError> {
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
            let (changed, max_age) = (CancellationToken::new(), facts_max_age);
            let watching = async {
                facts_max_age = consumer_state::watch(&self.running, &bound, lane, max_age).await;
                // The heartbeats and the age limit of later jobs follow the new times.
                changed.cancel();
                pending::<Infallible>().await
            };
            let consumed = tokio::select! {
                consumed = self.consume(bound.clone(), max_age, &changed, in_flight) => consumed?,
                never = watching => match never {},
            };
            match consumed {
                End::Stopped => return Ok(()),
                End::Changed => {}
                End::Gone => self.running.health.set_bound(lane, false),
            }
        }
    }
}
