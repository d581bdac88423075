//! `lab up`: the whole system on this machine, to look at and to play with.

mod replicas;
mod screen;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use worker::{Connection, NatsSettings};

use crate::audit::{Verdict, audit};
use crate::broker::{Broker, BrokerOptions};
use crate::flow::Flow;
use crate::replica::Replica;
use crate::{programs, target};
use replicas::Replicas;
use screen::Screen;

/// How often the flow is shown on a terminal, and elsewhere.
const TERMINAL_TICK: Duration = Duration::from_millis(500);
const PLAIN_TICK: Duration = Duration::from_secs(1);

/// How long what is still in the queues has at the end.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Settings of `lab up`.
#[derive(Args, Clone, Debug)]
pub struct UpSettings {
    /// How many requestors to run
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub requestors: u32,

    /// How many generators to run
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    pub generators: u32,

    /// Requests a second, of all requestors together, or max
    #[arg(long, default_value = "10", value_name = "RATE", allow_hyphen_values = true)]
    pub rate: requestor::Rate,

    /// Stop after that time [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = worker::duration)]
    pub duration: Option<Duration>,
}

/// Runs a broker and both services, shows the flow until `stop` or until the time is over, stops
/// everything in order, and gives the verdict.
///
/// # Errors
///
/// Where something cannot be built or started, or does not end as it should.
pub async fn up(settings: &UpSettings, stop: &CancellationToken) -> anyhow::Result<Verdict> {
    let Some(programs) = stop.run_until_cancelled(programs::build()).await else {
        anyhow::bail!("stopped before anything was started");
    };
    let programs = programs?;
    let directory = directory()?;
    let options =
        BrokerOptions { directory: Some(directory.join("broker")), ..BrokerOptions::default() };
    let mut broker = Broker::start(options).await?;
    let url = broker.url();
    let mut replicas = Replicas::start(
        &programs,
        settings.requestors,
        settings.generators,
        settings.rate,
        &url,
        &directory,
    )?;
    let connection = crate::connect(&NatsSettings::at(&url), "lab up").await?;
    println!("The broker is at {url}; logs and queues are in {}\n", from_here(&directory));
    println!("{}", what_to_try(&url, &programs, &replicas));

    show(settings, &connection, &mut replicas, stop).await?;

    println!("Stopping the requestors, then the generators.");
    replicas.stop().await?;
    println!("The verdict:\n");
    let verdict = audit(connection.context(), LAST_WAIT).await?;
    println!("{verdict}");
    broker.stop().await?;
    if verdict.is_clean() {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(verdict)
}

async fn show(
    settings: &UpSettings,
    connection: &Connection,
    replicas: &mut Replicas,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let end = settings.duration.map(|duration| Instant::now() + duration);
    let mut screen = Screen::new();
    let mut tick = interval(if screen.is_terminal() { TERMINAL_TICK } else { PLAIN_TICK });
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut earlier: Option<Flow> = None;
    while end.is_none_or(|end| Instant::now() < end) {
        let looked = async {
            tick.tick().await;
            Flow::look(connection.context()).await
        };
        match stop.run_until_cancelled(looked).await {
            None => break,
            Some(Ok(flow)) => {
                let rates = flow.rates_since(earlier.as_ref().unwrap_or(&flow));
                let picture = screen::picture(&flow, &rates, &replicas.describe());
                screen.show(&picture, &screen::summary(&flow, &rates));
                earlier = Some(flow);
            }
            // The first replica may still be declaring the queues, or somebody plays with the
            // broker, too.
            Some(Err(reason)) => {
                let waiting = format!("\n  waiting for the broker and its queues ({reason:#})");
                screen.show(&waiting, waiting.trim());
            }
        }
    }
    screen.close();
    Ok(())
}

fn directory() -> anyhow::Result<PathBuf> {
    let directory = target::directory().join("lab").join(format!("up-{}", std::process::id()));
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

/// A path as one would type it here.
fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

fn what_to_try(url: &str, programs: &programs::Programs, replicas: &Replicas) -> String {
    let ids = |side: &[Replica]| {
        side.iter().map(|replica| replica.id().to_string()).collect::<Vec<_>>().join(" ")
    };
    let generators = ids(&replicas.generators);
    let requestors = ids(&replicas.requestors);
    let one = replicas.generators.first().map(Replica::id).unwrap_or_default();
    let generator = from_here(&programs.generator);
    format!(
        "Try in another terminal, and watch the queues:
  kill -STOP {generators}
      pause the generators: REQUESTS fills, and the requestor does not notice
  kill -CONT {generators}
      let them go on: it drains
  kill -STOP {requestors}
      pause the requestors: RESPONSES fills (kill -CONT {requestors} lets them go on)
  kill -9 {one}
      kill a generator at its work: the others do it, and what it had in flight comes back
  NATS_URL={url} {generator}
      add another one
  cargo lab audit --nats-url {url}
      ask for the verdict at any time
Ctrl-C here stops everything in order."
    )
}
