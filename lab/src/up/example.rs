//! `lab up --example`: the programs of an example beside a broker, each started again when it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cli::terminal::say;
use serde::Deserialize;
use testkit::broker::Brokers;
use testkit::process::bound_to_this;
use testkit::programs;
use testkit::target_directory::{RunDirectory, from_here};
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use workqueue::variable;

use super::UpSettings;
use crate::replica::Replica;

/// The interval of the checks whether a program has ended.
const TICK: Duration = Duration::from_millis(200);

/// A program that ends sooner than this is not started again.
const SOON: Duration = Duration::from_secs(1);

/// The content of `[package.metadata.lab]` of a package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    programs: Vec<Program>,
}

/// A program of an example.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    name: String,
    #[serde(default = "one")]
    replicas: u32,
    /// Its settings, unless the environment has others.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Whether it logs the address of a page.
    #[serde(default)]
    page: bool,
}

fn one() -> u32 {
    1
}

impl Example {
    /// The settings in the package of this name.
    async fn read(name: &str) -> anyhow::Result<Self> {
        let packages = programs::packages().await?;
        let with_programs =
            packages.iter().filter(|package| package["metadata"]["lab"].is_object());
        let names = with_programs.clone().filter_map(|package| package["name"].as_str());
        let names = names.collect::<Vec<_>>().join(" and ");
        let mut found = with_programs.filter(|package| package["name"] == name);
        let found = found.next().with_context(|| {
            format!(
                "there is no example {name} with programs for the lab; the examples are {names}"
            )
        })?;
        let metadata = found["metadata"]["lab"].clone();
        serde_json::from_value(metadata)
            .with_context(|| format!("the metadata of {name} for the lab"))
    }
}

/// A replica of a program, and how to start it again.
struct Member<'a> {
    program: &'a Program,
    path: &'a Path,
    name: String,
    replica: Replica,
    started: Instant,
}

/// Runs the programs of the example until `stop`, or until the time is over, and stops them gracefully.
///
/// # Errors
///
/// If something cannot be built or started, or does not end gracefully.
pub(crate) async fn run_example(
    name: &str,
    settings: &UpSettings,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let example = Example::read(name).await?;
    let names: Vec<&str> = example.programs.iter().map(|program| program.name.as_str()).collect();
    let paths = stop.run_until_cancelled(programs::build_all(&names)).await;
    let paths = paths.context("stopped before anything was started")??;
    let directory = RunDirectory::make("example")?;
    let ended = run_in(directory.path(), &example, &paths, settings, stop).await;
    if ended.is_err() {
        directory.keep();
    }
    ended
}

/// Runs these programs, which are at these paths, with their queues, logs and other files in this directory.
async fn run_in(
    directory: &Path,
    example: &Example,
    paths: &[PathBuf],
    settings: &UpSettings,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut brokers = Brokers::start(settings.brokers, Some(directory.to_owned())).await?;
    let url = brokers.url();
    let start = |program: &Program, path: &Path, name: &str| {
        let mut command = bound_to_this(path);
        command.envs(program.env.iter().filter(|(name, _)| variable(name).is_none()));
        // So that the files that it keeps in its working directory are removed with the run.
        command.env("NATS_URL", &url).current_dir(directory);
        Replica::spawn(command, name, directory)
    };
    let mut members = Vec::new();
    for (program, path) in example.programs.iter().zip(paths) {
        for number in 1..=program.replicas {
            let name = format!("{}-{number}", program.name);
            let name = if program.replicas == 1 { program.name.clone() } else { name };
            let replica = start(program, path, &name)?;
            members.push(Member { program, path, name, replica, started: Instant::now() });
        }
    }
    for member in members.iter_mut().filter(|member| member.program.page) {
        say(format_args!(
            "The page is at http://{}/",
            member.replica.listens("listens addr=").await?
        ))?;
    }
    say(format_args!(
        "For its other programs, in another terminal:\n  cd {} && export NATS_URL={url}\nLogs and queues are there, too. A \
         program that ends is started again. Ctrl-C stops all, in order.\n",
        from_here(directory)
    ))?;
    for member in &mut members {
        say(format_args!("  {}", member.replica.describe()))?;
    }
    let end = settings.duration.map(|duration| Instant::now() + duration);
    let mut tick = interval(TICK);
    while end.is_none_or(|end| Instant::now() < end) {
        if stop.run_until_cancelled(tick.tick()).await.is_none() {
            break;
        }
        for member in &mut members {
            if member.replica.process.try_wait()?.is_none() {
                continue;
            }
            let ended = member.replica.describe();
            ensure!(
                member.started.elapsed() > SOON,
                "{ended} right after its start:\n{}",
                member.replica.process.log_text()
            );
            member.replica = start(member.program, member.path, &member.name)?;
            member.started = Instant::now();
            say(format_args!("  {ended}; started again as {}", member.replica.describe()))?;
        }
    }
    for member in &members {
        member.replica.terminate();
    }
    for member in &mut members {
        member.replica.stopped().await?;
    }
    brokers.stop().await
}
