//! `lab chaos`: injects faults while requests flow, then lets the queues drain and audits.

mod clients;
mod environment;
mod pauses;
pub mod plan;
mod poison;
mod report;

pub use report::{ChaosReport, Findings};

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::Context;
use clap::Args;
use contract::queues;
use observe::Poller;
use observe::audit::{audit, drained};
use observe::snapshot::Totals;
use testkit::broker::Brokers;
use testkit::programs::{self, Programs};
use testkit::target_directory::{RunDirectory, from_here};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use workqueue::{Connection, NatsSettings, dead_letters};

use clients::Clients;
use environment::{ChaosEnvironment, ReplicaConfig};
use pauses::Pauses;
use plan::{Action, Cast, Fault, FaultTarget, Plan};
use poison::Poison;

use crate::event_log::EventLog;
use crate::replica::refuse_request_total;
use crate::starts_by_second;

/// The interval at which the progress is printed.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// The time limit for the broker's answers about the progress.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// The time limit for the queues to drain. Only a stuck message reaches it.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(5);

/// Settings of `lab chaos`.
#[derive(Args, Clone, Debug)]
pub struct ChaosSettings {
    /// Seed of the plan: the same seed makes the same plan [default: a random seed]
    #[arg(long, value_parser = workqueue::number::<u64>(0..), value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// How long to make requests and inject faults
    #[arg(long = "for", default_value = "60s", value_name = "TIME", value_parser = workqueue::duration)]
    pub duration: Duration,

    /// Requests a second, of all requestors together, or max
    #[arg(long, default_value = "1000", value_name = "RATE", allow_hyphen_values = true)]
    pub rate: requestor::Rate,

    /// How many requestors to run
    #[arg(long, default_value_t = 2, value_name = "NUMBER", value_parser = workqueue::number::<u32>(1..))]
    pub requestors: u32,

    /// How many generators to run
    #[arg(long, default_value_t = 2, value_name = "NUMBER", value_parser = workqueue::number::<u32>(1..))]
    pub generators: u32,

    /// How many brokers to run: 1, or 3 or 5 as a cluster
    #[arg(long, default_value_t = 1, value_parser = Brokers::count, value_name = "NUMBER")]
    pub brokers: u16,

    /// Follow the plan in this file, from --print-plan or written by hand
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["seed", "duration", "requestors", "generators", "brokers"]
    )]
    pub plan: Option<PathBuf>,

    /// Print the plan, and inject no fault
    #[arg(long, conflicts_with = "json")]
    pub print_plan: bool,

    /// Print the report as JSON; events are printed to the standard error
    #[arg(long)]
    pub json: bool,
}

impl ChaosSettings {
    /// The plan of the run.
    ///
    /// # Errors
    ///
    /// If the file with it cannot be read.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        if let Some(file) = &self.plan {
            let what = || format!("cannot follow {}", file.display());
            let text = std::fs::read_to_string(file).with_context(what)?;
            return Plan::from_json(&text).with_context(what);
        }
        let &Self { requestors, generators, brokers, duration, .. } = self;
        let seed = self.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        Ok(Plan::from_seed(seed, duration, Cast { requestors, generators, brokers }))
    }
}

/// Runs brokers and both services, follows the plan, lets the queues drain, and audits. At `stop` it skips the rest of
/// the plan.
///
/// # Errors
///
/// If there is no verdict: something cannot be built, started, broken or read.
pub async fn chaos(
    settings: &ChaosSettings,
    plan: Plan,
    stop: &CancellationToken,
) -> anyhow::Result<ChaosReport> {
    refuse_request_total()?;
    let programs = stop.run_until_cancelled(programs::build()).await;
    let programs = programs.context("stopped before anything was started")??;
    let directory = RunDirectory::make("chaos")?;
    let report = run(programs, directory.path(), settings, plan, stop).await;
    if stop.is_cancelled() && report.as_ref().is_ok_and(|it| it.outcome.verdict.requested == 0) {
        bail!("stopped before the first request, so there is no verdict");
    }
    if !report.as_ref().is_ok_and(|report| report.clean) {
        directory.keep();
    }
    report
}

async fn run(
    programs: Programs,
    directory: &Path,
    settings: &ChaosSettings,
    plan: Plan,
    stop: &CancellationToken,
) -> anyhow::Result<ChaosReport> {
    let mut brokers = Brokers::start(plan.cast.brokers, Some(directory.to_owned())).await?;
    let connection = observe::connect(&NatsSettings::at(brokers.url()), "lab chaos").await?;
    let nats = connection.context();
    let config = ReplicaConfig {
        programs,
        directory: directory.to_owned(),
        brokers: brokers.ports(),
        copies: brokers.copies(),
        rate: settings.rate,
    };

    let log = EventLog::new(settings.json, stop.clone());
    let mut environment = ChaosEnvironment::start(&config, plan.cast, &log).await?;
    environment.watch.wait_until_declared(nats).await?;
    // So that the first faults meet a system at work.
    environment.ready().await?;
    log.note(headline(&plan));
    log.note(format_args!("logs and queues are in {}", from_here(directory)));
    let mut poison = Poison::new(&connection);
    let mut pauses = Pauses::new(&connection, stop);
    let clients = Clients::start(&connection, config.copies, config.rate);
    let (of_brokers, of_others) = plan.faults.iter().partition(|fault| is_for_brokers(fault));
    let mut failures = {
        let broken = async {
            let (ended, ()) = tokio::try_join!(
                break_brokers(&mut brokers, of_brokers, &log, stop),
                break_others(&mut environment, &mut poison, &mut pauses, of_others, &log, stop),
            )?;
            let end = log.after(plan.duration);
            stop.run_until_cancelled(sleep_until(end)).await;
            anyhow::Ok(ended)
        };
        tokio::select! {
            broken = broken => broken?,
            never = report_progress(&connection, &log) => match never {},
        }
    };
    failures.extend(pauses.ended().await?);
    log.note("all faults have ended");
    let answers = clients.stop().await?;
    environment.stop_asking().await?;
    log.note("no more requests, and the queues drain");
    let poisoned = poison.all().await?;
    tokio::select! {
        left = drained(nats, DRAIN_TIMEOUT) => drop(left?),
        never = report_progress(&connection, &log) => match never {},
    }
    log.note("stopping everything gracefully");
    failures.extend(environment.finish().await?);
    let longest = plan.faults.iter().map(|fault| fault.lasts).max();
    failures.extend(answers.untrue(longest.unwrap_or_default()).await?);
    if let Some(limit) = config.limit() {
        let starts = starts_by_second(&connection).await?;
        let most = starts.values().max().copied().unwrap_or_default();
        log.note(format_args!(
            "requests started in a second, of those stored: {most} at the most, of {limit}"
        ));
        let beyond = starts.into_iter().filter(|(_, starts)| *starts > u64::from(limit.get()));
        failures.extend(beyond.map(|(second, starts)| {
            format!("in the second {second} generators started {starts}, and RATE_LIMIT is {limit}")
        }));
    }
    // The audit comes last, when no service runs any more.
    let outcome = Findings {
        left_in_queues: drained(nats, Duration::ZERO).await?,
        verdict: audit(nats, Duration::ZERO).await?,
        dead_letters: dead_letters::list(nats, None).await?,
    };
    log.note(format_args!(
        "messages that the queues stored, with a bundle as one: {}",
        stored_messages(nats).await?
    ));
    if !brokers.all_run()? {
        failures.push("a broker has ended by itself".to_owned());
    }
    brokers.stop().await?;
    Ok(ChaosReport::new(plan, log.into_events(), outcome, &poisoned, failures))
}

/// The number of messages that each queue has stored since the beginning. It exceeds the number of requests by the
/// garbage, and by the messages that were published again because a confirmation was lost or a sender died.
async fn stored_messages(nats: &Context) -> anyhow::Result<String> {
    let mut counts = Vec::new();
    for queue in queues::ALL {
        let stream = nats.get_stream(queue.stream).await?;
        counts.push(format!("{} {}", queue.stream, stream.cached_info().state.last_sequence));
    }
    Ok(counts.join(", "))
}

fn headline(plan: &Plan) -> String {
    let Plan { seed, faults, .. } = plan;
    let Cast { requestors, generators, brokers } = plan.cast;
    let source = seed.map_or_else(|| "a plan".to_owned(), |seed| format!("seed {seed}"));
    format!(
        "{source}: faults {}, requestors {requestors}, generators {generators}, brokers {brokers}",
        faults.len()
    )
}

fn is_for_brokers(fault: &Fault) -> bool {
    matches!(fault.to, FaultTarget::Broker(_) | FaultTarget::Leader(_))
}

/// The beginning or the end of a fault.
struct Step<'a> {
    at: Duration,
    /// The index of the fault, by which its end finds its beginning.
    number: usize,
    fault: &'a Fault,
    begins: bool,
}

/// All beginnings and ends, in the order of time.
fn steps(faults: Vec<&Fault>) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for (number, fault) in faults.into_iter().enumerate() {
        steps.push(Step { at: fault.at, number, fault, begins: true });
        if fault.end().is_some() {
            steps.push(Step { at: fault.at + fault.lasts, number, fault, begins: false });
        }
    }
    steps.sort_by_key(|step| step.at);
    steps
}

/// Begins and ends the faults of the replicas and their networks, one after another. Each takes only a moment.
async fn break_others(
    environment: &mut ChaosEnvironment<'_>,
    poison: &mut Poison<'_>,
    pauses: &mut Pauses,
    faults: Vec<&Fault>,
    log: &EventLog,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut begun = BTreeSet::new();
    for Step { at, number, fault, begins } in steps(faults) {
        stop.run_until_cancelled(sleep_until(log.after(at))).await;
        environment.note_ended_replicas()?;
        if !begins {
            if begun.remove(&number) {
                environment.end(fault).await?;
                log.note(fault.end().unwrap_or_default());
            }
        } else if !stop.is_cancelled() {
            begun.insert(number);
            log.note(fault);
            match (fault.action, fault.to) {
                (Action::Poison, FaultTarget::Queue(queue)) => poison.spread(queue),
                (Action::Pause, FaultTarget::Queue(queue)) => pauses.pause(queue, fault.lasts),
                _ => environment.begin(fault).await?,
            }
        }
    }
    Ok(())
}

/// Kills and restarts brokers. That takes some time, so it runs beside the other faults. Returns a failure for each
/// broker that had ended by itself before it was to be killed.
async fn break_brokers(
    brokers: &mut Brokers,
    faults: Vec<&Fault>,
    log: &EventLog,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<String>> {
    let mut failures = Vec::new();
    let mut down: BTreeMap<usize, usize> = BTreeMap::new();
    for Step { at, number, fault, begins } in steps(faults) {
        stop.run_until_cancelled(sleep_until(log.after(at))).await;
        if !begins {
            let Some(index) = down.remove(&number) else { continue };
            brokers.restart(index).await?;
            log.note(format_args!("broker-{} is back", index + 1));
        } else if !stop.is_cancelled() {
            let index = match fault.to {
                FaultTarget::Broker(number) => usize::from(number) - 1,
                FaultTarget::Leader(stream) => {
                    let Ok(Some(index)) = brokers.leader(stream).await else {
                        log.note(format_args!("{stream} has no leader now: left out"));
                        continue;
                    };
                    index
                }
                FaultTarget::Replica(_) | FaultTarget::Service(_) | FaultTarget::Queue(_) => {
                    continue;
                }
            };
            if down.values().any(|other| *other == index) {
                log.note(format_args!("broker-{} is down already: left out", index + 1));
                continue;
            }
            match fault.to {
                FaultTarget::Leader(_) => log.note(format_args!("{fault}: broker-{}", index + 1)),
                _ => log.note(fault),
            }
            let broker = brokers.iter_mut().nth(index).context("there is no such broker")?;
            if !broker.runs()? {
                let failure = format!("broker-{} had ended by itself", index + 1);
                log.note(&failure);
                failures.push(failure);
            }
            broker.kill().await?;
            down.insert(number, index);
        }
    }
    Ok(failures)
}

/// Prints the progress from time to time.
async fn report_progress(connection: &Connection, log: &EventLog) -> std::convert::Infallible {
    let mut poller = Poller::new(connection);
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        match timeout(SNAPSHOT_TIMEOUT, poller.snapshot()).await {
            Ok(Ok(snapshot)) => {
                let Totals { requested, stored, received, pending, .. } = snapshot.totals;
                log.note(format_args!(
                    "requested {requested}, stored {stored}, received {received}; in the queues {pending}",
                ));
            }
            Ok(Err(_)) | Err(_) => log.note("the progress is unknown: no answer of the broker"),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use testkit::broker::Broker;
    use testkit::eventually::eventually;

    use super::*;

    #[tokio::test]
    async fn broker_that_had_ended_by_itself_is_a_failure() {
        let mut brokers = Brokers::start(1, None).await.unwrap();
        let id = brokers.iter().next().and_then(Broker::id).unwrap();
        kill(Pid::from_raw(id.try_into().unwrap()), Signal::SIGKILL).unwrap();
        eventually("the broker has ended", async || match brokers.all_run() {
            Ok(false) => Ok(()),
            seen => Err(seen),
        })
        .await;
        let plan = r#"{"for": "1s", "cast": {"requestors": 1, "generators": 1, "brokers": 1},
            "faults": [{"at": "0s", "do": "kill", "to": "broker-1"}]}"#;
        let plan = Plan::from_json(plan).unwrap();
        let (faults, stop) = (plan.faults.iter().collect(), CancellationToken::new());
        let log = EventLog::new(true, stop.clone());
        let failures = break_brokers(&mut brokers, faults, &log, &stop).await.unwrap();
        assert_eq!(failures, ["broker-1 had ended by itself"]);
        assert!(brokers.all_run().unwrap());
    }
}
