//! `lab bench --peers`: the same job on other systems, beside this one.
//!
//! The job is a round trip of this system: a requestor puts a request on a queue; a generator makes a random string
//! of 16 for it, and puts a response on a second queue; the requestor stores it, and puts an acknowledgment on a
//! third; the generator marks the request as received. Each round has all systems, one after the other, each twice:
//! undisturbed, for the speed, and with a generator that is killed, for the losses. `system` has how each of the
//! others is started and read, `run` one run of the job on it, and `report` the table.

mod report;
mod run;
mod system;

pub use report::PeersReport;
pub(super) use report::parts;

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use cli::terminal::tell;
use contract::facts::RECEIVED;
use testkit::broker::find;
use testkit::programs::{self, Programs};
use testkit::target_directory::RunDirectory;

use super::cost::microseconds_of_each;
use super::curves::Curves;
use super::deployment::BenchDeployment;
use super::figures::Figures;
use super::machine::{Machine, said_by};
use super::round::{Each, Round};
use super::saturation::{self, Load};
use super::settings::{BenchSettings, Sizes};
use report::{PeerFigures, PeerRound};
use system::{System, Tools};

/// Measures all systems, and tells on the standard error how far it is.
///
/// # Errors
///
/// Where something is missing or cannot be started, or this system has lost or doubled anything.
pub async fn bench_peers(settings: &BenchSettings) -> anyhow::Result<PeersReport> {
    let tools = Tools::prepare().await?;
    let programs = programs::build().await?;
    let directory = RunDirectory::make("bench-peers")?;
    let report = measure(&programs, &tools, directory.path(), settings).await;
    if report.is_err() {
        directory.keep();
    }
    let report = report?;
    if settings.save {
        super::save(|old| parts(old).0.to_owned() + &report.part())?;
    }
    Ok(report)
}

async fn measure(
    programs: &Programs,
    tools: &Tools,
    directory: &Path,
    settings: &BenchSettings,
) -> anyhow::Result<PeersReport> {
    let sizes = Sizes::of(settings);
    let (rounds, loops) = if settings.quick { (1, 500) } else { (settings.rounds, sizes.requests) };
    let mut report = PeersReport {
        machine: Machine::here(&find().await?, directory),
        redis: said_by("redis-server", &["--version"]).split(" sha=").take(1).collect(),
        loops,
        killed_loops: (loops / 5).clamp(500, 10_000),
        quick: settings.quick,
        systems: System::ALL.map(|system| PeerFigures { system, rounds: Vec::new() }).into(),
    };
    for number in 1..=rounds {
        tell(format_args!("Round {number} of {rounds}"));
        for PeerFigures { system, rounds } in &mut report.systems {
            let inner = directory.join(format!("round-{number}-{system:?}"));
            fs::create_dir(&inner).context("cannot create a directory for the system")?;
            let killed = report.killed_loops;
            let measured = if *system == System::Decoupled {
                let (figures, curves) = (&mut Figures::default(), &mut Curves::default());
                let (directory, peak) = (inner.as_path(), Each::default());
                let round = Round { programs, sizes, directory, figures, curves, peak };
                ours(round, loops, killed).await
            } else {
                theirs(*system, tools, &inner, loops, killed).await
            };
            let measured =
                measured.with_context(|| format!("logs and queues are in {}", inner.display()))?;
            tell(format_args!("  {system:?}: {:.0} loops/s", measured.loops_per_second));
            rounds.push(measured);
            fs::remove_dir_all(&inner).context("cannot remove the directory of the system")?;
        }
    }
    Ok(report)
}

/// This system. A run that has lost or doubled anything is an error, as in all of its measurements.
async fn ours(mut round: Round<'_>, loops: u64, killed: u64) -> anyhow::Result<PeerRound> {
    let run = saturation::run(&mut round, Load::of(loops)).await?;
    let mut deployment = BenchDeployment::new(&round, false).await?;
    deployment.start_generator(&[])?;
    let total = killed.to_string();
    deployment.start_requestor(&[("REQUEST_RATE", "max"), ("REQUEST_TOTAL", &total)])?;
    deployment.count(RECEIVED, killed / 2).await?;
    deployment.replace_generators().await?;
    deployment.received(killed, &mut round).await?;
    Ok(PeerRound {
        loops_per_second: run.round_trips_per_second,
        broker: microseconds_of_each(loops, run.processor.broker),
        programs: microseconds_of_each(loops, run.processor.requestor + run.processor.generator),
        lost: 0,
        doubled: 0,
    })
}

async fn theirs(
    system: System,
    tools: &Tools,
    directory: &Path,
    loops: u64,
    killed: u64,
) -> anyhow::Result<PeerRound> {
    let loops = system.loops(loops);
    let run = run::run(system, tools, &directory.join("undisturbed"), loops, false).await?;
    let PeerRound { lost, doubled, .. } =
        run::run(system, tools, &directory.join("killed"), killed, true).await?;
    Ok(PeerRound { lost, doubled, ..run })
}
