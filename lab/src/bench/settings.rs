//! What to measure, and how much of it.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// Settings of `lab bench`.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct BenchSettings {
    /// How many times to measure everything
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// How many round trips to make at full speed in each measurement
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1000..))]
    pub requests: u64,

    /// Measure only this part, with the baseline and the round trips that it is compared with; may be given several
    /// times
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Vec<BenchPart>,

    /// Measure this system beside apalis, Celery and plain publish and subscribe instead: how fast each does the
    /// same job, and what it loses when a worker is killed. Needs redis-server, and Python with pip
    #[arg(long, conflicts_with = "only")]
    pub peers: bool,

    /// Only test the benchmark: one short round, whose figures mean nothing
    #[arg(long, conflicts_with_all = ["rounds", "requests", "save"])]
    pub quick: bool,

    /// Print the figures as JSON, round by round
    #[arg(long)]
    pub json: bool,

    /// Write the table, with a description of the machine, to BENCHMARKS.md
    #[arg(long, conflicts_with = "only")]
    pub save: bool,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// Round trips a second, and the cost of each
    RoundTrips,
    /// Strings a second, with many in each round trip
    Strings,
    /// How long a round trip takes
    Latency,
    /// Round trips a second with many requests in a message, and the cost of each
    Bundles,
    /// The time to start, and the cost of an idle service
    Idle,
    /// More generators, and a backlog
    Growth,
    /// Urgent requests behind a backlog, and other requests beside many urgent ones
    Priorities,
    /// A rate limit over five generators
    Rates,
    /// Many requests that are due at once
    Later,
    /// Curves: up to a million requests, eight replicas of each service, fifty browsers and three brokers
    Scale,
    /// A broker that syncs each write to the disk before it confirms it
    Sync,
}

/// The amounts of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Publishes for the baseline, for each number of them under way.
    pub(super) publishes: u64,
    pub(super) requests: u64,
    /// The time of the measurement at 100 requests a second, and that at a high rate.
    pub(super) calm: Duration,
    pub(super) busy: Duration,
    /// The time of the measurement of idle processes.
    pub(super) idle: Duration,
    pub(super) backlog: u64,
    /// Requests of low priority.
    pub(super) low: u64,
    /// Requests that are handled under a rate limit.
    pub(super) limited: u64,
    /// Requests that are due at the same moment.
    pub(super) due: u64,
    pub(super) sync_publishes: u64,
    pub(super) sync_requests: u64,
    /// The numbers of requests that wait, and then are complete.
    pub(super) amounts: &'static [u64],
    /// The numbers of replicas of each service.
    pub(super) replicas: &'static [u32],
    /// The numbers of browsers that show the page.
    pub(super) browsers: &'static [u64],
}

impl Sizes {
    pub(super) fn of(settings: &BenchSettings) -> Self {
        if settings.quick {
            return Self {
                publishes: 5000,
                requests: 2000,
                calm: Duration::from_secs(1),
                busy: Duration::from_secs(1),
                idle: Duration::from_secs(1),
                backlog: 2000,
                low: 2000,
                limited: 4000,
                due: 500,
                sync_publishes: 300,
                sync_requests: 100,
                amounts: &[500, 1000],
                replicas: &[1, 2],
                browsers: &[1, 3],
            };
        }
        Self {
            publishes: 200_000,
            requests: settings.requests,
            calm: Duration::from_secs(20),
            busy: Duration::from_secs(10),
            // The clock of a process's usage ticks a hundred times a second.
            idle: Duration::from_secs(30),
            backlog: 200_000,
            low: 10_000,
            limited: 10_000,
            due: 5000,
            sync_publishes: 10_000,
            sync_requests: 5000,
            amounts: &[10_000, 100_000, 1_000_000],
            replicas: &[1, 2, 4, 8],
            browsers: &[1, 10, 50],
        }
    }
}
