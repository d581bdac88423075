//! The frame that every service stands in: start, consume, stop.

mod connection_losses;
mod declare;
mod queue_consumer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use contract::dead_letters;
use contract::facts::Bucket;
use contract::queues::{Message, Queue};
use contract::topology::{DeclareError, Limits, Topology};
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use crate::admin::{self, Report};
use crate::announce::Announcement;
use crate::connection::{ConnectError, Connection};
use crate::consumer::{Handler, Rules};
use crate::facts::Facts;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::publisher::Publisher;
use crate::settings::ServiceSettings;

pub(crate) use self::declare::{declare, repair};
use self::queue_consumer::QueueConsumer;

/// What a drain keeps of its time for giving back what is still in flight.
const TIME_TO_GIVE_BACK: Duration = Duration::from_secs(1);

/// How often a service says how much it has done.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A running service: connected, with all that it needs declared on the broker.
#[derive(Debug)]
pub struct Service {
    settings: ServiceSettings,
    connection: Connection,
    topology: Topology,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    announcement: Arc<Announcement>,
    consumers: JoinSet<Result<(), ServiceError>>,
    queues: Vec<Queue>,
    stop: CancellationToken,
    abandon: CancellationToken,
    /// Told by a publisher that finds no stream.
    missing: Arc<Notify>,
    /// Ends the admin endpoint with the service, however that ends.
    _end: DropGuard,
    /// Tells who asks that this replica is here, until it has stopped.
    _announcing: AbortOnDropHandle<()>,
}

/// Why a service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The admin endpoint's address cannot be listened on.
    #[error("ADMIN_ADDR is {addr}, which cannot be listened on: {source}; is it taken already?")]
    Admin {
        /// The address.
        addr: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// There is no use in trying to connect.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// What is on the broker is not what the service needs, and waiting does not help.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// The client has panicked.
    #[error(
        "the NATS client has panicked, most likely over the headers of a message that was \
         published by hand: what it says of it is on the standard error. Run \
         `decoupled declare --watch`, which moves such a message to the dead letters, and start this \
         service again"
    )]
    Client,
    /// The client cannot ask for messages.
    #[error("cannot subscribe to the answers of the broker: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
}

impl Service {
    /// Starts the admin endpoint, connects, and declares the topology; for each it waits as long
    /// as it takes. Gives `None` if `stop` came first.
    ///
    /// # Errors
    ///
    /// Where waiting does not help, see [`ServiceError`].
    pub async fn start(
        name: &'static str,
        settings: &ServiceSettings,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, ServiceError> {
        let health = Arc::new(Health::default());
        let metrics = Metrics::new(name);
        // Stopping by itself must not stop whoever else listens to the caller's token.
        let stop = stop.child_token();
        let end = CancellationToken::new();
        let addr = settings.admin_addr;
        let admin = end.clone();
        let end = end.drop_guard();
        let told = Told { health: Arc::clone(&health), metrics: Arc::clone(&metrics) };
        admin::serve(addr, Arc::new(told), admin)
            .await
            .map_err(|source| ServiceError::Admin { addr, source })?;
        info!(
            version = env!("CARGO_PKG_VERSION"),
            instance = settings.instance,
            concurrency = settings.concurrency,
            "starting {name}"
        );
        let report = {
            let (health, metrics) = (Arc::clone(&health), Arc::clone(&metrics));
            move |connected| {
                health.set_connected(connected);
                metrics.set_connected(connected);
            }
        };
        let client_name = format!("{name} {}", settings.instance);
        let announcement = Announcement::new(name, &settings.instance, &health, &metrics);
        let announcement = Arc::new(announcement);
        let start = async {
            let connection = Connection::establish(&settings.nats, &client_name, report).await?;
            // Before the rest: one that waits for what is missing is there, too.
            let announcing = in_background(Arc::clone(&announcement).serve(connection.clone()));
            let topology = declare(&connection, &Limits::from(&settings.limits)).await?;
            Ok::<_, ServiceError>((connection, topology, announcing))
        };
        let Some(started) = stop.run_until_cancelled(start).await else {
            info!("stopped before there was anything to do");
            return Ok(None);
        };
        let (connection, topology, announcing) = started?;
        Ok(Some(Self {
            settings: settings.clone(),
            connection,
            topology,
            health,
            metrics,
            announcement,
            consumers: JoinSet::new(),
            queues: Vec::new(),
            stop,
            abandon: CancellationToken::new(),
            missing: Arc::default(),
            _end: end,
            _announcing: announcing,
        }))
    }

    /// The connection to the broker.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Cancelled when the service is to stop. Cancelling it stops the service, and nobody else.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Cancelled when a stopping service has no time left to finish what is in flight.
    #[must_use]
    pub fn abandoned(&self) -> &CancellationToken {
        &self.abandon
    }

    /// Adds metrics of the service's own to what the admin endpoint shows. Their names begin with the
    /// service's, too.
    pub fn register_metrics(&self, register: impl FnOnce(&mut Registry)) {
        self.metrics.with_registry(register);
    }

    /// How long the promises hold from the moment of asking, as the buckets on the broker have it.
    #[must_use]
    pub fn facts_max_age(&self) -> Duration {
        self.topology.facts_max_age()
    }

    /// A publisher to this queue, with places of its own for what is under way.
    #[must_use]
    pub fn publisher(&self, queue: Queue) -> Publisher {
        self.publisher_to(queue.stream)
    }

    /// The facts of this bucket.
    #[must_use]
    pub fn facts(&self, bucket: Bucket) -> Facts {
        Facts::new(&self.connection, self.publisher_to(bucket.stream))
    }

    fn publisher_to(&self, stream: &'static str) -> Publisher {
        let capacity = self.settings.concurrency;
        Publisher::new(&self.connection, &self.metrics, &self.missing, stream, capacity)
    }

    /// Begins to consume the queue of this handler's messages.
    pub fn consume<H: Handler>(&mut self, handler: H) {
        let queue = H::Message::QUEUE;
        let consumer = QueueConsumer {
            connection: self.connection.clone(),
            limits: Limits::from(&self.settings.limits),
            rules: Rules {
                queue,
                instance: self.settings.instance.clone(),
                concurrency: self.settings.concurrency,
                max_attempts: self.settings.max_attempts,
                ack_wait: self.topology.ack_wait(queue),
                drain_timeout: self.settings.drain_timeout,
                facts_max_age: self.topology.facts_max_age(),
                dead_letters: self.publisher_to(dead_letters::STREAM),
                metrics: self.metrics.of(queue),
                abandon: self.abandon.clone(),
            },
            health: Arc::clone(&self.health),
            stop: self.stop.clone(),
        };
        self.health.set_bound(queue, false);
        self.queues.push(queue);
        self.announcement.add(queue);
        self.consumers.spawn(consumer.run(Arc::new(handler)));
    }

    /// Runs until the service is told to stop, or a consumer cannot go on; then stops in order:
    /// what was taken is finished within the drain's time, the rest is given back, and all answers
    /// reach the broker.
    ///
    /// `own_work` is what the service does besides consuming. It has to end soon after
    /// [`Service::abandoned`] is cancelled.
    ///
    /// # Errors
    ///
    /// What kept a consumer from going on.
    pub async fn run(mut self, own_work: impl Future<Output = ()>) -> Result<(), ServiceError> {
        self.health.set_started();
        let mut failure = None;
        let stop = self.stop.clone();
        let abandon = self.abandon.clone();
        let health = Arc::clone(&self.health);
        let drain_timeout = self.settings.drain_timeout;
        // A tenth of a short drain is enough.
        let work_time = drain_timeout.saturating_sub(TIME_TO_GIVE_BACK.min(drain_timeout / 10));
        let mut deadline = in_background(async move {
            stop.cancelled().await;
            health.set_stopping();
            tokio::time::sleep(work_time).await;
            warn!("the drain has no time left; giving back what is in flight");
            abandon.cancel();
            tokio::time::sleep(drain_timeout.saturating_sub(work_time)).await;
        });
        let consuming = async {
            while let Some(ended) = self.consumers.join_next().await {
                let ended =
                    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                if let Err(error) = ended {
                    error!(%error, "a consumer cannot go on");
                    failure.get_or_insert(error);
                    self.stop.cancel();
                }
            }
        };
        let _reports = in_background(report(self.queues, Arc::clone(&self.metrics)));
        let limits = Limits::from(&self.settings.limits);
        let _repairs = in_background(repair(self.connection.clone(), limits, self.missing));
        let work = async {
            tokio::join!(consuming, own_work);
            // An answer is only on its way until it has left this process.
            self.connection.client().flush().await
        };
        let flushed = tokio::select! {
            flushed = work => flushed.is_ok(),
            _ = &mut deadline => false,
            // There is nobody left through whom to settle anything, so nothing to stop in order.
            () = self.connection.ended() => return Err(ServiceError::Client),
        };
        if !flushed {
            warn!("the last answers may not have reached the broker; what they settle comes again");
        }
        info!("stopped");
        failure.map_or(Ok(()), Err)
    }
}

/// What a service tells of itself.
struct Told {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Report for Told {
    fn not_ready(&self) -> Option<String> {
        self.health.not_ready()
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        self.metrics.text()
    }
}

/// Runs beside the work, and ends with it.
fn in_background(work: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(work))
}

/// Says now and then how much was done, if anything was: each message is only logged at `debug`.
async fn report(queues: Vec<Queue>, metrics: Arc<Metrics>) {
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
