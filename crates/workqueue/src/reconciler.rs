//! Keeps a topology as declared, from one process.
//!
//! Repeatedly creates missing streams, buckets and consumers, changes differing limits in place, and moves the messages
//! that no service can settle (`sweeper`). With it, no service needs the permission for that.

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

/// The interval of the rounds. A round that a lost connection interrupts continues with the next connection.
const TICK: Duration = Duration::from_secs(2);

/// Keeps a topology as declared. One is enough for all services that share the topology. Its user needs the
/// permissions to create and change streams and consumers, and to delete messages.
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
    /// The reason if the topology is not as declared. The next round tries again.
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

    /// Runs a round every two seconds, until the client has ended. Logs each change, and calls `report` after each
    /// step.
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
                    // Facts expire by the broker's clock. There may be no stream yet to ask about.
                    let _ = compare_clocks(nats, bucket.stream).await;
                }
                topology::adjust(nats, known, &self.topology, &self.limits, &mut done).await
            };
            let Some(adjusted) = self.connection.ask(pin!(adjust)).await else {
                // The connection was lost meanwhile, and is back. The next round reports the changes.
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
                    // A differing limit is changed once that is possible.
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
