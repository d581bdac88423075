//! `lab bench --peers`: the same job on other systems, beside this one.
//!
//! The job is a round trip of this system: a requestor puts a request on a queue; a generator makes a random string
//! of 16 for it, and puts a response on a second queue; the requestor stores it, and puts an acknowledgment on a
//! third; the generator marks the request as received. Each round has all systems, one after the other, each twice:
//! undisturbed, for the speed, and with a generator that is killed, for the losses. `system` starts and reads each of
//! the other systems, and `report` makes the table.

mod report;
mod system;

pub use report::PeersReport;
pub(super) use report::parts;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cli::terminal::tell;
use contract::facts::RECEIVED;
use jiff::Timestamp;
use testkit::broker::find;
use testkit::process::Process;
use testkit::programs::{self, Programs};
use testkit::target_directory::RunDirectory;
use testkit::usage::group_processor_time;
use tokio::time::{Instant, sleep};

use crate::replica::refuse_request_total;

use super::cost::microseconds_of_each;
use super::curves::Curves;
use super::deployment::BenchDeployment;
use super::figures::Figures;
use super::machine::{Machine, said_by};
use super::round::{Each, Round, per_second};
use super::saturation::{self, Load};
use super::settings::{BenchSettings, Sizes};
use report::{PeerFigures, PeerRound};
use system::{PeerBroker, PeerSystem, Progress, Tools, says};

/// The length of each string.
const LENGTH: u64 = 16;

/// The most round trips of a system. For each task that a worker of Apalis takes, Redis searches the list of those that
/// wait: with ten times as many round trips, that search was most of what was measured.
const MOST_ROUND_TRIPS: u64 = 10_000;

/// Measures all systems, and prints its progress to the standard error.
///
/// # Errors
///
/// If something is missing or cannot be started, or this system has lost or doubled a request.
pub async fn bench_peers(settings: &BenchSettings) -> anyhow::Result<PeersReport> {
    refuse_request_total()?;
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
    let (rounds, round_trips) = if settings.quick {
        (1, 500)
    } else {
        (settings.rounds, sizes.requests.min(MOST_ROUND_TRIPS))
    };
    let mut report = PeersReport {
        machine: Machine::here(&find().await?, directory),
        redis: said_by("redis-server", &["--version"]).split(" sha=").take(1).collect(),
        round_trips,
        killed_round_trips: (round_trips / 5).clamp(500, 10_000),
        quick: settings.quick,
        systems: PeerSystem::ALL.map(|system| PeerFigures { system, rounds: Vec::new() }).into(),
    };
    for number in 1..=rounds {
        tell(format_args!("Round {number} of {rounds}"));
        for PeerFigures { system, rounds } in &mut report.systems {
            let inner = directory.join(format!("round-{number}-{system:?}"));
            fs::create_dir(&inner).context("cannot create a directory for the system")?;
            let killed = report.killed_round_trips;
            let measured = if *system == PeerSystem::Decoupled {
                let (figures, curves) = (&mut Figures::default(), &mut Curves::default());
                let (directory, peak) = (inner.as_path(), Each::default());
                let round = Round { programs, sizes, directory, figures, curves, peak };
                ours(round, round_trips, killed).await
            } else {
                theirs(*system, tools, &inner, round_trips, killed).await
            };
            let measured =
                measured.with_context(|| format!("logs and queues are in {}", inner.display()))?;
            tell(format_args!(
                "  {system:?}: {:.0} round trips/s",
                measured.round_trips_per_second
            ));
            rounds.push(measured);
            fs::remove_dir_all(&inner).context("cannot remove the directory of the system")?;
        }
    }
    Ok(report)
}

/// Measures this system. A run with a lost or doubled request is an error, as in all measurements.
async fn ours(mut round: Round<'_>, round_trips: u64, killed: u64) -> anyhow::Result<PeerRound> {
    let load = Load { length: LENGTH, ..Load::of(round_trips) };
    let run = saturation::run(&mut round, load).await?;
    let mut deployment = BenchDeployment::new(&round, false).await?;
    deployment.start_generator(&[])?;
    deployment.ready(Instant::now()).await?;
    let [total, length] = [killed, LENGTH].map(|number| number.to_string());
    deployment.start_requestor(&[
        ("REQUEST_RATE", "max"),
        ("REQUEST_TOTAL", &total),
        ("STRING_LENGTH", &length),
    ])?;
    deployment.count(RECEIVED, killed / 2).await?;
    deployment.replace_generators().await?;
    deployment.received(killed, &mut round).await?;
    Ok(PeerRound {
        round_trips_per_second: run.round_trips_per_second,
        broker: microseconds_of_each(round_trips, run.processor.broker),
        programs: microseconds_of_each(
            round_trips,
            run.processor.requestor + run.processor.generator,
        ),
        lost: 0,
        lost_to_kill: 0,
        doubled: 0,
    })
}

/// Measures another system.
async fn theirs(
    system: PeerSystem,
    tools: &Tools,
    directory: &Path,
    round_trips: u64,
    killed: u64,
) -> anyhow::Result<PeerRound> {
    let [calm, troubled] = ["undisturbed", "killed"].map(|name| directory.join(name));
    let calm = run(system, tools, &calm, system.round_trips(round_trips), false).await?;
    let troubled = run(system, tools, &troubled, killed, true).await?;
    Ok(PeerRound { lost_to_kill: troubled.lost, doubled: troubled.doubled, ..calm })
}

/// Runs this many round trips. With `kill`, the generator is killed in the middle, and started again.
async fn run(
    system: PeerSystem,
    tools: &Tools,
    directory: &Path,
    round_trips: u64,
    mut kill: bool,
) -> anyhow::Result<PeerRound> {
    fs::create_dir(directory).context("cannot create a directory for the run")?;
    let mut broker = PeerBroker::start(system, directory).await?;
    let commands = tools.commands(system, &broker.url(), round_trips);
    let log = |number: usize| directory.join(format!("program-{number}.log"));
    let mut programs = Vec::new();
    for (number, command) in commands.into_iter().enumerate() {
        if let Some(before) = programs.last_mut() {
            says(before, "listening\n").await?;
        }
        programs.push(Process::spawn(command, log(number))?);
    }
    let usage = |broker: &PeerBroker, programs: &[Process]| {
        let programs = programs.iter().filter_map(|it| group_processor_time(it.id())).sum();
        [broker.processor_time().unwrap_or_default(), programs]
    };

    let is_undisturbed = !kill;
    let (mut progress, mut before) = (Progress::default(), None);
    let (mut last, mut last_change) = (Timestamp::now(), Instant::now());
    // A second mark of the same round trip may still come.
    while !(is_undisturbed && progress.marked == round_trips)
        && last_change.elapsed() < system.patience()
    {
        sleep(system.poll()).await;
        let seen = progress;
        broker.look(&log(0), &mut progress).await?;
        if progress != seen {
            (last, last_change) = (Timestamp::now(), Instant::now());
        }
        if before.is_none() && progress.began.is_some() {
            // Without the cost of the start, which comes only once.
            before = Some(usage(&broker, &programs));
        }
        if kill && progress.marked >= round_trips / 2 {
            kill = false;
            if progress.marked == round_trips {
                tell(format_args!(
                    "  {system:?}: all was done before the generator could be killed"
                ));
            }
            programs[0].kill().await?;
            let again = tools.commands(system, &broker.url(), round_trips).swap_remove(0);
            programs[0] = Process::spawn(again, log(0))?;
        }
        for program in &mut programs {
            let failed = program.try_wait()?.is_some_and(|status| !status.success());
            ensure!(!failed, "a program of {system:?} has failed:\n{}", program.log_text());
        }
    }
    let after: [Duration; 2] = usage(&broker, &programs);
    let Progress { began, marked, doubled } = progress;
    let (began, before) = began.zip(before).context("it has not begun")?;
    ensure!(!kill, "{system:?} has marked only {marked} of {round_trips}");
    let of_each = |which: usize| {
        microseconds_of_each(round_trips, after[which].saturating_sub(before[which]))
    };
    Ok(PeerRound {
        round_trips_per_second: per_second(marked, last.duration_since(began).unsigned_abs()),
        broker: of_each(0),
        programs: of_each(1),
        lost: round_trips - marked,
        lost_to_kill: 0,
        doubled,
    })
}
