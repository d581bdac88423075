//! A broker and services of their own for one measurement, and their resource usage.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::Context;
use contract::facts;
use observe::audit::audit;
use testkit::broker::Broker;
use testkit::process::{Process, bound_to_this};
use testkit::programs::Programs;
use testkit::side::Side;
use testkit::usage;
use tokio::time::{Instant, sleep};
use workqueue::{Bucket, Connection, Fact, topology};

use super::round::{Each, Round};

/// How often the processes and the state of the broker are polled.
const POLL: Duration = Duration::from_millis(20);

/// How often a process that starts is polled.
const POLL_OFTEN: Duration = Duration::from_millis(1);

/// How long anything may take that moves on.
const PATIENCE: Duration = Duration::from_mins(5);

/// How long the last settlements may take.
const LAST_WAIT: Duration = Duration::from_mins(1);

/// A broker with services.
pub(super) struct BenchDeployment {
    // In the order of stopping.
    requestor: Option<Process>,
    generators: Vec<Process>,
    pub(super) connection: Connection,
    broker: Broker,
    programs: Programs,
    logs: PathBuf,
    /// The processor time of the broker before the first request.
    broker_before: Duration,
    /// The processor time in all.
    pub(super) processor: Each<Duration>,
    /// The most memory of a process, in kB.
    peak: Each<u64>,
}

impl BenchDeployment {
    /// A broker, which everything is durable on where `sync`, and no services yet.
    pub(super) async fn new(round: &Round<'_>, sync: bool) -> anyhow::Result<Self> {
        let broker = round.broker(sync).await?;
        let connection = round.connect(&broker).await?;
        let id = broker.id().context("the broker does not run")?;
        Ok(Self {
            requestor: None,
            generators: Vec::new(),
            connection,
            broker,
            programs: round.programs.clone(),
            logs: round.directory.to_owned(),
            broker_before: usage::processor_time(id).unwrap_or_default(),
            processor: Each::default(),
            peak: Each::default(),
        })
    }

    fn nats(&self) -> &Context {
        self.connection.context()
    }

    /// Starts the requestor with these settings. The usage of an earlier one is not counted any more.
    pub(super) fn start_requestor(&mut self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.requestor = Some(self.spawn(Side::Requestor, settings)?);
        Ok(())
    }

    pub(super) fn start_generator(&mut self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let generator = self.spawn(Side::Generator, settings)?;
        self.generators.push(generator);
        Ok(())
    }

    fn spawn(&self, side: Side, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut command = bound_to_this(self.programs.of(side));
        command.env("NATS_URL", self.broker.url()).env("LOG_FORMAT", "pretty");
        command.env("RUST_LOG", "info");
        command.envs(settings.iter().copied());
        // Every process has a log of its own, where it says which port it has.
        let log =
            tempfile::Builder::new().prefix(side.name()).suffix(".log").tempfile_in(&self.logs);
        let (_, log) = log.and_then(|file| Ok(file.keep()?)).context("cannot create a log")?;
        Process::spawn(command, log)
    }

    /// How long after this moment all started processes are ready.
    pub(super) async fn ready(&mut self, since: Instant) -> anyhow::Result<Duration> {
        for process in self.requestor.iter_mut().chain(&mut self.generators) {
            ready(process).await?;
        }
        Ok(since.elapsed())
    }

    /// Waits until that many requests are marked as received, and notes what was used for it. Makes sure
    /// that all of it was done, and nothing else: runs that fail the audit are discarded.
    pub(super) async fn received(
        &mut self,
        total: u64,
        round: &mut Round<'_>,
    ) -> anyhow::Result<()> {
        self.count(facts::RECEIVED, total).await?;
        self.note_usage();
        round.note_peak(self.peak);
        let verdict = audit(self.nats(), LAST_WAIT).await?;
        let complete = u64::try_from(verdict.complete).unwrap_or_default();
        ensure!(complete == total && verdict.is_clean(), "not clean:\n{verdict}");
        Ok(())
    }

    /// Waits until there are that many of these facts.
    pub(super) async fn count(&mut self, bucket: Bucket, total: u64) -> anyhow::Result<()> {
        let limit = Instant::now() + PATIENCE;
        loop {
            self.note_usage();
            let count = topology::bucket_state(self.nats(), bucket).await;
            // It is not there before a service has declared it.
            let count = count.map(|state| state.state.messages).unwrap_or_default();
            if count >= total {
                return Ok(());
            }
            for process in self.requestor.iter_mut().chain(&mut self.generators) {
                if let Some(status) = process.try_wait()?
                    && !status.success()
                {
                    bail!("a service failed:\n{}", process.log_text());
                }
            }
            if Instant::now() > limit {
                bail!("after {PATIENCE:?} there are {count} of {total} in {}", bucket.name);
            }
            sleep(POLL).await;
        }
    }

    /// Stops the requestor in order.
    pub(super) async fn stop_requestor(&mut self) -> anyhow::Result<()> {
        if let Some(mut requestor) = self.requestor.take() {
            requestor.terminate()?;
            let status = requestor.wait().await?;
            ensure!(status.success(), "the requestor failed:\n{}", requestor.log_text());
        }
        Ok(())
    }

    /// Notes what the processes have used so far. A process that has ended counts with its last figures.
    pub(super) fn note_usage(&mut self) {
        let broker = self.broker.id().unwrap_or_default();
        if let Some(time) = usage::processor_time(broker) {
            self.processor.broker = time.saturating_sub(self.broker_before);
        }
        let most =
            |peak: &mut u64, id| *peak = usage::peak_memory(id).unwrap_or_default().max(*peak);
        most(&mut self.peak.broker, broker);
        if let Some(requestor) = &self.requestor {
            most(&mut self.peak.requestor, requestor.id());
            if let Some(time) = usage::processor_time(requestor.id()) {
                self.processor.requestor = time;
            }
        }
        for generator in &self.generators {
            most(&mut self.peak.generator, generator.id());
        }
        self.processor.generator =
            self.generators.iter().filter_map(|it| usage::processor_time(it.id())).sum();
    }

    /// The memory of the two sides now, in kB.
    pub(super) fn memory(&self) -> (u64, u64) {
        let of = |process: &Process| process.memory().unwrap_or_default();
        let generators = self.generators.iter().map(of).max();
        (self.requestor.as_ref().map(of).unwrap_or_default(), generators.unwrap_or_default())
    }

    /// The first fact of this bucket.
    pub(super) async fn first<F: Fact>(&self) -> anyhow::Result<F> {
        self.at(topology::bucket_state(self.nats(), F::BUCKET).await?.state.first_sequence).await
    }

    /// The last fact of this bucket.
    pub(super) async fn last<F: Fact>(&self) -> anyhow::Result<F> {
        self.at(topology::bucket_state(self.nats(), F::BUCKET).await?.state.last_sequence).await
    }

    async fn at<F: Fact>(&self, sequence: u64) -> anyhow::Result<F> {
        let stream = self.nats().get_stream_no_info(F::BUCKET.stream).await;
        let message = stream.context("cannot read the facts")?.get_raw_message(sequence).await;
        let message = message.context("cannot read the facts")?;
        F::from_body(&message.payload).context("the stored message is not a fact")
    }
}

/// Waits until a service says that it is ready.
async fn ready(process: &mut Process) -> anyhow::Result<()> {
    let limit = Instant::now() + PATIENCE;
    loop {
        if process.is_ready().await {
            return Ok(());
        }
        let ended = process.try_wait()?.is_some();
        ensure!(!ended && Instant::now() < limit, "never ready:\n{}", process.log_text());
        sleep(POLL_OFTEN).await;
    }
}
