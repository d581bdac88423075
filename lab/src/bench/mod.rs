//! `lab bench`: the speed of the services, beside the baseline of the broker on the same machine.
//!
//! | measurement | module |
//! | --- | --- |
//! | the publishes that the broker confirms | `baseline` |
//! | round trips and strings a second at full speed | `saturation` |
//! | the latency of a round trip | `latency` |
//! | processor time and memory, at work and idle | `cost` |
//! | more generators, and a queue full of work | `growth` |
//! | urgent requests beside others | `priorities` |
//! | a rate limit over five generators | `rates` |
//! | many requests that are due at once | `later` |
//! | curves up to a million requests, and more replicas, browsers and brokers | `scale` |
//! | the same job on other systems, only with `--peers` | `peers` |
//!
//! Each part has a new broker, and each round has all parts. So other load on the machine affects all parts, and a
//! figure is compared with the baseline of its own round.

mod baseline;
mod cost;
mod curves;
mod deployment;
mod figures;
mod growth;
mod latency;
mod later;
mod machine;
mod peers;
mod priorities;
mod rates;
mod report;
mod round;
mod saturation;
mod scale;
mod settings;

pub use curves::{Curve, Curves};
pub use figures::{Figure, Goal, Spread};
pub use machine::Machine;
pub use peers::{PeersReport, bench_peers};
pub use report::BenchReport;
pub use settings::{BenchPart, BenchSettings};

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cli::terminal::tell;
use testkit::broker::find;
use testkit::programs::{self, Programs};
use testkit::target_directory::RunDirectory;

use crate::replica::refuse_request_total;
use figures::Figures;
use report::PICTURE;
use round::{Each, Round};
use settings::Sizes;

/// Measures, and prints its progress to the standard error.
///
/// # Errors
///
/// If something cannot be built or started, or a request was lost or doubled.
pub async fn bench(settings: &BenchSettings) -> anyhow::Result<BenchReport> {
    refuse_request_total()?;
    let programs = programs::build().await?;
    // Not in the directory for temporary files, which some systems keep in memory.
    let directory = RunDirectory::make("bench")?;
    let report = run(&programs, directory.path(), settings).await;
    if report.is_err() {
        directory.keep();
    }
    let report = report?;
    if settings.save {
        save(|old| report.file() + peers::parts(old).1)?;
        fs::write(root().join(PICTURE), report.curves.draw())
            .context("cannot write the picture")?;
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
    let (mut figures, mut curves) = (Figures::default(), Curves::default());
    for number in 1..=rounds {
        tell(format_args!("Round {number} of {rounds}"));
        let inner = directory.join(format!("round-{number}"));
        fs::create_dir(&inner).context("cannot create a directory for the round")?;
        let (figures, curves, peak) = (&mut figures, &mut curves, Each::default());
        let round = Round { programs, sizes, directory: &inner, figures, curves, peak };
        let measured = measure(round, &settings.only).await;
        measured.with_context(|| format!("logs and queues are in {}", inner.display()))?;
        fs::remove_dir_all(&inner).context("cannot remove the directory of the round")?;
    }
    Ok(BenchReport { machine, rounds, quick: settings.quick, figures: figures.into_list(), curves })
}

/// Writes BENCHMARKS.md anew.
fn save(renew: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
    let path = root().join("BENCHMARKS.md");
    let old = fs::read_to_string(&path).context("cannot read BENCHMARKS.md")?;
    fs::write(path, renew(&old)).context("cannot write BENCHMARKS.md")
}

/// The directory of the project.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
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
    if wanted(BenchPart::Bundles) {
        saturation::bundles(round).await?;
    }
    if wanted(BenchPart::Growth) {
        growth::measure(round, baseline, round_trips).await?;
    }
    if wanted(BenchPart::Priorities) {
        priorities::measure(round).await?;
    }
    if wanted(BenchPart::Rates) {
        rates::measure(round).await?;
    }
    if wanted(BenchPart::Later) {
        later::measure(round).await?;
    }
    cost::of_memory(round);
    if wanted(BenchPart::Scale) {
        scale::measure(round).await?;
    }
    if wanted(BenchPart::Idle) {
        cost::of_idleness(round).await?;
    }
    if wanted(BenchPart::Sync) {
        saturation::sync(round).await?;
    }
    Ok(())
}
