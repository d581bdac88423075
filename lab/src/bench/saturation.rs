//! As many round trips as there can be: a requestor that asks as fast as the queue takes it, and generators.

use std::time::Duration;

use contract::facts::Received;
use contract::queues::Request;

use super::baseline;
use super::deployment::BenchDeployment;
use super::round::{Each, Round, WRITES, per_second, real};

/// The load of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) requests: u64,
    /// How many strings each request asks for.
    pub(super) count: u64,
    pub(super) generators: u32,
    /// Whether each write is on the disk before it is confirmed.
    pub(super) sync: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// From the first request to the last mark.
    pub(super) round_trips_per_second: f64,
    /// How long processors have worked for each side.
    pub(super) processor: Each<Duration>,
}

/// Measures round trips with one string, and gives how it went.
pub(super) async fn round_trips(round: &mut Round<'_>, baseline: f64) -> anyhow::Result<Run> {
    let load = Load { requests: round.sizes.requests, count: 1, generators: 1, sync: false };
    let run = run(round, load).await?;
    let round_trips = run.round_trips_per_second;
    round.figures.add_rate("round_trips", round_trips, round_trips * real(WRITES) / baseline);
    Ok(run)
}

/// Measures round trips with many strings.
pub(super) async fn strings(round: &mut Round<'_>, baseline: f64) -> anyhow::Result<()> {
    for count in [16, 64] {
        // Fewer requests, because each takes longer.
        let requests = (round.sizes.requests * 3 / (count + 3)).max(100);
        let run = run(round, Load { requests, count, generators: 1, sync: false }).await?;
        let strings = run.round_trips_per_second * real(count);
        round.figures.add_rate(&format!("strings_{count}"), strings, strings / baseline);
    }
    Ok(())
}

/// Measures the same on a broker that has each write on the disk before it confirms it.
pub(super) async fn sync(round: &mut Round<'_>) -> anyhow::Result<()> {
    let baseline = baseline::best(round, true, round.sizes.sync_publishes).await?;
    round.figures.add_rate("sync_baseline", baseline, 1.0);
    let load = Load { requests: round.sizes.sync_requests, count: 1, generators: 1, sync: true };
    let round_trips = run(round, load).await?.round_trips_per_second;
    round.figures.add_rate("sync_round_trips", round_trips, round_trips * real(WRITES) / baseline);
    Ok(())
}

/// Sends requests around, and sees to it that nothing is lost or doubled.
pub(super) async fn run(round: &mut Round<'_>, load: Load) -> anyhow::Result<Run> {
    let mut deployment = BenchDeployment::new(round, load.sync).await?;
    for _ in 0..load.generators {
        deployment.start_generator(&[])?;
    }
    let (total, count) = (load.requests.to_string(), load.count.to_string());
    deployment.start_requestor(&[
        ("REQUEST_RATE", "max"),
        ("REQUEST_TOTAL", &total),
        ("STRING_COUNT", &count),
    ])?;
    deployment.received(load.requests, round).await?;
    let first: Request = deployment.first().await?;
    let last: Received = deployment.last().await?;
    let taken = last.received_at.duration_since(first.requested_at).unsigned_abs();
    Ok(Run {
        round_trips_per_second: per_second(load.requests, taken),
        processor: deployment.processor,
    })
}
