//! One run of the job on another system, undisturbed or with a generator that is killed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use testkit::process::Process;
use testkit::usage::group_processor_time;
use tokio::time::{Instant, sleep};

use super::report::PeerRound;
use super::system::{PeerBroker, Progress, System, Tools};
use crate::bench::cost::microseconds_of_each;
use crate::bench::round::per_second;

/// How often to look how far a run is.
const POLL: Duration = Duration::from_millis(10);

/// How long a program may take until it listens.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Does this many loops. With `kill`, the generator is killed in the middle, and started again.
pub(super) async fn run(
    system: System,
    tools: &Tools,
    directory: &Path,
    loops: u64,
    mut kill: bool,
) -> anyhow::Result<PeerRound> {
    fs::create_dir(directory).context("cannot create a directory for the run")?;
    let mut broker = PeerBroker::start(system, directory).await?;
    let mut commands = tools.commands(system, &broker.url, loops);
    let log = |number: usize| directory.join(format!("program-{number}.log"));
    let mut programs = Vec::new();
    for (number, command) in commands.into_iter().enumerate() {
        if let Some(before) = programs.last_mut() {
            says(before, "listening\n").await?;
        }
        programs.push(Process::spawn(command, log(number))?);
    }
    let of_groups = |ids: &mut dyn Iterator<Item = u32>| -> Duration {
        ids.filter_map(group_processor_time).sum()
    };
    let usage = |broker: u32, programs: &[Process]| {
        [of_groups(&mut [broker].into_iter()), of_groups(&mut programs.iter().map(Process::id))]
    };

    let is_undisturbed = !kill;
    let (mut progress, mut before) = (Progress::default(), None);
    let (mut last, mut last_change) = (Timestamp::now(), Instant::now());
    // A loop that was marked may be marked again.
    while !(is_undisturbed && progress.marked == loops) && last_change.elapsed() < system.patience()
    {
        sleep(POLL).await;
        let seen = progress;
        broker.look(&log(0), &mut progress).await?;
        if progress != seen {
            (last, last_change) = (Timestamp::now(), Instant::now());
        }
        if before.is_none() && progress.began.is_some() {
            // Starting costs as well, but only once.
            before = Some(usage(broker.id, &programs));
        }
        if kill && progress.marked >= loops / 2 {
            kill = false;
            programs[0].kill().await?;
            commands = tools.commands(system, &broker.url, loops);
            programs[0] = Process::spawn(commands.remove(0), log(0))?;
        }
        for program in &mut programs {
            let failed = program.try_wait()?.is_some_and(|status| !status.success());
            ensure!(!failed, "a program of {system:?} has failed:\n{}", program.log_text());
        }
    }
    let after = usage(broker.id, &programs);
    let Progress { began, marked, doubled } = progress;
    let (began, before) = began.zip(before).context("it has not begun")?;
    ensure!(!is_undisturbed || marked == loops, "{system:?} has marked {marked} of {loops}");
    let of_each =
        |which: usize| microseconds_of_each(loops, after[which].saturating_sub(before[which]));
    Ok(PeerRound {
        loops_per_second: per_second(marked, last.duration_since(began).unsigned_abs()),
        broker: of_each(0),
        programs: of_each(1),
        lost: loops - marked,
        doubled,
    })
}

/// Waits until a program says this.
pub(super) async fn says(program: &mut Process, text: &str) -> anyhow::Result<()> {
    let limit = Instant::now() + START_TIMEOUT;
    while !program.log_text().contains(text) {
        let runs = program.try_wait()?.is_none() && Instant::now() < limit;
        ensure!(runs, "a program does not start:\n{}", program.log_text());
        sleep(POLL).await;
    }
    Ok(())
}
