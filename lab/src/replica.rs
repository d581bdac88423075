//! A program of the system, as a process of the lab.

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
use workqueue::{Settings, topology};

/// The arguments of `decoupled` for the process that declares the topology and keeps it.
pub(crate) const WATCH: [&str; 2] = ["declare", "--watch"];

/// The time limit for a replica to stop after its drain.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long declaring may take, and how often to look.
const DECLARE_TIMEOUT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(20);

/// The time limit for a replica to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The time limit for a program to log its address.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The exit status of a program with an invalid setting.
const MISUSED: i32 = 2;

/// Refuses the variable `REQUEST_TOTAL`, with which requestors end by themselves.
pub(crate) fn refuse_request_total() -> anyhow::Result<()> {
    ensure!(
        workqueue::variable("REQUEST_TOTAL").is_none(),
        "REQUEST_TOTAL is set, with which requestors end by themselves; unset it"
    );
    Ok(())
}

/// A replica of a service, or another program of the system. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    name: String,
    pub(crate) process: Process,
}

impl Replica {
    /// Starts a program with these settings on top of the environment. It logs to a file of its name.
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

    /// Starts this command as the replica of this name.
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

    /// Its process id, or its exit status.
    pub(crate) fn describe(&mut self) -> String {
        match self.process.try_wait() {
            Ok(None) => format!("{} (pid {})", self.name, self.process.id()),
            // Such as "exit status: 0", or "signal: 9 (SIGKILL)".
            Ok(Some(status)) => format!("{} (ended, {status})", self.name),
            Err(error) => format!("{} ({error})", self.name),
        }
    }

    /// Checks that the program has accepted its settings.
    ///
    /// # Errors
    ///
    /// If it has ended because of an invalid setting.
    pub(crate) fn could_start(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()?.and_then(|status| status.code()) {
            Some(MISUSED) => bail!("{} cannot start:\n{}", self.name, self.process.log_text()),
            _ => Ok(()),
        }
    }

    /// Waits until this, which is `declare --watch`, has declared the whole topology. The audit needs all of it.
    ///
    /// # Errors
    ///
    /// If a setting is invalid, or a part of the topology is still missing at the time limit.
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

    /// Waits until it reports that it is ready.
    ///
    /// # Errors
    ///
    /// If it ends before that, or is not ready in time.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let is_ready = async |process: &Process| process.is_ready().await.then_some(());
        if wait_for_start(&mut self.process, READY_TIMEOUT, PAUSE, is_ready).await?.is_none() {
            self.could_start()?;
            bail!("{} does not become ready", self.describe());
        }
        Ok(())
    }

    /// Waits until it logs its address after `sign`.
    ///
    /// # Errors
    ///
    /// If it ends before that, or does not log it in time. The error has its log.
    pub(crate) async fn listens(&mut self, sign: &str) -> anyhow::Result<SocketAddr> {
        let addr = async |process: &Process| process.logged_addr(sign);
        let addr = wait_for_start(&mut self.process, LISTEN_TIMEOUT, PAUSE, addr).await?;
        addr.with_context(|| {
            format!("{} does not say where it listens:\n{}", self.name, self.process.log_text())
        })
    }

    /// Asks it to stop gracefully, even if it is paused.
    pub(crate) fn terminate(&self) {
        // The error for a process that has ended already is of no interest.
        let _ = self.process.terminate();
        let _ = self.process.resume();
    }

    /// Waits until it has ended, and returns its exit status. A killed process has none, which is no failure here.
    ///
    /// # Errors
    ///
    /// If it does not end in time, or if its exit status is not 0.
    pub(crate) async fn stopped(&mut self) -> anyhow::Result<ExitStatus> {
        let name = &self.name;
        let limit = Settings::from_env().drain_timeout + STOP_TIMEOUT;
        let ended = timeout(limit, self.process.wait()).await;
        let status = ended.with_context(|| format!("{name} does not stop"))??;
        if let Some(code @ 1..) = status.code() {
            bail!("{name} ended with {code}:\n{}", self.process.log_text());
        }
        Ok(status)
    }
}

/// Polls a process that has just been started until `look` finds something. None if the process ends before that, or if
/// the time is over.
pub(crate) async fn wait_for_start<T>(
    process: &mut Process,
    limit: Duration,
    pause: Duration,
    look: impl AsyncFn(&Process) -> Option<T>,
) -> anyhow::Result<Option<T>> {
    let until = Instant::now() + limit;
    while Instant::now() < until && process.try_wait()?.is_none() {
        if let Some(found) = look(process).await {
            return Ok(Some(found));
        }
        sleep(pause).await;
    }
    Ok(None)
}

/// The rate of one of several requestors that together have this rate.
pub(crate) fn share(rate: requestor::Rate, requestors: u32) -> String {
    match rate {
        requestor::Rate::Zero => "0".to_owned(),
        requestor::Rate::Max => "max".to_owned(),
        requestor::Rate::PerSecond(rate) => (rate / f64::from(requestors.max(1))).to_string(),
    }
}
