//! `lab bench`: the speed of the services, beside the baseline of the broker on the same machine.
//!
//! | measurement | module |
//! | --- | --- |
//! | the publishes that the broker confirms | `baseline` |
//! | round trips and strings a second at full speed | `saturation` |
//! | how long a round trip takes | `latency` |
//! | processor time and memory, at work and idle | `cost` |
//! | more generators, and a queue full of work | `growth` |
//!
//! Each part has a new broker, and each round has all parts: other load on the machine falls on all of
//! them, and a figure is compared with the baseline of its own round.

mod baseline;
mod cost;
mod deployment;
mod figures;
mod growth;
mod latency;
mod machine;
mod report;
mod saturation;

pub use figures::{Figure, Goal, Spread};
pub use machine::Machine;
pub use report::BenchReport;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use cli::terminal::tell;
use testkit::broker::{Broker, BrokerOptions, find};
use testkit::programs::{self, Programs};
use testkit::target_directory::RunDirectory;
use workqueue::{Connection, NatsSettings};

use deployment::Each;
use figures::Figures;

/// How many durable writes a round trip has: three messages, and three facts.
const WRITES: u64 = 6;

/// Settings of `lab bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchSettings {
    /// How many times to measure everything
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// How many requests to send around at full speed in each measurement
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1000..))]
    pub requests: u64,

    /// Measure only this part, besides the baseline and the round trips that it is compared with; may be given
    /// several times
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Vec<BenchPart>,

    /// Do just enough to see that all of it works: one round, whose figures mean nothing
    #[arg(long, conflicts_with_all = ["rounds", "requests", "save"])]
    pub quick: bool,

    /// Print the figures as JSON, round by round
    #[arg(long)]
    pub json: bool,

    /// Keep the table in README.md, and with its machine in BENCHMARKS.md
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
    /// Starting, and doing nothing
    Idle,
    /// More generators, and a backlog
    Growth,
    /// A broker that has each write on the disk before it confirms it
    Sync,
}

/// How much of everything is done.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Publishes for the baseline, for each number of them under way.
    publishes: u64,
    requests: u64,
    /// How long to ask at 100 a second, and at more.
    calm: Duration,
    busy: Duration,
    /// How long to measure idle processes.
    idle: Duration,
    backlog: u64,
    sync_publishes: u64,
    sync_requests: u64,
}

impl Sizes {
    fn of(settings: &BenchSettings) -> Self {
        if settings.quick {
            return Self {
                publishes: 5000,
                requests: 2000,
                calm: Duration::from_secs(1),
                busy: Duration::from_secs(1),
                idle: Duration::from_secs(1),
                backlog: 2000,
                sync_publishes: 300,
                sync_requests: 100,
            };
        }
        Self {
            publishes: 200_000,
            requests: settings.requests,
            calm: Duration::from_secs(20),
            busy: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            backlog: 200_000,
            sync_publishes: 10_000,
            sync_requests: 5000,
        }
    }
}

/// One round, and its figures.
struct Round<'a> {
    programs: &'a Programs,
    sizes: Sizes,
    /// Where the brokers and the logs are.
    directory: &'a Path,
    figures: &'a mut Figures,
    /// The most memory that each had in any part so far, in kB.
    peak: Each<u64>,
}

impl Round<'_> {
    /// A broker of its own.
    async fn broker(&self, sync_always: bool) -> anyhow::Result<Broker> {
        let directory = tempfile::Builder::new().prefix("broker-").tempdir_in(self.directory);
        let directory = directory.context("cannot create a directory for the broker")?.keep();
        let options =
            BrokerOptions { directory: Some(directory), sync_always, ..Default::default() };
        Broker::start(options).await
    }

    async fn connect(&self, broker: &Broker) -> anyhow::Result<Connection> {
        observe::connect(&NatsSettings::at(broker.url()), "lab bench").await
    }

    fn note_peak(&mut self, peak: Each<u64>) {
        self.peak.broker = self.peak.broker.max(peak.broker);
        self.peak.requestor = self.peak.requestor.max(peak.requestor);
        self.peak.generator = self.peak.generator.max(peak.generator);
    }
}

/// Measures, and tells on the standard error how far it is.
///
/// # Errors
///
/// Where something cannot be built or started, or anything was lost or doubled.
pub async fn bench(settings: &BenchSettings) -> anyhow::Result<BenchReport> {
    let programs = programs::build().await?;
    // Not among the temporary files, which some systems keep in memory.
    let directory = RunDirectory::make("bench")?;
    let report = run(&programs, directory.path(), settings).await;
    if report.is_err() {
        directory.keep();
    }
    let report = report?;
    if settings.save {
        save(&report)?;
    }
    Ok(report)
}

async fn run(
    programs: &Programs,
    directory: &Path,
    settings: &BenchSettings,
) -> anyhow::Result<BenchReport> {
    let sizes = Sizes::of(settings);
    let rounds = if settings.quick { 1 } else { settings.rounds };
    let machine = Machine::here(&find().await?, directory);
    let mut figures = Figures::default();
    for number in 1..=rounds {
        tell(format_args!("Round {number} of {rounds}"));
        let inner = directory.join(format!("round-{number}"));
        fs::create_dir(&inner).context("cannot create a directory for the round")?;
        let (figures, peak) = (&mut figures, Each::default());
        let round = Round { programs, sizes, directory: &inner, figures, peak };
        let measured = measure(round, &settings.only).await;
        measured.with_context(|| format!("logs and queues are in {}", inner.display()))?;
        fs::remove_dir_all(&inner).context("cannot remove the directory of the round")?;
    }
    Ok(BenchReport { machine, rounds, quick: settings.quick, figures: figures.into_list() })
}

/// Keeps the report with its machine in a file of its own, and its table in the README.
fn save(report: &BenchReport) -> anyhow::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let write = |name: &str, text: &str| {
        fs::write(workspace.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let readme =
        fs::read_to_string(workspace.join("README.md")).context("cannot read README.md")?;
    let readme = report::between_marks(&readme, &report.to_string())?;
    write("BENCHMARKS.md", &report.file())?;
    write("README.md", &readme)
}

/// Measures everything once, or only these parts.
async fn measure(mut round: Round<'_>, only: &[BenchPart]) -> anyhow::Result<()> {
    let wanted = |part| only.is_empty() || only.contains(&part);
    let round = &mut round;
    let baseline = baseline::measure(round).await?;
    let run = saturation::round_trips(round, baseline).await?;
    let round_trips = run.round_trips_per_second;
    tell(format_args!(
        "  the baseline is {baseline:.0} publishes/s; {round_trips:.0} round trips/s"
    ));
    if wanted(BenchPart::Strings) {
        saturation::strings(round, baseline).await?;
    }
    if wanted(BenchPart::Latency) {
        latency::measure(round, round_trips).await?;
    }
    if wanted(BenchPart::RoundTrips) {
        cost::of_round_trips(round, run.processor);
    }
    if wanted(BenchPart::Growth) {
        growth::measure(round, baseline, round_trips).await?;
    }
    cost::of_memory(round);
    if wanted(BenchPart::Idle) {
        cost::of_idleness(round).await?;
    }
    if wanted(BenchPart::Sync) {
        saturation::sync(round).await?;
    }
    Ok(())
}

/// How many of something there are in a second.
fn per_second(count: u64, taken: Duration) -> f64 {
    real(count) / taken.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "nothing is counted up to that many")]
fn real(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are moderate")]
fn whole(count: f64) -> u64 {
    count.round() as u64
}
