//! The speed with more generators on the same machine, and with a queue that is full of work.

use anyhow::Context as _;
use contract::facts::{self, Received, Stored};
use contract::queues::REQUESTS;
use tokio::time::Instant;
use workqueue::topology;

use super::deployment::BenchDeployment;
use super::round::{Round, WRITES, per_second, real};
use super::saturation::{self, Load};

/// Measures both, compared with one generator and an empty queue.
pub(super) async fn measure(
    round: &mut Round<'_>,
    baseline: f64,
    round_trips_per_second: f64,
) -> anyhow::Result<()> {
    let requests = round.sizes.requests;
    let share = |round_trips: f64| round_trips * real(WRITES) / baseline;
    for generators in [2, 4] {
        let load = Load { generators, ..Load::of(requests) };
        let round_trips = saturation::run(round, load).await?.round_trips_per_second;
        round.figures.add_rate(
            &format!("round_trips_{generators}_generators"),
            round_trips,
            share(round_trips),
        );
        if generators == 4 {
            round.figures.add("four_generators", round_trips * 100.0 / round_trips_per_second);
        }
    }
    let round_trips = out_of_backlog(round).await?;
    // The request and its fact were written before.
    let writes = round_trips * real(WRITES - 2);
    round.figures.add_rate("backlog_round_trips", round_trips, writes / baseline);
    let writes_without = round_trips_per_second * real(WRITES);
    round.figures.add("backlog_share", writes * 100.0 / writes_without);
    Ok(())
}

/// The round trips a second out of a queue that was full before the first generator started.
async fn out_of_backlog(round: &mut Round<'_>) -> anyhow::Result<f64> {
    let backlog = round.sizes.backlog;
    let mut deployment = self::backlog(round, backlog).await?;
    deployment.start_requestor(&[("REQUEST_RATE", "0")])?;
    deployment.ready(Instant::now()).await?;
    deployment.start_generator(&[])?;
    deployment.received(backlog, round).await?;
    let first: Stored = deployment.first().await?;
    let first = first.acknowledgment().context("nothing is cancelled here")?;
    let last: Received = deployment.last().await?;
    let taken = last.received_at.duration_since(first.generated_at).unsigned_abs();
    Ok(per_second(backlog, taken))
}

/// A deployment without services, in which this many requests wait.
pub(super) async fn backlog(round: &Round<'_>, requests: u64) -> anyhow::Result<BenchDeployment> {
    let limit = requests.to_string();
    let mut deployment = BenchDeployment::new(round, false).await?;
    deployment.start_requestor(&[("REQUEST_RATE", "max"), ("QUEUE_LIMIT", &limit)])?;
    // Until the queue is full. The requestor gives up the refused requests.
    deployment.count(facts::REQUESTED, requests).await?;
    deployment.stop().await?;
    let nats = deployment.connection.context();
    let waiting = topology::stream_state(nats, REQUESTS.stream).await?.state.messages;
    anyhow::ensure!(waiting == requests, "{waiting} of {requests} requests wait");
    Ok(deployment)
}
