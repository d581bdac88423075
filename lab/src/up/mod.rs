//! `lab up`: the whole system on this machine, to look at and to play with.

mod hints;
mod page;
mod replicas;
mod screen;
mod settings;

pub use settings::UpSettings;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use cli::terminal::say;
use observe::Poller;
use observe::audit::{Verdict, audit};
use testkit::broker::{Broker, Brokers};
use testkit::programs::{self, Programs};
use testkit::target_directory::{RunDirectory, from_here};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use workqueue::{Connection, NatsSettings, chain};

use replicas::Replicas;
use screen::Screen;

/// How often the flow is shown.
const TICK: Duration = Duration::from_secs(1);

/// How long the broker has to answer. A user who has killed it wants to see that it is away.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the queues may take to drain at the end.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Runs a broker and both services, shows the flow until `stop` or until the time is over, stops
/// everything in order, and gives the verdict.
///
/// # Errors
///
/// Where something cannot be built or started, or does not end as it should.
pub async fn up(settings: &UpSettings, stop: &CancellationToken) -> anyhow::Result<Verdict> {
    let programs = stop.run_until_cancelled(programs::build()).await;
    let programs = programs.context("stopped before anything was started")??;
    let directory = RunDirectory::make("up")?;
    let ended = run(&programs, directory.path(), settings, stop).await;
    if !matches!(&ended, Ok((verdict, true)) if verdict.is_clean()) {
        directory.keep();
    }
    ended.map(|(verdict, _)| verdict)
}

/// Gives the verdict, and whether all brokers that ran to the end were ours.
async fn run(
    programs: &Programs,
    directory: &Path,
    settings: &UpSettings,
    stop: &CancellationToken,
) -> anyhow::Result<(Verdict, bool)> {
    let mut brokers = Brokers::start(settings.brokers, Some(directory.to_owned())).await?;
    let url = brokers.url();
    let mut replicas = Replicas::start(programs, settings, &brokers, directory)?;
    let copies = brokers.copies().to_string();
    let (addr, mut gateway) = page::start(programs, &url, &copies, directory).await?;
    let connection = observe::connect(&NatsSettings::at(&url), "lab up").await?;
    replicas.watch.wait_until_declared(connection.context()).await?;
    let verb = if brokers.len() == 1 { "broker is" } else { "brokers are" };
    let above = format!(
        "The page is at http://{addr}/\nThe {verb} at {url}; logs and queues are in {}\n\n{}",
        from_here(directory),
        hints::what_to_try(settings, &brokers, programs, &replicas, addr)
    );
    let screen = Screen::new(above);

    show(settings, screen, &connection, &mut brokers, &mut replicas, stop).await?;

    let ending = async {
        let _ = say(format_args!("Stopping the requestors, then the generators."));
        replicas.stop().await?;
        let _ = say(format_args!("The verdict:\n"));
        audit(connection.context(), LAST_WAIT).await
    };
    // Without the broker, or the majority of several, nothing could be finished or judged.
    let verdict = tokio::select! {
        biased;
        answering = too_few_answer(&brokers) => {
            let answering = match (answering, brokers.len()) {
                (0, _) => "no broker answers any more".to_owned(),
                (some, all) => format!("too few brokers still answer, {some} of {all}"),
            };
            bail!("{answering}, so there is no verdict; logs and queues are in {}", from_here(directory))
        }
        verdict = ending => verdict?,
    };
    let printed = say(format_args!("{verdict}"));
    // It has nothing to finish.
    gateway.process.kill().await?;
    // A user who has killed a broker may have started it again, on the same files.
    let all_are_ours = brokers.all_run()?;
    brokers.stop().await?;
    printed.map(|()| (verdict, all_are_ours))
}

/// Waits until the brokers that answer are no majority any more, and says how many they are.
async fn too_few_answer(brokers: &Brokers) -> usize {
    loop {
        let answering = brokers.answering(PATIENCE).await;
        if answering <= brokers.len() / 2 {
            return answering;
        }
        sleep(TICK).await;
    }
}

async fn show(
    settings: &UpSettings,
    screen: Screen,
    connection: &Connection,
    brokers: &mut Brokers,
    replicas: &mut Replicas,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let end = settings.duration.map(|duration| Instant::now() + duration);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poller = Poller::new(connection);
    while end.is_none_or(|end| Instant::now() < end) {
        replicas.all_could_start()?;
        let looked = async {
            tick.tick().await;
            poller.snapshot().await
        };
        let Some(looked) = stop.run_until_cancelled(looked).await else { break };
        let columns = screen.columns();
        let processes = [describe(brokers), replicas.describe()];
        let processes = processes.map(|names| screen::wrapped(names, "   ", columns)).join("\n");
        let shown = match looked {
            Ok(snapshot) => {
                let picture = screen::picture(&snapshot, &processes, columns);
                screen.show(&picture, &screen::summary(&snapshot))
            }
            // The user may have paused or killed the broker.
            Err(reason) => {
                let reason = chain(&*reason);
                let waiting = format!("waiting for the broker and its queues: {reason}");
                let told = screen::wrapped(waiting.split(' '), " ", columns);
                screen.show(&format!("\n{told}\n\n{processes}"), &waiting)
            }
        };
        // Its reader has gone, as that of `lab up | head`.
        if shown.is_err_and(|error| workqueue::reader_has_gone(&error)) {
            break;
        }
    }
    Ok(())
}

/// Which broker runs as which process, or has ended.
fn describe(brokers: &mut Brokers) -> Vec<String> {
    let describe = |broker: &mut Broker| match (broker.runs(), broker.id()) {
        (Ok(true), Some(id)) => format!("{} (pid {id})", broker.name()),
        _ => format!("{} (ended)", broker.name()),
    };
    brokers.iter_mut().map(describe).collect()
}
