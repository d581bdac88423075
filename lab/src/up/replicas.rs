//! The services that `lab up` runs, each replica a process.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::Process;
use crate::programs::Programs;

/// How long a replica may take to stop: the drain of the services, and some more.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A replica of a service.
#[derive(Debug)]
pub(super) struct Replica {
    name: String,
    process: Process,
}

/// All replicas of both sides.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    pub(super) requestors: Vec<Replica>,
    pub(super) generators: Vec<Replica>,
}

impl Replicas {
    /// Starts so many requestors, which together ask at this rate, and so many generators.
    pub(super) fn start(
        programs: &Programs,
        requestors: u32,
        generators: u32,
        rate: requestor::Rate,
        nats_url: &str,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let start = |program: &Path, name: String, rate: Option<String>| {
            let mut command = Command::new(program);
            command.env("NATS_URL", nats_url).env("INSTANCE", &name).env("LOG_FORMAT", "pretty");
            command.envs(rate.map(|rate| ("REQUEST_RATE", rate)));
            let process = Process::spawn(command, directory.join(format!("{name}.log")))?;
            anyhow::Ok(Replica { name, process })
        };
        let generators = (1..=generators)
            .map(|number| start(&programs.generator, format!("generator-{number}"), None))
            .collect::<Result<_, _>>()?;
        let share = share(rate, requestors);
        let requestors = (1..=requestors)
            .map(|number| {
                start(&programs.requestor, format!("requestor-{number}"), Some(share.clone()))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { requestors, generators })
    }

    /// Which replica runs as which process, or has ended.
    pub(super) fn describe(&mut self) -> String {
        let all = self.requestors.iter_mut().chain(&mut self.generators);
        all.map(Replica::describe).collect::<Vec<_>>().join("   ")
    }

    /// Stops the requestors and then the generators, so that what is on its way comes to its end.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for side in [&mut self.requestors, &mut self.generators] {
            for replica in side.iter() {
                // One that somebody has killed refuses, which is as good.
                let _ = replica.process.terminate();
                let _ = replica.process.resume();
            }
            for replica in side {
                replica.stopped().await?;
            }
        }
        Ok(())
    }
}

impl Replica {
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    fn describe(&mut self) -> String {
        if matches!(self.process.try_wait(), Ok(None)) {
            return format!("{} (pid {})", self.name, self.process.id());
        }
        let log = self.process.log_text();
        format!("{} (ended: {})", self.name, log.lines().last().unwrap_or("no word"))
    }

    async fn stopped(&mut self) -> anyhow::Result<()> {
        let name = &self.name;
        let ended = timeout(STOP_TIMEOUT, self.process.wait()).await;
        let status = ended.with_context(|| format!("{name} does not stop"))??;
        // A replica that somebody killed has no code; that is what the lab is for.
        if let Some(code @ 1..) = status.code() {
            bail!("{name} ended with {code}:\n{}", self.process.log_text());
        }
        Ok(())
    }
}

fn share(rate: requestor::Rate, requestors: u32) -> String {
    match rate {
        requestor::Rate::Zero => "0".to_owned(),
        requestor::Rate::Max => "max".to_owned(),
        requestor::Rate::PerSecond(rate) => (rate / f64::from(requestors.max(1))).to_string(),
    }
}
