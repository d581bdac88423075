//! Pauses queues on the broker, as an operator does, and lets them go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use workqueue::{Connection, Lane, Queue, now, topology};

/// How long to wait before another try: the broker may be down.
const RETRY: Duration = Duration::from_millis(100);

/// How long a pause may take to begin, and to end. Only a broker that does not come back needs so long. The pause
/// itself ends only later, so that it is this which ends it.
const LIMIT: Duration = Duration::from_mins(2);

/// The pauses of queues, in the background.
pub(super) struct Pauses {
    connection: Connection,
    stop: CancellationToken,
    /// Of each queue that was paused: one pause of it may take longer to begin than the time until the next.
    one_at_a_time: BTreeMap<&'static str, Arc<Mutex<()>>>,
    held: JoinSet<anyhow::Result<Vec<String>>>,
}

impl Pauses {
    /// At `stop` each ends at once.
    pub(super) fn new(connection: &Connection, stop: &CancellationToken) -> Self {
        let (connection, stop) = (connection.clone(), stop.clone());
        Self { connection, stop, one_at_a_time: BTreeMap::new(), held: JoinSet::new() }
    }

    /// Pauses a queue for that long.
    pub(super) fn pause(&mut self, queue: Queue, lasts: Duration) {
        let (connection, stop) = (self.connection.clone(), self.stop.clone());
        let turn = Arc::clone(self.one_at_a_time.entry(queue.stream).or_default());
        self.held.spawn(async move {
            let _turn = turn.lock().await;
            let held = hold(&connection, queue, lasts, &stop);
            timeout(LIMIT, held).await.with_context(|| format!("{} stays paused", queue.stream))
        });
    }

    /// Waits until all queues go on, and gives what was delivered while they were paused, each in a sentence.
    pub(super) async fn ended(self) -> anyhow::Result<Vec<String>> {
        let held: anyhow::Result<Vec<_>> = self.held.join_all().await.into_iter().collect();
        Ok(held?.concat())
    }
}

/// Pauses a queue, and lets it go on after a while. Returns what was wrong with it meanwhile.
async fn hold(
    connection: &Connection,
    queue: Queue,
    lasts: Duration,
    stop: &CancellationToken,
) -> Vec<String> {
    let nats = connection.context();
    let until = now() + LIMIT;
    while !topology::pause(nats, queue, until).await.is_ok_and(|paused| paused) {
        sleep(RETRY).await;
    }
    let mut before = Vec::new();
    for lane in queue.lanes() {
        // In a cluster the leader of the consumer may hear of it a little later.
        let deliveries = loop {
            match state(nats, lane).await {
                Some((true, deliveries)) => break deliveries,
                Some(_) | None => sleep(RETRY).await,
            }
        };
        before.push((lane, deliveries));
    }
    stop.run_until_cancelled(sleep(lasts)).await;
    let mut wrong = Vec::new();
    for (lane, before) in before {
        let what = format!("consumer {} of {}", lane.consumer(), queue.stream);
        match state(nats, lane).await {
            Some((false, _)) => wrong.push(format!("{what} went on while it was paused")),
            Some((true, after)) if after > before => {
                wrong.push(format!("{what} was paused; deliveries: {}", after - before));
            }
            // A broker that was killed may have forgotten some, and one may be away.
            Some(_) | None => {}
        }
    }
    while topology::resume(nats, queue).await.is_err() {
        sleep(RETRY).await;
    }
    wrong
}

/// Whether a lane is paused, and how many deliveries there have been to it; nothing where the broker does not say.
async fn state(nats: &Context, lane: Lane) -> Option<(bool, u64)> {
    let state = topology::lane_state(nats, lane).await.ok()?;
    Some((topology::paused_until(&state).is_some(), state.delivered.consumer_sequence))
}
