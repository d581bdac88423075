//! The effect of priorities: an urgent request overtakes a backlog, and the other requests do not starve.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use contract::Amount;
use contract::facts::{self, Stored};
use contract::queues::{REQUESTS, Request};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use workqueue::{JobId, Metrics, Priority, Producer, Settings, Trace, read_fact};

use super::deployment::BenchDeployment;
use super::round::{Round, milliseconds, real};

/// The number of requests that are submitted at a time.
const AT_A_TIME: usize = 64;

/// The generator's concurrency, and the time of its work on each request.
const WORK: [(&str, &str); 2] = [("CONCURRENCY", "16"), ("WORK_TIME", "10ms")];

/// The number of urgent requests that come while a backlog waits, and the time between them.
const URGENT: (usize, Duration) = (20, Duration::from_millis(20));

/// Measures both.
pub(super) async fn measure(round: &mut Round<'_>) -> anyhow::Result<()> {
    urgent_among_low(round).await?;
    low_among_urgent(round).await
}

/// The time of the slowest urgent request while a backlog of others waits.
async fn urgent_among_low(round: &mut Round<'_>) -> anyhow::Result<()> {
    let backlog = round.sizes.low;
    let mut deployment = BenchDeployment::new(round, false).await?;
    let producer = producer(&deployment).await?;
    ask(&producer, Priority::Low, backlog).await?;
    deployment.start_requestor(&[("REQUEST_RATE", "0")])?;
    deployment.start_generator(&WORK)?;
    deployment.ready(Instant::now()).await?;
    let mut ids = Vec::new();
    for _ in 0..URGENT.0 {
        ids.extend(ask(&producer, Priority::High, 1).await?);
        sleep(URGENT.1).await;
    }
    let left = waiting(&deployment, Priority::Low).await?;
    ensure!(left > 0, "the backlog was done before the last urgent request came");
    deployment.received(backlog + ids.len() as u64, round).await?;
    let mut slowest = Duration::ZERO;
    for id in ids {
        let stored = read_fact::<Stored>(&deployment.connection, &id.to_string()).await?;
        let stored =
            stored.and_then(Stored::acknowledgment).context("an urgent request is not stored")?;
        let took = stored.stored_at.duration_since(stored.requested_at);
        slowest = slowest.max(took.try_into().unwrap_or_default());
    }
    round.figures.add("urgent_in_backlog", milliseconds(slowest));
    Ok(())
}

/// The share of requests of low priority in the work, while more urgent ones come than the generator can handle.
async fn low_among_urgent(round: &mut Round<'_>) -> anyhow::Result<()> {
    let low = round.sizes.low;
    let mut deployment = BenchDeployment::new(round, false).await?;
    let producer = producer(&deployment).await?;
    ask(&producer, Priority::Low, low).await?;
    deployment.start_requestor(&[("REQUEST_RATE", "max"), ("REQUEST_PRIORITY", "high")])?;
    deployment.ready(Instant::now()).await?;
    // Once more requests wait than are handled in this time.
    deployment.count(facts::REQUESTED, low * 2).await?;
    deployment.start_generator(&WORK)?;
    deployment.count(facts::STORED, low / 2).await?;
    let left = waiting(&deployment, Priority::Low).await?;
    ensure!(waiting(&deployment, Priority::High).await? > 0, "there was nothing urgent any more");
    let share = real(low - left) * 100.0 / real(low / 2);
    round.figures.add("low_under_urgent_load", share);
    Ok(())
}

pub(super) async fn producer(deployment: &BenchDeployment) -> anyhow::Result<Producer> {
    let (limits, metrics) = (Settings::from_env().limits, Metrics::new("bench"));
    let producer = Producer::new(&deployment.connection, limits, AT_A_TIME, &metrics);
    // The whole topology before the first request. Otherwise the audit would find requests that are older than the
    // store.
    producer.declare(&contract::topology()).await?;
    Ok(producer)
}

/// Submits this many requests of this priority, each for one string. Returns their ids.
pub(super) async fn ask(
    producer: &Producer,
    priority: Priority,
    count: u64,
) -> anyhow::Result<Vec<JobId>> {
    let amount = Amount::new(1, 64)?;
    let asking = async |_| {
        let request = Request::new(JobId::new(), amount, "bench", workqueue::now());
        let request = Request { priority, ..request };
        let never = CancellationToken::new();
        requestor::submit(producer, &request, &Trace::default(), &never).await?;
        anyhow::Ok(request.id)
    };
    stream::iter(0..count).map(asking).buffer_unordered(AT_A_TIME).try_collect().await
}

/// The number of requests of this priority that wait or are in flight.
async fn waiting(deployment: &BenchDeployment, priority: Priority) -> anyhow::Result<u64> {
    let queue = observe::queue(&deployment.connection, REQUESTS).await?;
    let lane = queue.lanes.into_iter().find(|lane| lane.priority == priority);
    let lane = lane.context("the queue has no such lane")?;
    Ok(lane.waiting + lane.in_flight)
}
