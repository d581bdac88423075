//! Round trips at full speed: a requestor that makes requests as fast as the queue accepts them, and generators.

use std::mem;
use std::time::Duration;

use contract::facts::Received;
use contract::queues::Request;
use tokio::time::Instant;

use super::baseline;
use super::cost;
use super::deployment::BenchDeployment;
use super::round::{Each, Round, WRITES, per_second, real};

/// The load of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) requests: u64,
    /// The number of strings of each request, and their length.
    pub(super) count: u64,
    pub(super) length: u64,
    pub(super) requestors: u32,
    pub(super) generators: u32,
    pub(super) brokers: u16,
    /// The most requests, responses or acknowledgments in a message.
    pub(super) bundle_limit: u64,
    /// Whether the broker syncs each write to the disk before it confirms it.
    pub(super) sync: bool,
}

impl Load {
    /// This many requests for one string each, with one replica of each service, and a message for each request.
    pub(super) fn of(requests: u64) -> Self {
        let (requestors, generators, brokers) = (1, 1, 1);
        let (count, length, bundle_limit) = (1, 64, 1);
        Self { requests, count, length, requestors, generators, brokers, bundle_limit, sync: false }
    }
}

/// The result of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// From the first request to the last mark.
    pub(super) round_trips_per_second: f64,
    /// The processor time of each part.
    pub(super) processor: Each<Duration>,
}

/// Measures round trips with one string, and returns the result.
pub(super) async fn round_trips(round: &mut Round<'_>, baseline: f64) -> anyhow::Result<Run> {
    let run = run(round, Load::of(round.sizes.requests)).await?;
    let round_trips = run.round_trips_per_second;
    round.figures.add_rate("round_trips", round_trips, round_trips * real(WRITES) / baseline);
    Ok(run)
}

/// Measures round trips with many strings.
pub(super) async fn strings(round: &mut Round<'_>, baseline: f64) -> anyhow::Result<()> {
    for count in [16, 64] {
        // Fewer requests, because each takes longer.
        let requests = (round.sizes.requests * 3 / (count + 3)).max(100);
        let run = run(round, Load { count, ..Load::of(requests) }).await?;
        let strings = run.round_trips_per_second * real(count);
        round.figures.add_rate(&format!("strings_{count}"), strings, strings / baseline);
    }
    Ok(())
}

/// Measures round trips with one string in bundles, and their cost. They have no share of the baseline, because the
/// number of their writes depends on how full the bundles are.
pub(super) async fn bundles(round: &mut Round<'_>) -> anyhow::Result<()> {
    let load = Load::of(round.sizes.requests);
    // A service holds as many bundles as it would hold jobs, so its memory is a figure of its own.
    let without = mem::take(&mut round.peak);
    for bundle_limit in [8, 64] {
        let run = run(round, Load { bundle_limit, ..load }).await?;
        round.figures.add(&format!("bundles_{bundle_limit}"), run.round_trips_per_second);
        let Each { broker, requestor, generator } = run.processor;
        let all = cost::microseconds_of_each(load.requests, broker + requestor + generator);
        round.figures.add(&format!("bundles_{bundle_limit}_processor"), all);
    }
    let Each { requestor, generator, .. } = mem::replace(&mut round.peak, without);
    round.figures.add("bundles_memory", cost::megabytes_of(requestor.max(generator)));
    Ok(())
}

/// Measures round trips on a broker that syncs each write to the disk before it confirms it.
pub(super) async fn sync(round: &mut Round<'_>) -> anyhow::Result<()> {
    let baseline = baseline::best(round, true, round.sizes.sync_publishes).await?;
    round.figures.add_rate("sync_baseline", baseline, 1.0);
    let load = Load { sync: true, ..Load::of(round.sizes.sync_requests) };
    let round_trips = run(round, load).await?.round_trips_per_second;
    round.figures.add_rate("sync_round_trips", round_trips, round_trips * real(WRITES) / baseline);
    Ok(())
}

/// Runs the round trips of a load, and checks that no request is lost or doubled.
pub(super) async fn run(round: &mut Round<'_>, load: Load) -> anyhow::Result<Run> {
    let mut deployment = if load.brokers == 1 {
        BenchDeployment::new(round, load.sync).await?
    } else {
        BenchDeployment::on(round.cluster(load.brokers).await?, round).await?
    };
    let [count, length, limit] =
        [load.count, load.length, load.bundle_limit].map(|number| number.to_string());
    let replicas = load.brokers.to_string();
    let always = [("BUNDLE_LIMIT", limit.as_str()), ("REPLICAS", &replicas)];
    for _ in 0..load.generators {
        deployment.start_generator(&always)?;
    }
    deployment.ready(Instant::now()).await?;
    deployment.forget_usage();
    // Without the remainder that cannot be divided among the requestors.
    let each = load.requests / u64::from(load.requestors);
    let total = each.to_string();
    let requesting = [
        ("REQUEST_RATE", "max"),
        ("REQUEST_TOTAL", &total),
        ("STRING_COUNT", &count),
        ("STRING_LENGTH", &length),
    ];
    for _ in 0..load.requestors {
        deployment.start_requestor(&[&always[..], &requesting].concat())?;
    }
    let requests = each * u64::from(load.requestors);
    deployment.received(requests, round).await?;
    let first: Request = deployment.first().await?;
    let last: Received = deployment.last().await?;
    let taken = last.received_at.duration_since(first.requested_at).unsigned_abs();
    Ok(Run { round_trips_per_second: per_second(requests, taken), processor: deployment.processor })
}
