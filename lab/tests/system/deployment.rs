//! A deployment for a test: a broker, and the programs that the test starts.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use contract::Amount;
use contract::facts::Stored;
use contract::queues::{Acknowledgment, Request};
use observe::audit::{Verdict, audit, drained};
use tempfile::TempDir;
use testkit::broker::{Broker, BrokerOptions, Brokers};
use testkit::eventually::eventually;
use testkit::http;
use testkit::process::{Process, bound_to_this};
use testkit::programs::{self, Programs};
pub use testkit::service::Service;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use workqueue::topology::{self, DeclareError, Declared, Limits, QueueState};
use workqueue::{
    Bucket, Connection, Fact, Job, JobId, KnownStreams, NatsSettings, Priority, Publication, Queue,
    Trace, dead_letters, now,
};

/// A time limit that only a bug reaches, even on a slow machine.
pub const LIMIT: Duration = Duration::from_mins(5);

/// The limits of most tests: unsettled deliveries are redelivered soon.
pub const LIMITS: Limits = Limits {
    queue_limit: 100_000,
    facts_max_age: Duration::from_hours(24),
    replicas: 1,
    ack_wait: Duration::from_secs(1),
    max_bytes: None,
};

/// Limits with a long `ACK_WAIT`: each redelivered message was given back.
pub const PATIENT: Limits = Limits { ack_wait: Duration::from_hours(1), ..LIMITS };

pub struct Deployment<B = Broker> {
    pub broker: B,
    url: String,
    replicas: usize,
    connection: Connection,
    directory: TempDir,
}

/// A deployment on a broker, or on a cluster with a copy of each stream on each broker.
pub type Cluster = Deployment<Brokers>;

impl Deployment {
    /// A broker, with the topology declared under [`LIMITS`].
    pub async fn start() -> Self {
        Self::with(&LIMITS).await
    }

    /// A broker, with the topology declared under these limits.
    pub async fn with(limits: &Limits) -> Self {
        let deployment = Self::bare().await;
        deployment.declare_once(limits).await.unwrap();
        deployment
    }

    /// An empty broker.
    pub async fn bare() -> Self {
        Self::at(Broker::start(BrokerOptions::default()).await.unwrap()).await
    }

    /// A deployment on this empty broker.
    pub async fn at(broker: Broker) -> Self {
        let url = broker.url();
        Self::on(broker, url, 1).await
    }
}

impl Cluster {
    /// Three empty brokers.
    pub async fn of_three() -> Self {
        let brokers = Brokers::start(3, None).await.unwrap();
        let url = brokers.url();
        Self::on(brokers, url, 3).await
    }
}

impl<B> Deployment<B> {
    /// Declares the topology under these limits, with a copy on each broker, and repeats that until it succeeds.
    pub async fn declare(&self, limits: &Limits) {
        eventually("it is declared", async || self.declare_once(limits).await).await;
    }

    /// As [`Deployment::declare`], but once, by a new process.
    pub async fn declare_once(&self, limits: &Limits) -> Result<Declared, DeclareError> {
        let limits = Limits { replicas: self.replicas, ..*limits };
        let known = KnownStreams::default();
        topology::declare(self.nats(), &known, &contract::topology(), &limits).await
    }

    async fn on(broker: B, url: String, replicas: usize) -> Self {
        let connection = observe::connect(&NatsSettings::at(&url), "test").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        Self { broker, url, replicas, connection, directory }
    }

    /// The addresses of the brokers, as a setting of a service.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs a command of `decoupled` against this broker. Returns its exit status and its output.
    pub async fn decoupled(
        &self,
        words: impl IntoIterator<Item: AsRef<OsStr>>,
    ) -> (Option<i32>, String) {
        let mut decoupled = Command::new(&programs().await.decoupled);
        decoupled.env_clear().args(words).args(["--nats-url", self.url()]);
        let output = decoupled.output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    pub fn nats(&self) -> &Context {
        self.connection.context()
    }

    /// Starts a replica of a service with these settings.
    pub async fn run(&self, service: Service, name: &str, settings: &[(&str, &str)]) -> Process {
        let replicas = self.replicas.to_string();
        let settings = [&[("REPLICAS", replicas.as_str())], settings].concat();
        run(service, &self.url, self.log(name), &settings).await
    }

    /// Starts `decoupled declare --watch` with these limits, on top of these settings.
    pub async fn watch(&self, name: &str, limits: &Limits, settings: &[(&str, &str)]) -> Process {
        let millis = |time: Duration| format!("{}ms", time.as_millis());
        let limits = [
            ("QUEUE_LIMIT", limits.queue_limit.to_string()),
            ("FACTS_MAX_AGE", millis(limits.facts_max_age)),
            ("REPLICAS", self.replicas.to_string()),
            ("ACK_WAIT", millis(limits.ack_wait)),
        ];
        let limits = limits.each_ref().map(|(name, value)| (*name, value.as_str()));
        watch(&self.url, self.log(name), &[&limits, settings].concat()).await
    }

    /// Starts a gateway with these settings.
    pub async fn gateway(&self, name: &str, settings: &[(&str, &str)]) -> Process {
        let replicas = self.replicas.to_string();
        let settings = [&[("REPLICAS", replicas.as_str())], settings].concat();
        gateway(&self.url, self.log(name), &settings).await
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    /// Starts a requestor that makes this many requests at full speed, and then ends.
    pub async fn ask(&self, total: u64) -> Process {
        let total = total.to_string();
        let settings = [("REQUEST_TOTAL", total.as_str()), ("REQUEST_RATE", "max")];
        self.run(Service::Requestor, "requestor", &settings).await
    }

    /// The verdict, once nothing is pending any more.
    pub async fn verdict(&self) -> Verdict {
        // An audit would end its wait at the first loss.
        drained(self.nats(), LIMIT).await.unwrap();
        audit(self.nats(), LIMIT).await.unwrap()
    }

    /// Submits this many requests of a priority. Returns their ids.
    pub async fn submit(&self, priority: Priority, count: usize) -> Vec<JobId> {
        let mut ids = Vec::new();
        for _ in 0..count {
            let amount = Amount::new(1, 8).unwrap();
            let request = Request::new(JobId::new(), amount, "by hand", now());
            let request = Request { priority, ..request };
            self.publish(&publication(&request)).await;
            self.publish(&creation(&request)).await;
            ids.push(request.id);
        }
        ids
    }

    /// The number of messages in a queue, delivered or not.
    pub async fn depth(&self, queue: Queue) -> u64 {
        topology::stream_state(self.nats(), queue.stream).await.unwrap().state.messages
    }

    /// The number of dead letters.
    pub async fn depth_of_dead_letters(&self) -> u64 {
        let letters = topology::stream_state(self.nats(), dead_letters::STREAM).await;
        letters.unwrap().state.messages
    }

    pub async fn queue_state(&self, queue: Queue) -> QueueState {
        topology::queue_state(self.nats(), queue).await.unwrap()
    }

    /// Waits until a queue is empty, because acks come after the effects.
    pub async fn drained(&self, queue: Queue) {
        eventually(&format!("{} is empty", queue.stream), async || match self.depth(queue).await {
            0 => Ok(()),
            messages => Err(messages),
        })
        .await;
    }

    /// The number of facts in a bucket.
    pub async fn facts(&self, bucket: Bucket) -> u64 {
        topology::bucket_state(self.nats(), bucket).await.unwrap().state.messages
    }

    /// Waits until a bucket has this many facts or more, and returns their number.
    pub async fn facts_reach(&self, bucket: Bucket, count: u64) -> u64 {
        eventually(&format!("{count} facts in bucket {}", bucket.name), async || {
            // There may be no answer for a moment: tests kill brokers.
            match topology::bucket_state(self.nats(), bucket).await {
                Ok(stream) if stream.state.messages >= count => Ok(stream.state.messages),
                state => Err(state.map(|stream| stream.state.messages)),
            }
        })
        .await
    }

    pub async fn fact<F: Fact>(&self, id: JobId) -> Option<F> {
        let stream = self.nats().get_stream(F::BUCKET.stream).await.unwrap();
        let found = stream.get_last_raw_message_by_subject(&F::BUCKET.subject(id)).await;
        found.ok().map(|message| F::from_body(&message.payload).unwrap())
    }

    /// The stored strings of this request.
    pub async fn stored(&self, id: JobId) -> Option<Acknowledgment> {
        self.fact::<Stored>(id).await?.acknowledgment()
    }

    /// Waits for the fact of this request.
    pub async fn fact_eventually<F: Fact>(&self, id: JobId) -> F {
        eventually(&format!("{} in bucket {}", id, F::BUCKET.name), async || {
            self.fact(id).await.ok_or("not there")
        })
        .await
    }

    /// Publishes a message by hand, and waits until it is stored.
    pub async fn publish(&self, publication: &Publication) {
        self.publish_raw(&publication.subject, publication.headers.clone(), &publication.body)
            .await;
    }

    /// Publishes a message by hand, if there is room for it. Returns whether there was.
    pub async fn publish_unless_full(&self, publication: &Publication) -> bool {
        let Publication { subject, headers, body } = publication.clone();
        let publish = self.nats().publish_with_headers(subject, headers, body);
        publish.await.unwrap().await.is_ok()
    }

    pub async fn publish_raw(&self, subject: &str, headers: HeaderMap, body: &[u8]) {
        let publish =
            self.nats().publish_with_headers(subject.to_owned(), headers, body.to_vec().into());
        publish.await.unwrap().await.unwrap();
    }

    /// Waits until there are this many dead letters, and returns their subjects, headers and bodies.
    pub async fn dead_letters(&self, count: u64) -> Vec<(String, HeaderMap, Vec<u8>)> {
        eventually("the dead letters are there", async || {
            // There may be no answer for a moment: tests kill brokers.
            let text = |error: &dyn std::error::Error| error.to_string();
            let stream = self.nats().get_stream(dead_letters::STREAM).await;
            let stream = stream.map_err(|error| text(&error))?;
            let messages = stream.cached_info().state.messages;
            if messages != count {
                return Err(format!("{messages} are"));
            }
            let mut letters = Vec::new();
            for sequence in 1..=count {
                let letter =
                    stream.get_raw_message(sequence).await.map_err(|error| text(&error))?;
                letters.push((letter.subject.to_string(), letter.headers, letter.payload.to_vec()));
            }
            Ok(letters)
        })
        .await
    }
}

/// The number of open pulls of all replicas.
pub fn open_pulls(queue: &QueueState) -> usize {
    queue.lanes.iter().map(|(_, consumer)| consumer.num_waiting).sum()
}

/// The message of a job that has an id.
pub fn publication(job: &impl Job) -> Publication {
    let id = job.id().expect("it has an id");
    job.publication(id, &Trace::default()).unwrap()
}

/// The publish that creates a fact.
pub fn creation(fact: &impl Fact) -> Publication {
    fact.creation(&Trace::default()).unwrap()
}

pub async fn run(service: Service, url: &str, log: PathBuf, settings: &[(&str, &str)]) -> Process {
    let programs = programs().await;
    let mut command = bound_to_this(programs.of(service));
    // Only the settings of the test, and not those of the developer's environment.
    command.env_clear().env("NATS_URL", url).env("ACK_WAIT", "1s").env("LOG_FORMAT", "pretty");
    if service == Service::Requestor {
        command.env("REQUEST_RATE", "0");
    }
    command.envs(settings.iter().copied());
    Process::spawn(command, log).unwrap()
}

/// Starts a gateway on a free port. It answers before it is connected.
pub async fn gateway(url: &str, log: PathBuf, settings: &[(&str, &str)]) -> Process {
    let mut command = bound_to_this(&programs().await.gateway);
    command.env_clear().env("NATS_URL", url).env("LOG_FORMAT", "pretty");
    command.env("GATEWAY_ADDR", "127.0.0.1:0").envs(settings.iter().copied());
    Process::spawn(command, log).unwrap()
}

/// Starts `decoupled declare --watch`.
pub async fn watch(url: &str, log: PathBuf, settings: &[(&str, &str)]) -> Process {
    let mut command = bound_to_this(&programs().await.decoupled);
    command.env_clear().env("NATS_URL", url).env("LOG_FORMAT", "pretty");
    command.args(["declare", "--watch"]).envs(settings.iter().copied());
    Process::spawn(command, log).unwrap()
}

/// The programs under test, built once.
pub async fn programs() -> &'static Programs {
    static PROGRAMS: OnceCell<Programs> = OnceCell::const_new();
    PROGRAMS.get_or_init(async || programs::build().await.unwrap()).await
}

/// Waits for a future. Only a bug makes this fail.
pub async fn soon<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    timeout(LIMIT, awaited).await.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}"))
}

/// Waits until a process ends by itself.
pub async fn ended(process: &mut Process) -> ExitStatus {
    let Ok(status) = timeout(LIMIT, process.wait()).await else {
        panic!("it does not end:\n{}", process.log_text());
    };
    status.unwrap()
}

/// Waits until a process has ended with exit status 0.
pub async fn succeeded(process: &mut Process) {
    let status = ended(process).await;
    assert!(status.success(), "{status}:\n{}", process.log_text());
}

/// Waits until a process is connected and pulls messages.
pub async fn ready(process: &Process) {
    eventually("it is ready", async || match admin(process, "/readyz").await {
        (200, _) => Ok(()),
        other => Err(other),
    })
    .await;
}

/// The address of the admin endpoint of a process, which is in its log.
pub async fn admin_addr(process: &Process) -> SocketAddr {
    listens(process, "admin endpoint listens addr=").await
}

/// The address of the page and the HTTP API of a gateway, which is in its log.
pub async fn api_addr(process: &Process) -> SocketAddr {
    listens(process, "gateway listens addr=").await
}

async fn listens(process: &Process, sign: &str) -> SocketAddr {
    eventually("it says where it listens", async || {
        process.logged_addr(sign).ok_or_else(|| process.log_text())
    })
    .await
}

/// The answer of the admin endpoint of a process.
pub async fn admin(process: &Process, path: &str) -> (u16, String) {
    http::get(admin_addr(process).await, path).await.unwrap()
}
