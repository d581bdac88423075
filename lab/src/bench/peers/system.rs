//! The other systems: their brokers, their programs, and their progress.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde::Serialize;
use testkit::broker::{Broker, BrokerOptions};
use testkit::process::{Process, bound_to_this};
use testkit::programs;
use testkit::reserved_ports::ReservedPorts;
use testkit::target_directory;
use testkit::usage::group_processor_time;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::replica::wait_for_start;

/// The time limit for a program until it listens, and the interval of the checks.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);

/// A system that does the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum PeerSystem {
    /// This system.
    Decoupled,
    /// `lab/peers/apalis`.
    Apalis,
    /// `lab/peers/celery`.
    Celery,
    /// `examples/fire-and-forget`.
    Tutorial,
}

impl PeerSystem {
    pub(super) const ALL: [Self; 4] = [Self::Decoupled, Self::Apalis, Self::Celery, Self::Tutorial];

    /// The number of its round trips, if the others do this many: Celery is too slow for all of them.
    pub(super) fn round_trips(self, round_trips: u64) -> u64 {
        if self == Self::Celery { (round_trips / 20).max(500) } else { round_trips }
    }

    /// The interval at which the progress is read. The run of the tutorial is short, and reading costs its broker
    /// nothing.
    pub(super) fn poll(self) -> Duration {
        Duration::from_millis(if self == Self::Tutorial { 1 } else { 10 })
    }

    /// The time to wait for another mark: twice that until a redelivery, if the system has redeliveries.
    pub(super) fn patience(self) -> Duration {
        Duration::from_secs(if self == Self::Tutorial { 5 } else { 60 })
    }
}

/// The programs of the systems.
#[derive(Debug)]
pub(super) struct Tools {
    /// The directory into which `lab/peers/install` has installed them.
    home: PathBuf,
    /// The generator and the requestor.
    tutorial: [PathBuf; 2],
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

impl Tools {
    /// Installs and builds them.
    pub(super) async fn prepare() -> anyhow::Result<Self> {
        let home = target_directory::directory().join("lab/peers");
        let mut install = Command::new(sources().join("install"));
        let installed = install.arg(&home).stdout(std::io::stderr()).status().await;
        ensure!(installed.is_ok_and(|it| it.success()), "the other systems cannot be installed");
        let tutorial = programs::build_only(["forgetful-generator", "forgetful-requestor"]).await?;
        Ok(Self { home, tutorial })
    }

    /// The programs for this many round trips. The first is the generator. The last is the requestor, which is started
    /// once the others listen.
    pub(super) fn commands(&self, system: PeerSystem, url: &str, round_trips: u64) -> Vec<Command> {
        let program = |program: &Path, arguments: &str| {
            let mut command = bound_to_this(self.home.join(program));
            command.args(arguments.split_whitespace());
            command.env("REDIS_URL", url).env("NATS_URL", url);
            command.env("PYTHONPATH", sources().join("celery")).env("PYTHONDONTWRITEBYTECODE", "1");
            command
        };
        let installed = |path: &str, arguments: &str| program(Path::new(path), arguments);
        let apalis = "apalis/release/apalis-peer";
        let worker = |arguments: &str| {
            installed("celery/bin/celery", &format!("-A tasks worker {arguments}"))
        };
        match system {
            PeerSystem::Decoupled => Vec::new(),
            PeerSystem::Apalis => vec![
                installed(apalis, "generator"),
                installed(apalis, &format!("requestor {round_trips}")),
            ],
            PeerSystem::Celery => vec![
                worker("-n generator@%h -Q requests,acknowledgments"),
                worker("-n requestor@%h -Q responses"),
                installed("celery/bin/python", &format!("-m tasks {round_trips}")),
            ],
            PeerSystem::Tutorial => {
                // At full speed, and then listening until it is ended.
                let rate = u32::MAX;
                let asking =
                    format!("--rate {rate} --total {round_trips} --length 16 --timeout 24h");
                vec![program(&self.tutorial[0], ""), program(&self.tutorial[1], &asking)]
            }
        }
    }
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// When the first request was made, or seen.
    pub(super) began: Option<Timestamp>,
    /// The number of round trips that are marked as received.
    pub(super) marked: u64,
    /// The number of marks beyond the first of a round trip.
    pub(super) doubled: u64,
}

/// The broker of a run, which ends with it.
pub(super) enum PeerBroker {
    Redis { process: Process, port: u16 },
    Nats { broker: Box<Broker>, log: GeneratorLog },
}

/// The reader of the log of the tutorial's generator.
#[derive(Default)]
pub(super) struct GeneratorLog {
    file: Option<BufReader<File>>,
    /// The last, incomplete line.
    line: String,
    marked: HashSet<String>,
}

impl PeerBroker {
    pub(super) async fn start(system: PeerSystem, directory: &Path) -> anyhow::Result<Self> {
        if system == PeerSystem::Tutorial {
            let options = BrokerOptions { without_jetstream: true, ..Default::default() };
            let (broker, log) = (Box::new(Broker::start(options).await?), GeneratorLog::default());
            return Ok(Self::Nats { broker, log });
        }
        let (_held, port) = ReservedPorts::free().context("there is no port for Redis")?;
        // All else as it comes.
        let mut command = bound_to_this("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]).arg(directory);
        let mut process = Process::spawn(command, directory.join("redis.log"))?;
        says(&mut process, "Ready to accept connections").await?;
        ask(port, "MSET began 0 doubled 0\r\n").await?;
        Ok(Self::Redis { process, port })
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::Redis { port, .. } => format!("redis://127.0.0.1:{port}/0"),
            Self::Nats { broker, .. } => broker.url(),
        }
    }

    /// The processor time that it has taken.
    pub(super) fn processor_time(&self) -> Option<Duration> {
        match self {
            Self::Redis { process, .. } => group_processor_time(process.id()),
            Self::Nats { broker, .. } => broker.id().and_then(group_processor_time),
        }
    }

    /// Updates the progress of the run, whose generator prints to this log.
    pub(super) async fn look(&mut self, log: &Path, progress: &mut Progress) -> anyhow::Result<()> {
        match self {
            Self::Redis { port, .. } => {
                let numbers = ask(*port, "MGET began doubled\r\nSCARD marks\r\n").await?;
                let [began, doubled, marked] = numbers[..] else { bail!("Redis says {numbers:?}") };
                let began = (began > 0).then(|| Timestamp::from_millisecond(began.cast_signed()));
                *progress = Progress { began: began.transpose()?, marked, doubled };
                Ok(())
            }
            Self::Nats { log: read, .. } => read.look(log, progress),
        }
    }
}

impl GeneratorLog {
    fn look(&mut self, log: &Path, progress: &mut Progress) -> anyhow::Result<()> {
        let Self { file, line, marked } = self;
        let reader = match file {
            Some(reader) => reader,
            None => file.insert(BufReader::new(File::open(log)?)),
        };
        while reader.read_line(line)? > 0 && line.ends_with('\n') {
            if line.starts_with("made ") {
                progress.began.get_or_insert_with(Timestamp::now);
            } else if let Some(id) = line.strip_prefix("marked ") {
                let is_first = marked.insert(id.to_owned());
                *(if is_first { &mut progress.marked } else { &mut progress.doubled }) += 1;
            }
            line.clear();
        }
        Ok(())
    }
}

/// The numbers in the answers of Redis to these commands.
async fn ask(port: u16, commands: &str) -> anyhow::Result<Vec<u64>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(format!("{commands}QUIT\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    // Before a text is its length, `$1`, and before several their number, `*2`.
    Ok(text.lines().filter_map(|line| line.trim_start_matches(':').parse().ok()).collect())
}

/// Waits until a program logs this.
pub(super) async fn says(program: &mut Process, text: &str) -> anyhow::Result<()> {
    let says = async |program: &Process| program.log_text().contains(text).then_some(());
    let said = wait_for_start(program, START_TIMEOUT, POLL, says).await?;
    said.with_context(|| format!("a program does not start:\n{}", program.log_text()))
}
