//! One broker.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use tokio::time::timeout;

use super::find::find;
use super::port::Ports;
use super::ready;
use crate::process::{self, Process, bound_to_this};
use crate::reserved_ports::ReservedPorts;

/// The time limit for a broker to answer, or to stop. With a million messages in its store it needs some seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// The number of lines of the server's log in an error.
const LOG_TAIL: usize = 25;

/// The server's garbage collection, unless the environment sets it: as in the shipped configurations. It collects less
/// often, for 5 % less processor time and nearly twice the memory, and more often near the limit of the memory.
const GARBAGE: [(&str, &str); 2] = [("GOGC", "400"), ("GOMEMLIMIT", "3600MiB")];

/// The options of a broker.
#[derive(Clone, Debug, Default)]
pub struct BrokerOptions {
    /// The `nats-server` to run. By default the one that [`find()`] finds.
    pub binary: Option<PathBuf>,
    /// The port for clients. By default a free one.
    pub port: Option<u16>,
    /// The directory for the configuration, the log and all messages. By default a temporary one, which is removed with
    /// the broker.
    pub directory: Option<PathBuf>,
    /// Whether the broker has no `JetStream`, and so keeps no messages. By default it has `JetStream`.
    pub without_jetstream: bool,
    /// Whether the broker syncs each message to the disk before it confirms it, so that the message survives a loss of
    /// power. Off by default, which is faster. A killed broker loses nothing either way.
    pub sync_always: bool,
    /// Lines for the beginning of the configuration file, such as those of a shipped file. Of two settings with the same
    /// name the later one counts, so the ports, the store and the `jetstream` block of this broker replace those in it.
    pub base: String,
    /// Variables for the server's environment, which [`Self::base`] may use.
    pub environment: Vec<(String, String)>,
    /// Lines for the end of the configuration file. Of two settings with the same name the later one counts, so a
    /// `jetstream { … }` here replaces the block for [`Self::sync_always`]. The directory of the store is set outside
    /// that block, and stays.
    pub extra: String,
}

/// A `nats-server` on 127.0.0.1. It is killed when this is dropped.
#[derive(Debug)]
pub struct Broker {
    // The process comes before its directory: fields are dropped in this order.
    state: ServerState,
    binary: PathBuf,
    pub(super) ports: Ports,
    directory: PathBuf,
    options: BrokerOptions,
    /// Its cluster, if it is a member of one.
    pub(super) membership: Option<Membership>,
    _temporary: Option<TempDir>,
}

/// The settings of a member of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    /// Its name in the cluster, which belongs to its store.
    pub(super) name: String,
    /// The ports of the others.
    pub(super) routes: Vec<u16>,
}

#[derive(Debug)]
enum ServerState {
    Running(Process),
    /// The ports stay reserved, so that no other process takes them.
    Down {
        _reserved: Option<ReservedPorts>,
    },
}

impl Broker {
    /// Starts a broker, and waits until it answers.
    ///
    /// # Errors
    ///
    /// If no program is found, or it does not answer within 30 seconds, with the end of its log.
    pub async fn start(options: BrokerOptions) -> anyhow::Result<Self> {
        let mut broker = Self::prepare(options).await?;
        broker.launch().await?;
        Ok(broker)
    }

    /// A broker that does not run yet.
    pub(super) async fn prepare(options: BrokerOptions) -> anyhow::Result<Self> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => find().await?,
        };
        let (directory, temporary) = if let Some(directory) = &options.directory {
            (directory.clone(), None)
        } else {
            let temporary = tempfile::Builder::new().prefix("lab-broker-").tempdir();
            let temporary = temporary.context("cannot create a directory for the broker")?;
            (temporary.path().to_owned(), Some(temporary))
        };
        fs::create_dir_all(directory.join("ports"))
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let ports = Ports { client: options.port.unwrap_or(0), monitor: 0, cluster: None };
        let state = ServerState::Down { _reserved: None };
        let membership = None;
        Ok(Self { state, binary, ports, directory, options, membership, _temporary: temporary })
    }

    /// Reserves a port for the other members of a cluster, before any of them runs. Returns the port.
    pub(super) fn prepare_route(&mut self) -> anyhow::Result<u16> {
        let (reserved, port) = ReservedPorts::free().context("there is no port for the cluster")?;
        self.state = ServerState::Down { _reserved: Some(reserved) };
        self.ports.cluster = Some(port);
        Ok(port)
    }

    /// Where clients connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.ports.client)
    }

    /// The port for the members of its cluster, if it has one.
    #[must_use]
    pub fn cluster_port(&self) -> Option<u16> {
        self.ports.cluster
    }

    /// The port for clients. It stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.client
    }

    /// The root of the HTTP endpoints for monitoring (`/varz`, `/jsz`, …). It stays the same over restarts.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.monitor)
    }

    /// The process id of the server, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        match &self.state {
            ServerState::Running(process) => Some(process.id()),
            ServerState::Down { .. } => None,
        }
    }

    /// Whether the server runs: it may have ended by itself.
    ///
    /// # Errors
    ///
    /// If the state of the process cannot be read.
    pub fn runs(&mut self) -> anyhow::Result<bool> {
        match &mut self.state {
            ServerState::Running(process) => Ok(process.try_wait()?.is_none()),
            ServerState::Down { .. } => Ok(false),
        }
    }

    /// The program that runs as the server.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The server's configuration file, with its ports. With it a person can start the server again by hand.
    #[must_use]
    pub fn configuration_file(&self) -> PathBuf {
        self.directory.join("nats-server.conf")
    }

    /// The server's log file, the same for all restarts.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("nats-server.log")
    }

    /// The whole log of the server, for people.
    #[must_use]
    pub fn log_text(&self) -> String {
        process::log_text(&self.log())
    }

    /// Kills the server (SIGKILL). The operating system keeps its confirmed messages, so they are there after a restart.
    /// This does not simulate a loss of power.
    ///
    /// # Errors
    ///
    /// If it does not run, or the operating system refuses.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.running()?.kill().await?;
        self.state = ServerState::Down { _reserved: self.ports.reserve() };
        Ok(())
    }

    /// Stops the server gracefully (SIGTERM), and waits until it has ended.
    ///
    /// # Errors
    ///
    /// If it does not run, or has not ended after 30 seconds.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let process = self.running()?;
        process.terminate()?;
        // A paused server would not get the signal.
        process.resume()?;
        let ended = timeout(LIMIT, process.wait()).await;
        let status = ended.map_err(|_| {
            anyhow::anyhow!("nats-server does not stop; the end of its log:\n{}", self.log_tail())
        })??;
        self.state = ServerState::Down { _reserved: self.ports.reserve() };
        Ok(status)
    }

    /// Starts the server again after [`Self::kill`] or [`Self::stop`], on the same ports and the same store, and waits
    /// until it answers. A running server is stopped first.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        if self.runs()? {
            self.stop().await?;
        }
        self.launch().await
    }

    /// Removes the store of a stopped or killed server, as if its volume were lost.
    ///
    /// # Errors
    ///
    /// If it runs, or its files cannot be removed.
    pub fn wipe(&mut self) -> anyhow::Result<()> {
        ensure!(!self.runs()?, "the broker still runs");
        let store = self.directory.join("jetstream");
        fs::remove_dir_all(&store).with_context(|| format!("cannot remove {}", store.display()))
    }

    fn running(&mut self) -> anyhow::Result<&mut Process> {
        match &mut self.state {
            ServerState::Running(process) => Ok(process),
            ServerState::Down { .. } => bail!("the broker does not run"),
        }
    }

    pub(super) async fn launch(&mut self) -> anyhow::Result<()> {
        let configuration = self.configuration_file();
        self.write_configuration()?;
        Ports::forget(&self.ports_directory())?;
        if !ReservedPorts::CAN_BE_SHARED {
            self.state = ServerState::Down { _reserved: None };
        }
        let mut command = bound_to_this(&self.binary);
        command.arg("--config").arg(&configuration);
        command.envs(GARBAGE.into_iter().filter(|(name, _)| env::var_os(name).is_none()));
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn(command, self.log())?;
        let answer = timeout(LIMIT, self.answer(&mut process)).await;
        let answer = answer.unwrap_or_else(|_| bail!("it does not answer within {LIMIT:?}"));
        self.ports = answer.with_context(|| {
            format!("nats-server does not start; the end of its log:\n{}", self.log_tail())
        })?;
        self.state = ServerState::Running(process);
        // With its actual ports, so that a person can start it again by hand.
        self.write_configuration()
    }

    /// The ports of the server, as soon as it answers on them.
    async fn answer(&self, process: &mut Process) -> anyhow::Result<Ports> {
        // From the file that the server writes, because another process may answer on a fixed port.
        let ports = ready::unless_ended(process, async || {
            Ports::read(&self.ports_directory()).ok_or("it has not said which ports it has")
        });
        let ports = ports.await?;
        // A cluster has no JetStream before most members run. `Brokers` waits for that.
        let jetstream = !self.options.without_jetstream && self.membership.is_none();
        ready::unless_ended(process, async || ready::answers(ports.client, jetstream).await)
            .await?;
        Ok(ports)
    }

    fn write_configuration(&self) -> anyhow::Result<()> {
        let file = self.configuration_file();
        fs::write(&file, self.configuration())
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn configuration(&self) -> String {
        // With -1 the server itself chooses a free port, so no other process can take it first.
        let port = |port: u16| if port == 0 { "-1".to_owned() } else { port.to_string() };
        let mut text = format!(
            "{}\nlisten: \"127.0.0.1:{}\"\nhttp: \"127.0.0.1:{}\"\nports_file_dir: {}\n",
            self.options.base,
            port(self.ports.client),
            port(self.ports.monitor),
            quoted(&self.ports_directory()),
        );
        if !self.options.without_jetstream {
            let sync = if self.options.sync_always { "always" } else { "2m" };
            let store = quoted(&self.directory);
            let _ = writeln!(text, "store_dir: {store}\njetstream {{ sync_interval: \"{sync}\" }}");
        }
        if let Some(Membership { name, routes }) = &self.membership {
            let own = port(self.ports.cluster.unwrap_or_default());
            let routes: Vec<String> =
                routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
            let routes = routes.join(", ");
            // So that clients use only their own addresses, which may be those of proxies.
            let _ = writeln!(
                text,
                "server_name: {name}\ncluster {{ name: lab, listen: \"127.0.0.1:{own}\", \
                 no_advertise: true, routes: [{routes}] }}"
            );
        }
        text + &self.options.extra + "\n"
    }

    fn ports_directory(&self) -> PathBuf {
        self.directory.join("ports")
    }

    pub(super) fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

/// A path as a string in the configuration.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
}
