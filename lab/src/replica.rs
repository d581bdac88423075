//! A program of the system, as a process of the lab's.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::Context;
use contract::queues;
use testkit::process::{Process, bound_to_this};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use workqueue::topology;

/// The arguments of `decoupled` for the one process that keeps the topology.
pub(crate) const WATCH: [&str; 2] = ["declare", "--watch"];

/// How long a replica may take to stop: the drain of the services, and some more.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long declaring may take, and how often to look.
const DECLARE_TIMEOUT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);

/// How long a program may take to say where it listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The exit status of a program that makes no sense of a setting.
const MISUSED: i32 = 2;

/// A replica of a service, or another program of the system. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    name: String,
    pub(crate) process: Process,
}

impl Replica {
    /// Starts a program with these settings on top of what is set in the environment. It logs to a file of
    /// its name.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&str],
        name: impl Into<String>,
        directory: &Path,
        settings: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> anyhow::Result<Self> {
        let mut command = bound_to_this(program);
        command.args(arguments).envs(settings);
        Self::spawn(command, name, directory)
    }

    /// Runs this as the replica of this name.
    pub(crate) fn spawn(
        mut command: Command,
        name: impl Into<String>,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let name = name.into();
        command.env("INSTANCE", &name).env("LOG_FORMAT", "pretty");
        let process = Process::spawn(command, directory.join(format!("{name}.log")))?;
        Ok(Self { name, process })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Which process it is, or how it ended.
    pub(crate) fn describe(&mut self) -> String {
        match self.process.try_wait() {
            Ok(None) => format!("{} (pid {})", self.name, self.process.id()),
            // Such as "exit status: 0", or "signal: 9 (SIGKILL)".
            Ok(Some(status)) => format!("{} (ended, {status})", self.name),
            Err(error) => format!("{} ({error})", self.name),
        }
    }

    /// Whether it has not been refused by its own command line.
    ///
    /// # Errors
    ///
    /// Its error about an invalid setting.
    pub(crate) fn could_start(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()?.and_then(|status| status.code()) {
            Some(MISUSED) => bail!("{} cannot start:\n{}", self.name, self.process.log_text()),
            _ => Ok(()),
        }
    }

    /// Waits until this, which is `declare --watch`, has declared the last of the topology: there is no verdict
    /// before.
    ///
    /// # Errors
    ///
    /// Its error about an invalid setting, or what is still missing after a while.
    pub(crate) async fn wait_until_declared(&mut self, nats: &Context) -> anyhow::Result<()> {
        let until = Instant::now() + DECLARE_TIMEOUT;
        for queue in queues::ALL {
            while let Err(error) = topology::queue_state(nats, queue).await {
                self.could_start()?;
                ensure!(
                    Instant::now() < until,
                    "{} does not declare the queues: {error}",
                    self.name
                );
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Waits until it says where it listens, in its log after `sign`.
    ///
    /// # Errors
    ///
    /// If it ends before, or says nothing for a while: its log.
    pub(crate) async fn listens(&mut self, sign: &str) -> anyhow::Result<SocketAddr> {
        let until = Instant::now() + LISTEN_TIMEOUT;
        while Instant::now() < until && self.process.try_wait()?.is_none() {
            if let Some(addr) = self.process.logged_addr(sign) {
                return Ok(addr);
            }
            sleep(PAUSE).await;
        }
        bail!("{} does not say where it listens:\n{}", self.name, self.process.log_text())
    }

    /// Asks it to stop in order, even if it is paused.
    pub(crate) fn terminate(&self) {
        // One that has ended refuses, which is as good.
        let _ = self.process.terminate();
        let _ = self.process.resume();
    }

    /// Waits until it has ended, and says how. One that was killed has no exit status, which is no failure
    /// here.
    ///
    /// # Errors
    ///
    /// If it does not end in time, or with an exit status that is not 0.
    pub(crate) async fn stopped(&mut self) -> anyhow::Result<ExitStatus> {
        let name = &self.name;
        let ended = timeout(STOP_TIMEOUT, self.process.wait()).await;
        let status = ended.with_context(|| format!("{name} does not stop"))??;
        if let Some(code @ 1..) = status.code() {
            bail!("{name} ended with {code}:\n{}", self.process.log_text());
        }
        Ok(status)
    }
}

/// The rate of each of several requestors, which together have this rate.
pub(crate) fn share(rate: requestor::Rate, requestors: u32) -> String {
    match rate {
        requestor::Rate::Zero => "0".to_owned(),
        requestor::Rate::Max => "max".to_owned(),
        requestor::Rate::PerSecond(rate) => (rate / f64::from(requestors.max(1))).to_string(),
    }
}
