//! A service: starts, consumes its queues, and stops gracefully.

use std::future::ready;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::{self, Report};
use crate::announce::Announcement;
use crate::background::{Background, Ended};
use crate::clock::ClockWatch;
use crate::connect_error::ConnectError;
use crate::connection::Connection;
use crate::handler::Handler;
use crate::health::Health;
use crate::job::Job;
use crate::lanes;
use crate::metrics::Metrics;
use crate::producer::Producer;
use crate::queue::Queue;
use crate::running::{Running, ServiceError};
use crate::settings::Settings;
use crate::topology::Topology;

/// The part of a drain that is reserved for giving back the jobs in flight.
const TIME_TO_GIVE_BACK: Duration = Duration::from_secs(1);

/// The interval at which a service logs its progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A service: the handlers of the queues that it consumes, and the topology that it needs.
pub struct Service {
    name: &'static str,
    version: &'static str,
    topology: Topology,
    /// The queues that it consumes.
    queues: Vec<Queue>,
    consumers: Vec<Start>,
}

/// Starts the consumers of one queue, for a service that is connected.
type Start = Box<dyn FnOnce(&Running, &Settings) -> Vec<Consuming> + Send>;
type Consuming = BoxFuture<'static, ()>;

impl Service {
    /// A service with this name, without handlers. The names of its metrics begin with the name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let (topology, queues, consumers) = (Topology::default(), Vec::new(), Vec::new());
        Self { name, version, topology, queues, consumers }
    }

    /// Sets the version that each replica announces and logs, such as `env!("CARGO_PKG_VERSION")`. Defaults to that of
    /// this crate.
    #[must_use]
    pub fn version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// Consumes the queue of this handler's jobs. Jobs of several kinds that share a queue are one type, such as an
    /// enum, with one handler.
    ///
    /// # Panics
    ///
    /// If the service has another handler for this queue: each would get some jobs of the other.
    #[must_use]
    pub fn consume<H: Handler>(mut self, handler: H) -> Self {
        let stream = H::Job::QUEUE.stream;
        let is_taken = self.queues.iter().any(|queue| queue.stream == stream);
        assert!(!is_taken, "the queue {stream} has a handler already");
        self.topology.add_queue(H::Job::QUEUE);
        self.queues.push(H::Job::QUEUE);
        if handler.rate_limit().is_some() {
            self.topology = self.topology.with_rates();
        }
        let handler = Arc::new(handler);
        self.consumers.push(Box::new(move |running, settings| {
            let consumers = lanes::consumers(&handler, running, settings);
            consumers.map(|consumer| consumer.run().boxed()).collect()
        }));
        self
    }

    /// Declares this topology at the start, besides the queues that it consumes. Without this call the
    /// first publish or creation declares its stream. Only declared buckets count for
    /// [`Context::facts_max_age`](crate::Context::facts_max_age), and only declared streams are checked before the
    /// service takes a job.
    #[must_use]
    pub fn declares(mut self, topology: &Topology) -> Self {
        self.topology.add(topology);
        self
    }

    /// Runs until `stop` is cancelled, or a consumer fails; then drains: it finishes jobs in flight within
    /// `DRAIN_TIMEOUT`, gives back the others, and flushes all settlements to the broker.
    ///
    /// It retries connecting and declaring until they succeed.
    ///
    /// # Errors
    ///
    /// If waiting does not help, see [`ServiceError`].
    pub fn run<'a>(
        self,
        settings: &'a Settings,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = Result<(), ServiceError>> + Send + 'a {
        self.run_with(settings, stop, |_running| ready(()))
    }

    /// As [`Service::run`], with other work besides consuming. The work begins once the service is connected, and has
    /// to end soon after [`Running::abandoned`] is cancelled.
    ///
    /// # Errors
    ///
    /// As [`Service::run`].
    pub fn run_with<'a, F: Future<Output = ()> + Send + 'a>(
        self,
        settings: &'a Settings,
        stop: &'a CancellationToken,
        work: impl FnOnce(Running) -> F + Send + 'a,
    ) -> impl Future<Output = Result<(), ServiceError>> + Send + 'a {
        let work = Box::new(|running| work(running).boxed());
        self.run_boxed(settings, stop, work)
    }

    /// As [`Service::run_with`]. It is not generic, so that the engine is compiled once, and not again with
    /// each service.
    fn run_boxed<'a>(
        self,
        settings: &'a Settings,
        stop: &'a CancellationToken,
        work: Box<dyn FnOnce(Running) -> BoxFuture<'a, ()> + Send + 'a>,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        async move {
            let Self { name, version, mut topology, queues, consumers } = self;
            if settings.rate_limit.is_some() {
                topology = topology.with_rates();
            }
            let health = Arc::new(Health::default());
            let metrics = Metrics::new(name);
            // If this service stops by itself, it must not stop others that use the caller's token.
            let stopping = stop.child_token();
            // Ends the admin endpoint when the service ends for any reason.
            let end = CancellationToken::new();
            let _end = end.clone().drop_guard();
            let addr = settings.admin_addr;
            let report =
                ServiceReport { health: Arc::clone(&health), metrics: Arc::clone(&metrics) };
            let admin = admin::serve(addr, Arc::new(report), end)
                .await
                .map_err(|source| ServiceError::Admin { addr, source })?;
            info!(
                version,
                instance = settings.instance,
                concurrency = settings.concurrency,
                "starting {name}"
            );
            let mut background = Background::default();
            background.spawn("the admin endpoint", admin);
            background
                .spawn("logging progress", log_progress(queues.clone(), Arc::clone(&metrics)));
            let announcement =
                Announcement::new(name, version, settings, queues, &health, &metrics);
            let start = start(announcement, topology, settings, &stopping, &mut background);
            let Some(running) = start.await? else {
                info!("stopped before the service was connected and its topology declared");
                return Ok(());
            };
            let mut consuming = JoinSet::new();
            for consumer in consumers.into_iter().flat_map(|start| start(&running, settings)) {
                consuming.spawn(consumer);
            }
            running.health.set_started();
            drain_after(
                &running,
                settings.drain_timeout,
                consuming,
                work(running.clone()),
                background,
            )
            .await
        }
        .boxed()
    }
}

/// Connects, and declares the topology of the service, and retries both until they succeed. Returns `None` if
/// the service is stopped before that.
async fn start(
    announcement: Announcement,
    topology: Topology,
    settings: &Settings,
    stopping: &CancellationToken,
    background: &mut Background,
) -> Result<Option<Running>, ServiceError> {
    let (health, metrics) = announcement.reads();
    let report = {
        let (health, metrics) = (Arc::clone(&health), Arc::clone(&metrics));
        move |connected: Result<(), &ConnectError>| {
            let connected = connected.is_ok();
            health.set_connected(connected);
            metrics.set_connected(connected);
        }
    };
    let client_name = format!("{} {}", announcement.name(), settings.instance);
    let connecting = Connection::establish_patiently(&settings.nats, &client_name, report);
    let connection = tokio::select! {
        connection = connecting => connection?,
        ended = background.ended() => return Err(ended.into()),
        () = stopping.cancelled() => return Ok(None),
    };
    // First, so that a replica which still waits for a missing stream is already visible.
    background.spawn("announcing this replica", announcement.serve(connection.clone()));
    let producer = Producer::of_service(&connection, settings, &metrics);
    let ready = async {
        let facts_max_age = producer.declare(&topology).await?.facts_max_age();
        // Before the first job: the age of a job must not be measured with a wrong clock.
        let queue = topology.queues.first().map(|queue| queue.stream);
        let Some(stream) = queue.or(topology.buckets.first().map(|bucket| bucket.stream)) else {
            return Ok::<_, ServiceError>((facts_max_age, None));
        };
        let health = Arc::clone(&health);
        let report = move |wrong| health.set_clock(wrong);
        Ok((facts_max_age, Some(ClockWatch::start(&connection, stream, report).await)))
    };
    let (facts_max_age, clocks) = tokio::select! {
        ready = ready => ready?,
        // After a panic of the client, no request to the broker gets an answer.
        ended = connection.ended() => return Err(ended.into()),
        ended = background.ended() => return Err(ended.into()),
        () = stopping.cancelled() => return Ok(None),
    };
    if let Some(clocks) = clocks {
        background.spawn("comparing clocks", async { match clocks.run().await {} });
    }
    Ok(Some(Running {
        producer,
        connection,
        stopping: stopping.clone(),
        abandoned: CancellationToken::new(),
        topology: Arc::new(topology),
        facts_max_age,
        health,
        metrics,
        failure: Arc::default(),
    }))
}

/// Runs until the service is stopped, or one of its tasks fails; then drains.
async fn drain_after(
    running: &Running,
    drain_timeout: Duration,
    mut consuming: JoinSet<()>,
    own_work: impl Future<Output = ()>,
    mut background: Background,
) -> Result<(), ServiceError> {
    let Running { connection, stopping, abandoned, health, .. } = running;
    // A tenth of a short drain is enough.
    let work_time = drain_timeout.saturating_sub(TIME_TO_GIVE_BACK.min(drain_timeout / 10));
    let deadline = async {
        stopping.cancelled().await;
        health.set_stopping();
        tokio::time::sleep(work_time).await;
        warn!("the drain has no time left; giving back the jobs in flight");
        abandoned.cancel();
        tokio::time::sleep(drain_timeout.saturating_sub(work_time)).await;
    };
    let consuming = async {
        while let Some(ended) = consuming.join_next().await {
            if let Err(panic) = ended.map_err(JoinError::into_panic) {
                running.fail(Ended::by_panic("consuming", &*panic));
            }
        }
    };
    let own_work = async {
        if let Err(panic) = AssertUnwindSafe(own_work).catch_unwind().await {
            running.fail(Ended::by_panic("the service's own work", &*panic));
        }
    };
    let watching = async {
        loop {
            running.fail(background.ended().await);
        }
    };
    let work = async {
        tokio::join!(consuming, own_work);
        // The last acks may still wait, or be in the client's buffer.
        connection.acks().send().await;
        connection.client().flush().await
    };
    let flushed = tokio::select! {
        flushed = work => flushed.is_ok(),
        () = deadline => false,
        // Without the client nothing can be settled, so a graceful stop is impossible.
        ended = connection.ended() => return Err(ended.into()),
        never = watching => never,
    };
    if !flushed {
        warn!("the last settlements may not have reached the broker, which redelivers those jobs");
    }
    info!("stopped");
    running.failure().take().map_or(Ok(()), Err)
}

/// What the admin endpoint reports of a service.
struct ServiceReport {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Report for ServiceReport {
    fn not_ready(&self) -> Option<String> {
        self.health.not_ready()
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        self.metrics.text()
    }
}

/// Logs the number of settled jobs at each interval in which it changed; single jobs are logged only at `debug`.
async fn log_progress(queues: Vec<Queue>, metrics: Arc<Metrics>) {
    let mut before = vec![0; queues.len()];
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        for (queue, before) in queues.iter().zip(&mut before) {
            let settled = metrics.of(*queue).settled_so_far();
            if settled != *before {
                let since = settled - *before;
                info!(queue = queue.stream, settled, since, "at work");
                *before = settled;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_declares_all_of_a_topology() {
        let topology = Topology::default().with_rates();
        assert_eq!(Service::new("resizer").declares(&topology).topology, topology);
    }
}
