//! A broker and services of their own for one measurement, and their resource usage.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream::Context;
use contract::facts;
use observe::audit::audit;
use testkit::broker::{Broker, Brokers};
use testkit::process::{Process, bound_to_this};
use testkit::programs::Programs;
use testkit::service::Service;
use testkit::usage;
use tokio::time::{Instant, sleep};
use workqueue::{Bucket, Connection, Fact, topology};

use super::round::{Each, Round};
use crate::replica::wait_for_start;

/// The interval at which the processes and the state of the broker are polled.
const POLL: Duration = Duration::from_millis(20);

/// The interval at which a starting process is polled.
const POLL_OFTEN: Duration = Duration::from_millis(1);

/// The time limit without any progress.
const PATIENCE: Duration = Duration::from_mins(5);

/// The time limit for the last settlements.
const LAST_WAIT: Duration = Duration::from_mins(1);

/// A process of one of the two services.
struct MeasuredReplica {
    process: Process,
    /// The processor time so far, or until it ended.
    processor: Duration,
}

/// Brokers with services.
pub(super) struct BenchDeployment {
    // In the order of stopping.
    requestors: Vec<MeasuredReplica>,
    generators: Vec<MeasuredReplica>,
    pub(super) connection: Connection,
    brokers: Brokers,
    programs: Programs,
    logs: PathBuf,
    /// The processor time that does not count.
    forgotten: Each<Duration>,
    /// The processor time in all, or since [`BenchDeployment::forget_usage`].
    pub(super) processor: Each<Duration>,
    /// The largest memory of a process, in kB.
    peak: Each<u64>,
}

impl BenchDeployment {
    /// A broker without services. With `sync` it syncs each write to the disk.
    pub(super) async fn new(round: &Round<'_>, sync: bool) -> anyhow::Result<Self> {
        Self::on(round.broker(sync).await?.into(), round).await
    }

    /// A deployment on these brokers.
    pub(super) async fn on(brokers: Brokers, round: &Round<'_>) -> anyhow::Result<Self> {
        let connection = round.connect(&brokers.url()).await?;
        Ok(Self {
            requestors: Vec::new(),
            generators: Vec::new(),
            connection,
            forgotten: Each::default(),
            brokers,
            programs: round.programs.clone(),
            logs: round.directory.to_owned(),
            processor: Each::default(),
            peak: Each::default(),
        })
    }

    fn nats(&self) -> &Context {
        self.connection.context()
    }

    /// Starts a requestor with these settings.
    pub(super) fn start_requestor(&mut self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.requestors.push(self.replica(Service::Requestor, settings)?);
        Ok(())
    }

    pub(super) fn start_generator(&mut self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.generators.push(self.replica(Service::Generator, settings)?);
        Ok(())
    }

    /// Kills the generators, and starts one again at once.
    pub(super) async fn replace_generators(&mut self) -> anyhow::Result<()> {
        for mut generator in self.generators.drain(..) {
            generator.process.kill().await?;
        }
        self.start_generator(&[])
    }

    fn replica(
        &self,
        service: Service,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<MeasuredReplica> {
        let process = self.spawn(self.programs.of(service), &[], settings)?;
        Ok(MeasuredReplica { process, processor: Duration::ZERO })
    }

    /// Starts any program with these arguments and settings. Its usage does not count.
    pub(super) fn spawn(
        &self,
        program: &Path,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Process> {
        let mut command = bound_to_this(program);
        command.env("NATS_URL", self.brokers.url()).env("LOG_FORMAT", "pretty");
        command.env("RUST_LOG", "info");
        command.args(arguments).envs(settings.iter().copied());
        // Each process has a log of its own, because the log has its port.
        let name = program.file_name().unwrap_or_default();
        let log = tempfile::Builder::new().prefix(name).suffix(".log").tempfile_in(&self.logs);
        let (_, log) = log.and_then(|file| Ok(file.keep()?)).context("cannot create a log")?;
        Process::spawn(command, log)
    }

    /// The time from this moment until all started processes are ready.
    pub(super) async fn ready(&mut self, since: Instant) -> anyhow::Result<Duration> {
        for service in self.requestors.iter_mut().chain(&mut self.generators) {
            ready(&mut service.process).await?;
        }
        Ok(since.elapsed())
    }

    /// Waits until this many requests are marked as received, and records the usage. Runs the audit.
    ///
    /// # Errors
    ///
    /// If the audit is not clean: its figures count for nothing.
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

    /// Waits until this many of these facts exist.
    pub(super) async fn count(&mut self, bucket: Bucket, total: u64) -> anyhow::Result<()> {
        let (mut last, mut limit) = (0, Instant::now() + PATIENCE);
        loop {
            self.note_usage();
            let count = topology::bucket_state(self.nats(), bucket).await;
            // The bucket does not exist before a service has declared it.
            let count = count.map(|state| state.state.messages).unwrap_or_default();
            if count >= total {
                return Ok(());
            }
            if count > last {
                (last, limit) = (count, Instant::now() + PATIENCE);
            }
            for MeasuredReplica { process, .. } in
                self.requestors.iter_mut().chain(&mut self.generators)
            {
                if let Some(status) = process.try_wait()?
                    && !status.success()
                {
                    bail!("a service failed:\n{}", process.log_text());
                }
            }
            if Instant::now() > limit {
                bail!("for {PATIENCE:?} there are {count} of {total} in {}", bucket.name);
            }
            sleep(POLL).await;
        }
    }

    /// Stops the requestors and the generators gracefully. Their usage does not count any more.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for MeasuredReplica { mut process, .. } in
            self.requestors.drain(..).chain(self.generators.drain(..))
        {
            process.terminate()?;
            let status = process.wait().await?;
            ensure!(status.success(), "a service failed:\n{}", process.log_text());
        }
        Ok(())
    }

    /// Lets the processor time count from now on: the start comes only once.
    pub(super) fn forget_usage(&mut self) {
        self.forgotten = Each::default();
        self.note_usage();
        self.forgotten = self.processor;
    }

    /// Records the usage of the processes so far. A process that has ended counts with its last figures.
    pub(super) fn note_usage(&mut self) {
        let most =
            |peak: &mut u64, id| *peak = usage::peak_memory(id).unwrap_or_default().max(*peak);
        for broker in self.brokers.iter().filter_map(Broker::id) {
            most(&mut self.peak.broker, broker);
        }
        let note = |replicas: &mut [MeasuredReplica], peak: &mut u64| -> Duration {
            for MeasuredReplica { process, processor } in replicas.iter_mut() {
                most(peak, process.id());
                *processor = usage::processor_time(process.id()).unwrap_or(*processor);
            }
            replicas.iter().map(|replica| replica.processor).sum()
        };
        let Each { broker, requestor, generator } = self.forgotten;
        let requestors = note(&mut self.requestors, &mut self.peak.requestor);
        let generators = note(&mut self.generators, &mut self.peak.generator);
        self.processor = Each {
            broker: processor_time(&self.brokers).saturating_sub(broker),
            requestor: requestors.saturating_sub(requestor),
            generator: generators.saturating_sub(generator),
        };
    }

    /// The current memory of the two services, in kB.
    pub(super) fn memory(&self) -> (u64, u64) {
        let most = |replicas: &[MeasuredReplica]| {
            replicas.iter().filter_map(|replica| replica.process.memory()).max().unwrap_or_default()
        };
        (most(&self.requestors), most(&self.generators))
    }

    /// The current memory of the broker with the largest memory, in kB.
    pub(super) fn broker_memory(&self) -> u64 {
        let ids = self.brokers.iter().filter_map(Broker::id);
        ids.filter_map(usage::memory).max().unwrap_or_default()
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

/// The processor time of all these processes so far.
fn processor_time(brokers: &Brokers) -> Duration {
    brokers.iter().filter_map(Broker::id).filter_map(usage::processor_time).sum()
}

/// Waits until a program reports that it is ready.
pub(super) async fn ready(process: &mut Process) -> anyhow::Result<()> {
    let is_ready = async |process: &Process| process.is_ready().await.then_some(());
    let ready = wait_for_start(process, PATIENCE, POLL_OFTEN, is_ready).await?;
    ready.with_context(|| format!("never ready:\n{}", process.log_text()))
}
