//! Keeps a topology as it should be, from one place.
//!
//! Creates what is missing, changes limits that differ in place, and moves the messages that no service can settle
//! (`sweeper`), again and again. With it, no service needs the right to do any of that.

use std::convert::Infallible;
use std::mem;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::clock::compare_clocks;
use crate::connect_error::ClientEnded;
use crate::connection::Connection;
use crate::log_once::LogOnce;
use crate::sweeper::{Sweeper, Swept};
use crate::topology::{self, DeclareError, Declared, Limits, Topology};

/// How often to look. A round that a lost connection interrupts goes on as soon as there is another.
const TICK: Duration = Duration::from_secs(2);

/// Keeps a topology as it should be. One is enough beside all services that share the topology; its user may create
/// and change streams and consumers, and delete messages.
///
/// ```no_run
/// # use workqueue::topology::Topology;
/// # use workqueue::{Bucket, Connection, Queue, Reconciler, Settings};
/// # const IMAGES: Queue = Queue::new("IMAGES", "images").consumer("resizer");
/// # const RESIZED: Bucket = Bucket { name: "resized", stream: "KV_resized" };
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let Settings { nats, limits, instance, .. } = Settings::from_env();
/// let stop = workqueue::stop_on_signals()?;
/// let topology = Topology::new(&[IMAGES], &[RESIZED]);
/// let connection = Connection::establish_patiently(&nats, &instance, |_connected| {}).await?;
/// let reconciler = Reconciler::new(&connection, topology, limits, &instance);
/// match stop.run_until_cancelled(reconciler.run(|_progress| {})).await {
///     Some(ended) => Err(ended.into()),
///     None => Ok(()),
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Reconciler {
    connection: Connection,
    topology: Topology,
    limits: Limits,
    sweepers: Vec<Sweeper>,
}

/// The result of a step of a [`Reconciler`].
#[derive(Debug)]
pub struct Progress<'a> {
    /// How many objects it has created, and limits changed.
    pub changes: usize,
    /// The messages that it has moved.
    pub swept: Swept,
    /// Why the topology is not as it should be, if it is not. The next round tries again.
    pub problem: Option<&'a DeclareError>,
}

impl Reconciler {
    /// Keeps this topology under these limits. Dead letters are signed as `instance`.
    #[must_use]
    pub fn new(
        connection: &Connection,
        topology: Topology,
        limits: Limits,
        instance: &str,
    ) -> Self {
        let lanes = topology.queues.iter().flat_map(|queue| queue.lanes());
        let sweepers = lanes.map(|lane| Sweeper::new(connection, lane, instance)).collect();
        Self { connection: connection.clone(), topology, limits, sweepers }
    }

    /// Looks and acts every two seconds, until the client has ended. What it does is logged; `report` is told of
    /// each step.
    pub async fn run(self, report: impl FnMut(Progress<'_>)) -> ClientEnded {
        let connection = self.connection.clone();
        tokio::select! {
            never = self.reconcile(report) => match never {},
            ended = connection.ended() => ended,
        }
    }

    async fn reconcile(mut self, mut report: impl FnMut(Progress<'_>)) -> Infallible {
        let (mut logged, mut paused) = (LogOnce::default(), LogOnce::default());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut done = Declared::default();
        loop {
            tick.tick().await;
            let (nats, known) = (self.connection.context(), self.connection.known());
            let adjust = async {
                if let Some(bucket) = self.topology.buckets.first() {
                    // Facts grow too old by the broker's clock. It may have none to ask about yet.
                    let _ = compare_clocks(nats, bucket.stream).await;
                }
                topology::adjust(nats, known, &self.topology, &self.limits, &mut done).await
            };
            let Some(adjusted) = self.connection.ask(pin!(adjust)).await else {
                // The connection was lost meanwhile, and is there again. The next round tells what was done.
                continue;
            };
            let mut done = mem::take(&mut done);
            let problem = adjusted.err();
            match &problem {
                None => logged.forget(),
                Some(error) => {
                    if logged.is_first(error) {
                        warn!(%error, "the topology is not as it should be; trying again");
                    }
                    // A limit that differs is changed once that is possible.
                    done.differences.clear();
                }
            }
            done.log(&mut paused);
            let changes = done.created.len() + done.adjusted.len();
            let mut step = |changes, swept| {
                report(Progress { changes, swept, problem: problem.as_ref() });
            };
            step(changes, Swept::default());
            for sweeper in &mut self.sweepers {
                step(0, sweeper.sweep().await);
            }
        }
    }
}
