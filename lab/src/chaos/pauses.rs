//! Pauses queues on the broker, as an operator does, and resumes them.

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

/// The pause before another try, because the broker may be down.
const RETRY: Duration = Duration::from_millis(100);

/// The time limit for a pause to begin and to end, besides the pause itself. Only a broker that stays away reaches it.
/// The broker would end the pause after that, so that it is the resume that ends it.
const LIMIT: Duration = Duration::from_mins(2);

/// The pauses of queues, in the background.
pub(super) struct Pauses {
    connection: Connection,
    stop: CancellationToken,
    /// The last pause of each queue. One pause may take longer to begin than the time until the next.
    one_at_a_time: BTreeMap<&'static str, Arc<Mutex<()>>>,
    held: JoinSet<anyhow::Result<Vec<String>>>,
}

impl Pauses {
    /// No pauses yet. When `stop` is cancelled, all pauses end.
    pub(super) fn new(connection: &Connection, stop: &CancellationToken) -> Self {
        let (connection, stop) = (connection.clone(), stop.clone());
        Self { connection, stop, one_at_a_time: BTreeMap::new(), held: JoinSet::new() }
    }

    /// Pauses a queue for this time.
    pub(super) fn pause(&mut self, queue: Queue, lasts: Duration) {
        let (connection, stop) = (self.connection.clone(), self.stop.clone());
        let turn = Arc::clone(self.one_at_a_time.entry(queue.stream).or_default());
        self.held.spawn(async move {
            let _turn = turn.lock().await;
            let held = hold(&connection, queue, lasts, &stop);
            let held = timeout(LIMIT + lasts, held).await;
            held.with_context(|| format!("{} stays paused", queue.stream))
        });
    }

    /// Waits until all queues are resumed, and returns the deliveries during a pause, each as a sentence.
    pub(super) async fn ended(self) -> anyhow::Result<Vec<String>> {
        let held: anyhow::Result<Vec<_>> = self.held.join_all().await.into_iter().collect();
        Ok(held?.concat())
    }
}

/// Pauses a queue, and resumes it after a while. Returns the faults that it found meanwhile.
async fn hold(
    connection: &Connection,
    queue: Queue,
    lasts: Duration,
    stop: &CancellationToken,
) -> Vec<String> {
    let nats = connection.context();
    let until = now() + LIMIT + lasts;
    while !topology::pause(nats, queue, until).await.is_ok_and(|paused| paused) {
        sleep(RETRY).await;
    }
    let mut before = Vec::new();
    for lane in queue.lanes() {
        // In a cluster the leader of the consumer may learn of the pause a little later.
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
            // A killed broker may have forgotten some deliveries, and one may be away.
            Some(_) | None => {}
        }
    }
    while topology::resume(nats, queue).await.is_err() {
        sleep(RETRY).await;
    }
    wrong
}

/// Whether a lane is paused, and the number of its deliveries. None if the broker does not answer.
async fn state(nats: &Context, lane: Lane) -> Option<(bool, u64)> {
    let state = topology::lane_state(nats, lane).await.ok()?;
    Some((topology::paused_until(&state).is_some(), state.delivered.consumer_sequence))
}
