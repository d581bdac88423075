//! `lab compare`: the benefit and the cost of a queue between two services. Four pairs of a requestor and a generator
//! make the same requests at the same moments, and their generators fail at the same moments.
//!
//! | pair | design |
//! | --- | --- |
//! | coupled | `examples/synchronous`: a call over HTTP, with a time-out of 1 s and three retries |
//! | coupled, with breaker | the same with its circuit breaker |
//! | fire and forget | `examples/fire-and-forget`: plain publish and subscribe, on a broker of its own |
//! | queue | `requestor` and `generator`, on a broker of their own |
//!
//! | subject | module |
//! | --- | --- |
//! | the outages of the generators, from a seed | `plan` |
//! | the four pairs: started, broken, stopped | `pairs` |
//! | the observations of each | `reading` |
//! | the figures of each | `figures` |
//! | the report for people, and its bars | `report` |
//! | the picture | `picture` |
//!
//! The comparison is fair: all four pairs run on this machine at the same time, each with one requestor and one
//! generator, the same arrivals, the same work time, the same outages, and otherwise its own defaults. Fire and forget
//! listens for its last answers as long as they may take. The comparison simplifies the world:
//!
//! - The work is a wait, which takes no processor time. So no generator is overloaded, neither by retries nor by a
//!   backlog.
//! - Only generators fail. [`chaos`](crate::chaos) has the faults of a broker; with fire and forget its messages are
//!   lost as well.
//! - Everything is on one machine, which refuses calls to a killed generator. A machine that is down refuses nothing,
//!   and callers wait, as they do during the pause.
//! - "Doubled" counts effects. The coupled generator has one effect for each string that it makes. It could look up the
//!   id of the request first, but most such services do not. The generator of the queue may also make a string twice,
//!   after a redelivery, but its effect is created under the id of the request.

mod figures;
mod pairs;
mod picture;
mod plan;
mod reading;
mod report;
mod settings;

pub use figures::{Design, PairFigures, Second};
pub use plan::{Outage, OutageCause, outages};
pub use report::CompareReport;
pub use settings::CompareSettings;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use observe::audit::{Verdict, audit, drained};
use testkit::programs::{self, Examples, Programs};
use testkit::target_directory::{RunDirectory, from_here};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use figures::Seen;
use pairs::{Between, Pair, PairConfig};

use crate::event_log::EventLog;
use crate::times::whole_milliseconds;

/// The time limit for the queues to drain after the last answer. Only a stuck message reaches it.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(5);

/// Runs all four pairs, breaks their generators, waits for the last answers, and compares. At `stop` the requests end.
///
/// # Errors
///
/// If something cannot be built, started, broken or read.
pub async fn compare(
    settings: &CompareSettings,
    stop: &CancellationToken,
) -> anyhow::Result<CompareReport> {
    let built = stop.run_until_cancelled(programs::build_with_examples()).await;
    let (system, examples) = built.context("stopped before anything was started")??;
    let directory = RunDirectory::make("compare")?;
    let report = run(&system, &examples, directory.path(), settings, stop).await;
    if !report.as_ref().is_ok_and(|report| report.clean) {
        directory.keep();
    }
    report
}

async fn run(
    system: &Programs,
    examples: &Examples,
    directory: &Path,
    settings: &CompareSettings,
    stop: &CancellationToken,
) -> anyhow::Result<CompareReport> {
    let seed = settings.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let planned = outages(seed, settings.duration);
    let config = PairConfig { system, examples, settings, directory };
    let mut pairs = try_join_all(Design::ALL.map(|design| Pair::start(design, &config))).await?;

    let log = EventLog::new(settings.json, stop.clone());
    let (began, began_at) = (log.after(Duration::ZERO), workqueue::now());
    log.note(format_args!("seed {seed}: outages {}, pairs {}", planned.len(), pairs.len()));
    log.note(format_args!("logs and queues are in {}", from_here(directory)));
    let mut asking_since = Vec::new();
    for pair in &mut pairs {
        asking_since.push(began.elapsed());
        pair.ask()?;
    }
    let suffered = break_generators(&mut pairs, &planned, &log, stop).await?;
    stop.run_until_cancelled(sleep_until(log.after(settings.duration))).await;
    let asked_for = began.elapsed().min(settings.duration);
    let is_cut_short = stop.is_cancelled();
    if is_cut_short {
        try_join_all(pairs.iter_mut().map(Pair::stop_asking)).await?;
    }
    log.note("no more requests; the last answers come, some only after ACK_WAIT");
    let mut each = Vec::new();
    let mut verdict = Verdict::default();
    for (pair, since) in pairs.iter_mut().zip(asking_since) {
        // The requestor of the queue ends by itself only after all its requests.
        if pair.design != Design::Queue || !is_cut_short {
            pair.wait_until_answered().await?;
        }
        if let Between::Queues(_, connection) = &pair.between {
            let nats = connection.context();
            drained(nats, DRAIN_TIMEOUT).await?;
            verdict = audit(nats, Duration::ZERO).await?;
            let requests = reading::facts(connection, began_at).await?;
            each.push(Seen { requests, doubled: verdict.doubled });
        } else {
            let [requestor, generator] = pair.logs()?;
            each.push(reading::printed(&requestor, &generator, since)?);
        }
    }
    ensure!(
        verdict.requested > 0,
        "stopped before the first request, so there is nothing to compare"
    );
    log.note("stopping everything gracefully");
    try_join_all(pairs.into_iter().map(Pair::stop)).await?;
    Ok(CompareReport::new(seed, asked_for, settings, suffered, &each, verdict))
}

/// Breaks and mends all generators at the same moments, and returns the times. At `stop` they are mended at once.
async fn break_generators(
    pairs: &mut [Pair],
    planned: &[Outage],
    log: &EventLog,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Outage>> {
    let began = log.after(Duration::ZERO);
    let mut suffered = Vec::new();
    for outage in planned {
        let Outage { at, lasts, cause } = *outage;
        if stop.run_until_cancelled(sleep_until(log.after(at))).await.is_none() {
            break;
        }
        log.note(outage);
        let at = whole_milliseconds(began.elapsed());
        try_join_all(pairs.iter_mut().map(|pair| pair.break_generator(cause))).await?;
        stop.run_until_cancelled(sleep_until(log.after(outage.at + lasts))).await;
        pairs.iter_mut().try_for_each(|pair| pair.mend_generator(cause))?;
        let lasts = whole_milliseconds(began.elapsed()).saturating_sub(at);
        log.note(outage.end());
        suffered.push(Outage { at, lasts, cause });
    }
    Ok(suffered)
}
