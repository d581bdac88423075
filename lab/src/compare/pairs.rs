//! The four pairs of a requestor and a generator: how each is started, broken and stopped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use testkit::broker::{Broker, BrokerOptions};
use testkit::process::Process;
use testkit::programs::{Examples, Programs};
use testkit::reserved_ports::ReservedPorts;
use tokio::time::timeout;
use workqueue::{Connection, NatsSettings};

use super::figures::Design;
use super::plan::OutageCause;
use super::settings::CompareSettings;
use crate::replica::{Replica, wait_for_start};
use crate::times::in_words;

/// The time limit for a generator until it listens, and the interval of the checks.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);

/// The time for an answer beyond that of the work.
const LISTENING: Duration = Duration::from_secs(2);

/// The time limit for the last answers. The broker redelivers the messages of a killed generator after `ACK_WAIT`.
const LAST_ANSWERS: Duration = Duration::from_mins(5);

/// The settings of all pairs.
#[derive(Debug)]
pub(super) struct PairConfig<'a> {
    pub(super) system: &'a Programs,
    pub(super) examples: &'a Examples,
    pub(super) settings: &'a CompareSettings,
    /// The directory of the logs and the queues.
    pub(super) directory: &'a Path,
}

/// A requestor and a generator.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) design: Design,
    requestor: Program,
    generator: Program,
    pub(super) between: Between,
}

/// The channel between the two.
#[derive(Debug)]
pub(super) enum Between {
    /// The port of the generator, reserved while it is down.
    Port(u16, Option<ReservedPorts>),
    /// A broker without JetStream.
    Broker(Broker),
    /// A broker with queues and facts.
    Queues(Broker, Connection),
}

/// A program with its settings.
#[derive(Debug)]
struct Program {
    path: PathBuf,
    name: String,
    settings: Vec<(&'static str, String)>,
    directory: PathBuf,
    replica: Option<Replica>,
}

impl Program {
    fn start(&mut self) -> anyhow::Result<()> {
        let Self { path, name, settings, directory, .. } = self;
        self.replica = Some(Replica::start(path, &[], &*name, directory, settings.clone())?);
        Ok(())
    }

    fn running(&mut self) -> anyhow::Result<&mut Replica> {
        self.replica.as_mut().with_context(|| format!("{} does not run", self.name))
    }

    /// Its failure, if it has ended with an exit status other than 0.
    fn failed(&mut self) -> anyhow::Result<bool> {
        let Some(replica) = &mut self.replica else { return Ok(false) };
        replica.could_start()?;
        Ok(replica.process.try_wait()?.is_some_and(|status| status.code() > Some(0)))
    }

    /// Its output, from before each restart as well.
    fn log(&self) -> anyhow::Result<String> {
        let file = self.directory.join(format!("{}.log", self.name));
        std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    }
}

impl Pair {
    /// Starts a generator, and the channel to its requestor.
    pub(super) async fn start(design: Design, config: &PairConfig<'_>) -> anyhow::Result<Self> {
        let &PairConfig { system, examples, settings, directory } = config;
        let work_time = ("WORK_TIME", in_words(settings.work_time));
        let (rate, total) = (settings.rate.to_string(), settings.total().to_string());
        let nats = |broker: &Broker| ("NATS_URL", broker.url());
        let between = match design {
            Design::Coupled | Design::CoupledWithBreaker => {
                let (held, port) =
                    ReservedPorts::free().context("there is no port for a generator")?;
                Between::Port(port, Some(held))
            }
            Design::FireAndForget => Between::Broker(broker(design, directory).await?),
            Design::Queue => {
                let broker = broker(design, directory).await?;
                let nats = NatsSettings::at(broker.url());
                let connection = observe::connect(&nats, "lab compare").await?;
                Between::Queues(broker, connection)
            }
        };
        let (requestor, asking, generator, making) = match &between {
            Between::Port(port, _) => {
                let addr = format!("127.0.0.1:{port}");
                let breaker = (design == Design::CoupledWithBreaker).to_string();
                let url = ("GENERATOR_URL", format!("http://{addr}"));
                let asking = vec![url, ("BREAKER", breaker), ("RATE", rate), ("TOTAL", total)];
                let making = vec![("LISTEN_ADDR", addr), work_time];
                (&examples.coupled_requestor, asking, &examples.coupled_generator, making)
            }
            Between::Broker(broker) => {
                // It listens for the last answers as long as one takes, and a little longer.
                let timeout = ("TIMEOUT", in_words(settings.work_time + LISTENING));
                let asking = vec![nats(broker), ("RATE", rate), ("TOTAL", total), timeout];
                let making = vec![nats(broker), work_time];
                (&examples.forgetful_requestor, asking, &examples.forgetful_generator, making)
            }
            Between::Queues(broker, _) => {
                let asking = vec![nats(broker), ("REQUEST_RATE", rate), ("REQUEST_TOTAL", total)];
                (&system.requestor, asking, &system.generator, vec![nats(broker), work_time])
            }
        };
        let program = |path: &Path, service: &str, settings| {
            let (path, directory) = (path.to_owned(), directory.to_owned());
            let name = format!("{}-{service}", design.prefix());
            Program { path, name, settings, directory, replica: None }
        };
        let requestor = program(requestor, "requestor", asking);
        let generator = program(generator, "generator", making);
        let mut pair = Self { design, requestor, generator, between };
        pair.start_generator()?;
        pair.wait_until_generator_listens().await?;
        Ok(pair)
    }

    fn start_generator(&mut self) -> anyhow::Result<()> {
        if let Between::Port(_, held) = &mut self.between
            && !ReservedPorts::CAN_BE_SHARED
        {
            *held = None;
        }
        self.generator.start()
    }

    async fn wait_until_generator_listens(&mut self) -> anyhow::Result<()> {
        if let Between::Queues(_, connection) = &self.between {
            return self.generator.running()?.wait_until_declared(connection.context()).await;
        }
        // "listens on …", or "listening".
        let listens = async |it: &Process| it.log_text().contains("listen").then_some(());
        let process = &mut self.generator.running()?.process;
        let listening = wait_for_start(process, START_TIMEOUT, POLL, listens).await?;
        self.check()?;
        listening.with_context(|| format!("{} does not listen", self.generator.name))
    }

    /// Starts the requestor, which makes requests from now on.
    pub(super) fn ask(&mut self) -> anyhow::Result<()> {
        self.requestor.start()
    }

    /// Breaks the generator.
    pub(super) async fn break_generator(&mut self, cause: OutageCause) -> anyhow::Result<()> {
        self.check()?;
        let process = &mut self.generator.running()?.process;
        match cause {
            OutageCause::Pause => process.pause()?,
            OutageCause::Kill => {
                process.kill().await?;
                self.generator.replica = None;
                if let Between::Port(port, held @ None) = &mut self.between {
                    // Only a precaution, so an error does not matter.
                    *held = ReservedPorts::bind([*port]).ok();
                }
            }
        }
        Ok(())
    }

    /// Ends the outage of [`Self::break_generator`].
    pub(super) fn mend_generator(&mut self, cause: OutageCause) -> anyhow::Result<()> {
        match cause {
            OutageCause::Pause => self.generator.running()?.process.resume(),
            OutageCause::Kill => self.start_generator(),
        }
    }

    /// Checks that no program has ended by itself.
    ///
    /// # Errors
    ///
    /// If one has. The error has its log.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let Self { design, requestor, generator, .. } = self;
        if let Some(replica) = &mut generator.replica
            && replica.process.try_wait()?.is_some()
        {
            bail!("{} has ended by itself:\n{}", generator.name, generator.log()?);
        }
        // The requestor of the queue fails if a request has no result, which the audit reports as well.
        if requestor.failed()? && *design != Design::Queue {
            bail!("{} has failed:\n{}", requestor.name, requestor.log()?);
        }
        Ok(())
    }

    /// Makes the requestor stop its requests, and wait for the answers.
    pub(super) async fn stop_asking(&mut self) -> anyhow::Result<()> {
        let requestor = &mut self.requestor;
        if self.design != Design::Queue {
            // The error for a process that has ended already is of no interest.
            let _ = requestor.running()?.process.interrupt();
            return Ok(());
        }
        requestor.running()?.terminate();
        requestor.running()?.process.wait().await?;
        requestor.settings.retain(|(name, _)| *name == "NATS_URL");
        let none = [("REQUEST_RATE", "0".to_owned()), ("REQUEST_TOTAL", String::new())];
        requestor.settings.extend(none);
        requestor.start()
    }

    /// Waits until the requestor has ended, with the last answer.
    pub(super) async fn wait_until_answered(&mut self) -> anyhow::Result<()> {
        let ended = timeout(LAST_ANSWERS, self.requestor.running()?.process.wait()).await;
        ended.with_context(|| format!("{} does not end", self.requestor.name))??;
        self.check()
    }

    /// The output of the requestor, and that of the generators.
    pub(super) fn logs(&self) -> anyhow::Result<[String; 2]> {
        Ok([self.requestor.log()?, self.generator.log()?])
    }

    /// Stops everything gracefully.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.check()?;
        for program in [&mut self.requestor, &mut self.generator] {
            if let Some(replica) = &mut program.replica
                && replica.process.try_wait()?.is_none()
            {
                replica.terminate();
                replica.stopped().await?;
            }
        }
        match &mut self.between {
            Between::Broker(broker) | Between::Queues(broker, _) => broker.stop().await.map(drop),
            Between::Port(..) => Ok(()),
        }
    }
}

/// Starts the broker of a pair.
async fn broker(design: Design, directory: &Path) -> anyhow::Result<Broker> {
    let directory = Some(directory.join(format!("{}-broker", design.prefix())));
    let without_jetstream = design != Design::Queue;
    Broker::start(BrokerOptions { directory, without_jetstream, ..Default::default() }).await
}
