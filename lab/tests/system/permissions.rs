//! Permissions, on a broker with the shipped configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use async_nats::{ConnectOptions, Event, HeaderMap};
use cli::dead_letters::replay;
use cli::declare::declare;
use contract::facts;
use contract::queues::{ACKNOWLEDGMENTS, REQUESTS, RESPONSES};
use observe::audit::{Verdict, audit};
use serde_json::json;
use tempfile::TempDir;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::process::{Process, bound_to_this, logged};
use tokio::process::Command;
use tokio::sync::mpsc;
use workqueue::dead_letters::{DeadLetter, list};
use workqueue::topology::{self, Limits};
use workqueue::{Connection, NatsSettings, Publication};

use crate::api;
use crate::deployment::{
    LIMIT, LIMITS, Service, api_addr, creation, ended, programs, publication, ready, run, soon,
    succeeded,
};
use crate::foreign_messages::{Raw, acknowledgment, publish_raw, response};
use crate::later;
use crate::round_trips::request;

const REQUESTOR: &str = "requestor";
const GENERATOR: &str = "generator";
const DECLARER: &str = "declarer";
const AUDITOR: &str = "auditor";
const OPERATOR: &str = "operator";
const BACKUP: &str = "backup";
const GATEWAY: &str = "gateway";

const USERS: [&str; 7] = [REQUESTOR, GENERATOR, DECLARER, AUDITOR, OPERATOR, BACKUP, GATEWAY];

/// The users that consume messages from queues.
const SERVICES: &[&str] = &[REQUESTOR, GENERATOR];

/// The users that pause queues.
const PAUSERS: &[&str] = &[DECLARER, OPERATOR];

/// The users that read all facts.
const READERS: &[&str] = &[AUDITOR, GATEWAY];

/// Subjects, and the users that may publish to them. The broker refuses all others.
const PUBLISHES: &[(&str, &[&str])] = &[
    // The queues, and the dead letters.
    ("requests.id", &[REQUESTOR, GENERATOR, DECLARER, OPERATOR, GATEWAY]),
    ("requests.high.id", &[REQUESTOR, GENERATOR, DECLARER, OPERATOR, GATEWAY]),
    ("responses.id", &[REQUESTOR, GENERATOR, DECLARER, OPERATOR]),
    ("acknowledgments.id", &[REQUESTOR, GENERATOR, DECLARER, OPERATOR]),
    ("schedules.once.id", &[OPERATOR, GATEWAY]),
    ("schedules.every.name", &[OPERATOR, GATEWAY]),
    ("schedules.other", &[]),
    ("due.once.id", &[REQUESTOR, DECLARER, OPERATOR]),
    ("due.every.name", &[DECLARER, OPERATOR]),
    ("dead_letters.REQUESTS.id", &[GENERATOR, DECLARER]),
    ("dead_letters.RESPONSES.id", &[REQUESTOR, DECLARER]),
    ("dead_letters.ACKNOWLEDGMENTS.id", &[GENERATOR, DECLARER]),
    ("dead_letters.SCHEDULES.id", &[REQUESTOR, DECLARER]),
    ("dead_letters.OTHER.id", &[]),
    // Counting for a rate limit.
    ("rates.REQUESTS.1", &[GENERATOR]),
    ("rates.RESPONSES.1", &[REQUESTOR]),
    ("rates.ACKNOWLEDGMENTS.1", &[GENERATOR]),
    ("rates.OTHER.1", &[]),
    // Creating a fact, which is the same as changing or removing one.
    ("$KV.idempotency.token", &[GATEWAY]),
    ("$KV.requested.id", &[REQUESTOR, OPERATOR, GATEWAY]),
    ("$KV.stored.id", &[REQUESTOR, OPERATOR, GATEWAY]),
    ("$KV.received.id", &[GENERATOR]),
    ("$KV.other.id", &[]),
    // An answer in the place of another client.
    ("_INBOX.id", &[]),
    ("_INBOX_requestor.id", &[]),
    ("_INBOX_generator.id", &[]),
    ("_INBOX_declarer.id", &[]),
    ("_INBOX_auditor.id", &[]),
    ("_INBOX_operator.id", &[]),
    ("_INBOX_backup.id", &[]),
    ("_INBOX_gateway.id", &[]),
    // Service discovery, and answers that no client has asked for.
    ("$SRV.STATS", &[GATEWAY]),
    ("$SRV.PING", &[]),
    ("$SRV.INFO.generator", &[]),
    // Reading one fact, from any broker or from the leader.
    ("$JS.API.DIRECT.GET.KV_idempotency.$KV.idempotency.token", &[GATEWAY]),
    ("$JS.API.DIRECT.GET.KV_requested.$KV.requested.id", &[REQUESTOR, AUDITOR, OPERATOR, GATEWAY]),
    ("$JS.API.DIRECT.GET.KV_stored.$KV.stored.id", &[REQUESTOR, AUDITOR, OPERATOR, GATEWAY]),
    ("$JS.API.DIRECT.GET.KV_received.$KV.received.id", &[GENERATOR, AUDITOR, OPERATOR, GATEWAY]),
    ("$JS.API.DIRECT.GET.KV_idempotency", &[]),
    ("$JS.API.DIRECT.GET.KV_requested", &[GATEWAY]),
    ("$JS.API.DIRECT.GET.KV_stored", &[GATEWAY]),
    ("$JS.API.DIRECT.GET.KV_received", &[GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.KV_idempotency", &[GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.KV_requested", &[REQUESTOR, AUDITOR, OPERATOR, GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.KV_stored", &[REQUESTOR, AUDITOR, OPERATOR, GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.KV_received", &[GENERATOR, AUDITOR, OPERATOR, GATEWAY]),
    // Reading messages of a queue or dead letters, without consuming them.
    ("$JS.API.STREAM.MSG.GET.REQUESTS", &[DECLARER, AUDITOR, GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.RESPONSES", &[DECLARER, AUDITOR, GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.ACKNOWLEDGMENTS", &[DECLARER, AUDITOR, GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.SCHEDULES", &[DECLARER, AUDITOR, OPERATOR, GATEWAY]),
    ("$JS.API.STREAM.MSG.GET.DEAD_LETTERS", &[REQUESTOR, OPERATOR, GATEWAY]),
    ("$JS.API.DIRECT.GET.REQUESTS", &[BACKUP]),
    ("$JS.API.DIRECT.GET.RESPONSES", &[BACKUP]),
    ("$JS.API.DIRECT.GET.RESPONSES.responses.id", &[]),
    ("$JS.API.DIRECT.GET.ACKNOWLEDGMENTS", &[BACKUP]),
    ("$JS.API.DIRECT.GET.SCHEDULES", &[AUDITOR, OPERATOR, GATEWAY, BACKUP]),
    ("$JS.API.DIRECT.GET.DEAD_LETTERS", &[AUDITOR, OPERATOR, GATEWAY]),
    // Reading all of a bucket, through a consumer for that.
    ("$JS.API.CONSUMER.CREATE.KV_idempotency.any.$KV.idempotency.>", &[]),
    ("$JS.API.CONSUMER.CREATE.KV_requested.any.$KV.requested.>", READERS),
    ("$JS.API.CONSUMER.CREATE.KV_stored.any.$KV.stored.>", READERS),
    ("$JS.API.CONSUMER.CREATE.KV_received.any.$KV.received.>", READERS),
    ("$JS.API.CONSUMER.CREATE.DEAD_LETTERS.any.dead_letters.>", &[OPERATOR]),
    ("$JS.API.CONSUMER.MSG.NEXT.KV_requested.any", READERS),
    ("$JS.API.CONSUMER.MSG.NEXT.KV_stored.any", READERS),
    ("$JS.API.CONSUMER.MSG.NEXT.KV_received.any", READERS),
    ("$JS.API.CONSUMER.MSG.NEXT.DEAD_LETTERS.any", &[OPERATOR]),
    ("$JS.API.CONSUMER.DELETE.KV_requested.any", READERS),
    ("$JS.API.CONSUMER.DELETE.KV_stored.any", READERS),
    ("$JS.API.CONSUMER.DELETE.KV_received.any", READERS),
    ("$JS.API.CONSUMER.DELETE.DEAD_LETTERS.any", &[OPERATOR]),
    ("$JS.API.CONSUMER.CREATE.KV_stored", &[]),
    ("$JS.API.CONSUMER.CREATE.DEAD_LETTERS", &[]),
    ("$JS.API.CONSUMER.CREATE.KV_stored.any", &[]),
    ("$JS.API.CONSUMER.DURABLE.CREATE.KV_stored.any", &[]),
    ("$JS.API.CONSUMER.CREATE.RESPONSES.any.responses.>", &[]),
    ("$JS.API.CONSUMER.CREATE.RESPONSES.requestor", &[]),
    ("$JS.API.CONSUMER.DURABLE.CREATE.RESPONSES.requestor", &[]),
    // Pulling messages, and acking them, in both forms.
    ("$JS.API.CONSUMER.MSG.NEXT.REQUESTS.generator", &[GENERATOR]),
    ("$JS.API.CONSUMER.MSG.NEXT.RESPONSES.requestor", &[REQUESTOR]),
    ("$JS.API.CONSUMER.MSG.NEXT.ACKNOWLEDGMENTS.generator", &[GENERATOR]),
    ("$JS.API.CONSUMER.MSG.NEXT.SCHEDULES.requestor", &[REQUESTOR]),
    ("$JS.API.CONSUMER.MSG.NEXT.RESPONSES.any", &[]),
    ("$JS.ACK.REQUESTS.generator.1.1.1.1.0", &[GENERATOR]),
    ("$JS.ACK.RESPONSES.requestor.1.1.1.1.0", &[REQUESTOR]),
    ("$JS.ACK.ACKNOWLEDGMENTS.generator.1.1.1.1.0", &[GENERATOR]),
    ("$JS.ACK.SCHEDULES.requestor.1.1.1.1.0", &[REQUESTOR]),
    ("$JS.ACK._.account.REQUESTS.generator.1.1.1.1.0", &[GENERATOR]),
    ("$JS.ACK._.account.RESPONSES.requestor.1.1.1.1.0", &[REQUESTOR]),
    ("$JS.ACK._.account.ACKNOWLEDGMENTS.generator.1.1.1.1.0", &[GENERATOR]),
    ("$JS.ACK._.account.SCHEDULES.requestor.1.1.1.1.0", &[REQUESTOR]),
    // Pausing a queue.
    ("$JS.API.CONSUMER.PAUSE.REQUESTS.generator", PAUSERS),
    ("$JS.API.CONSUMER.PAUSE.RESPONSES.requestor", PAUSERS),
    ("$JS.API.CONSUMER.PAUSE.ACKNOWLEDGMENTS.generator", PAUSERS),
    ("$JS.API.CONSUMER.PAUSE.SCHEDULES.requestor", PAUSERS),
    ("$JS.API.CONSUMER.PAUSE.RESPONSES.any", &[]),
    // Removing messages.
    ("$JS.API.STREAM.MSG.DELETE.REQUESTS", &[DECLARER]),
    ("$JS.API.STREAM.MSG.DELETE.RESPONSES", &[DECLARER]),
    ("$JS.API.STREAM.MSG.DELETE.ACKNOWLEDGMENTS", &[DECLARER]),
    ("$JS.API.STREAM.MSG.DELETE.SCHEDULES", &[DECLARER]),
    ("$JS.API.STREAM.MSG.DELETE.DEAD_LETTERS", &[OPERATOR]),
    ("$JS.API.STREAM.MSG.DELETE.KV_idempotency", &[]),
    ("$JS.API.STREAM.MSG.DELETE.KV_requested", &[]),
    ("$JS.API.STREAM.MSG.DELETE.KV_stored", &[]),
    ("$JS.API.STREAM.MSG.DELETE.KV_received", &[]),
    ("$JS.API.STREAM.PURGE.REQUESTS", &[OPERATOR, GATEWAY]),
    ("$JS.API.STREAM.PURGE.RESPONSES", &[]),
    ("$JS.API.STREAM.PURGE.ACKNOWLEDGMENTS", &[]),
    ("$JS.API.STREAM.PURGE.SCHEDULES", &[OPERATOR, GATEWAY]),
    ("$JS.API.STREAM.PURGE.DEAD_LETTERS", &[]),
    ("$JS.API.STREAM.PURGE.KV_idempotency", &[]),
    ("$JS.API.STREAM.PURGE.KV_requested", &[]),
    ("$JS.API.STREAM.PURGE.KV_stored", &[]),
    ("$JS.API.STREAM.PURGE.KV_received", &[]),
    ("$JS.API.STREAM.PURGE.RATES", &[]),
    // Reading, creating, changing and removing streams and consumers.
    ("$JS.API.STREAM.INFO.REQUESTS", &USERS),
    ("$JS.API.STREAM.INFO.RESPONSES", &USERS),
    ("$JS.API.STREAM.INFO.ACKNOWLEDGMENTS", &USERS),
    ("$JS.API.STREAM.INFO.SCHEDULES", &USERS),
    ("$JS.API.STREAM.INFO.DEAD_LETTERS", &USERS),
    ("$JS.API.STREAM.INFO.KV_idempotency", &USERS),
    ("$JS.API.STREAM.INFO.KV_requested", &USERS),
    ("$JS.API.STREAM.INFO.KV_stored", &USERS),
    ("$JS.API.STREAM.INFO.KV_received", &USERS),
    ("$JS.API.STREAM.INFO.RATES", &[REQUESTOR, GENERATOR, DECLARER]),
    ("$JS.API.CONSUMER.INFO.REQUESTS.generator", &USERS),
    ("$JS.API.CONSUMER.INFO.RESPONSES.requestor", &USERS),
    ("$JS.API.CONSUMER.INFO.ACKNOWLEDGMENTS.generator", &USERS),
    ("$JS.API.CONSUMER.INFO.SCHEDULES.requestor", &USERS),
    ("$JS.API.STREAM.CREATE.REQUESTS", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.RESPONSES", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.ACKNOWLEDGMENTS", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.SCHEDULES", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.DEAD_LETTERS", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.KV_idempotency", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.KV_requested", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.KV_stored", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.KV_received", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.RATES", &[DECLARER]),
    ("$JS.API.STREAM.CREATE.OTHER", &[]),
    ("$JS.API.STREAM.UPDATE.REQUESTS", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.RESPONSES", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.ACKNOWLEDGMENTS", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.SCHEDULES", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.DEAD_LETTERS", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.KV_idempotency", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.KV_requested", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.KV_stored", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.KV_received", &[DECLARER]),
    ("$JS.API.STREAM.UPDATE.RATES", &[DECLARER]),
    ("$JS.API.STREAM.DELETE.REQUESTS", &[]),
    ("$JS.API.STREAM.DELETE.RESPONSES", &[]),
    ("$JS.API.STREAM.DELETE.ACKNOWLEDGMENTS", &[]),
    ("$JS.API.STREAM.DELETE.SCHEDULES", &[]),
    ("$JS.API.STREAM.DELETE.DEAD_LETTERS", &[]),
    ("$JS.API.STREAM.DELETE.KV_idempotency", &[]),
    ("$JS.API.STREAM.DELETE.KV_requested", &[]),
    ("$JS.API.STREAM.DELETE.KV_stored", &[]),
    ("$JS.API.STREAM.DELETE.KV_received", &[]),
    ("$JS.API.CONSUMER.CREATE.REQUESTS.generator", &[DECLARER]),
    ("$JS.API.CONSUMER.CREATE.REQUESTS.generator-low.requests.low.*", &[DECLARER]),
    ("$JS.API.CONSUMER.CREATE.RESPONSES.requestor.responses.*", &[DECLARER]),
    ("$JS.API.CONSUMER.CREATE.ACKNOWLEDGMENTS.generator.acknowledgments.*", &[DECLARER]),
    ("$JS.API.CONSUMER.CREATE.SCHEDULES.requestor.due.>", &[DECLARER]),
    ("$JS.API.CONSUMER.CREATE.SCHEDULES.requestor.schedules.>", &[]),
    ("$JS.API.CONSUMER.CREATE.RESPONSES.other.responses.*", &[]),
    ("$JS.API.CONSUMER.DELETE.REQUESTS.generator", &[]),
    ("$JS.API.CONSUMER.DELETE.RESPONSES.requestor", &[]),
    ("$JS.API.CONSUMER.DELETE.ACKNOWLEDGMENTS.generator", &[]),
    ("$JS.API.CONSUMER.DELETE.SCHEDULES.requestor", &[]),
    ("$JS.API.CONSUMER.RESET.RESPONSES.requestor", &[]),
    // Making a snapshot of a stream, and restoring it.
    ("$JS.API.STREAM.SNAPSHOT.REQUESTS", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.RESPONSES", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.ACKNOWLEDGMENTS", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.SCHEDULES", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.DEAD_LETTERS", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.KV_idempotency", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.KV_requested", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.KV_stored", &[BACKUP]),
    ("$JS.API.STREAM.SNAPSHOT.KV_received", &[BACKUP]),
    // Counters are no part of a backup.
    ("$JS.API.STREAM.SNAPSHOT.RATES", &[]),
    ("$JS.API.STREAM.SNAPSHOT.OTHER", &[]),
    ("$JS.SNAPSHOT.ACK.REQUESTS.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.RESPONSES.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.ACKNOWLEDGMENTS.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.SCHEDULES.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.DEAD_LETTERS.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.KV_idempotency.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.KV_requested.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.KV_stored.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.KV_received.id.131072.1", &[BACKUP]),
    ("$JS.SNAPSHOT.ACK.OTHER.id.131072.1", &[]),
    ("$JS.API.STREAM.RESTORE.REQUESTS", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.RESPONSES", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.ACKNOWLEDGMENTS", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.SCHEDULES", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.DEAD_LETTERS", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.KV_idempotency", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.KV_requested", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.KV_stored", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.KV_received", &[BACKUP]),
    ("$JS.API.STREAM.RESTORE.OTHER", &[]),
    // Moving the leadership of a stream.
    ("$JS.API.STREAM.LEADER.STEPDOWN.REQUESTS", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.RESPONSES", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.ACKNOWLEDGMENTS", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.SCHEDULES", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.DEAD_LETTERS", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.KV_idempotency", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.KV_requested", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.KV_stored", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.KV_received", &[BACKUP]),
    ("$JS.API.STREAM.LEADER.STEPDOWN.OTHER", &[]),
    ("$JS.SNAPSHOT.RESTORE.REQUESTS.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.RESPONSES.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.ACKNOWLEDGMENTS.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.SCHEDULES.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.DEAD_LETTERS.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.KV_idempotency.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.KV_requested.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.KV_stored.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.KV_received.id", &[BACKUP]),
    ("$JS.SNAPSHOT.RESTORE.OTHER.id", &[]),
    // Listings of everything, and changes of the cluster's leader.
    ("$JS.API.INFO", &[]),
    ("$JS.API.STREAM.LIST", &[]),
    ("$JS.API.STREAM.NAMES", &[]),
    ("$JS.API.CONSUMER.LIST.RESPONSES", &[]),
    ("$JS.API.CONSUMER.NAMES.RESPONSES", &[]),
    ("$JS.API.META.LEADER.STEPDOWN", &[]),
    ("$SYS.REQ.SERVER.PING", &[]),
];

/// Subjects, and the users that may subscribe to them.
const SUBSCRIPTIONS: &[(&str, &[&str])] = &[
    ("_INBOX_requestor.>", &[REQUESTOR]),
    ("_INBOX_generator.>", &[GENERATOR]),
    ("_INBOX_declarer.>", &[DECLARER]),
    ("_INBOX_auditor.>", &[AUDITOR]),
    ("_INBOX_operator.>", &[OPERATOR]),
    ("_INBOX_backup.>", &[BACKUP]),
    ("_INBOX_requestor.id", &[REQUESTOR]),
    ("_INBOX_gateway.>", &[GATEWAY]),
    // Facts and new dead letters, for the gateway's waiters.
    ("$KV.stored.*", &[GATEWAY]),
    ("$KV.stored.id", &[GATEWAY]),
    ("$KV.received.*", &[GATEWAY]),
    ("dead_letters.*.*", &[GATEWAY]),
    ("dead_letters.*.id", &[GATEWAY]),
    // Service discovery.
    ("$SRV.PING", SERVICES),
    ("$SRV.STATS.requestor", &[REQUESTOR]),
    ("$SRV.INFO.generator.id", &[GENERATOR]),
    ("$SRV.>", &[]),
    ("_INBOX.>", &[]),
    (">", &[]),
    ("*.>", &[]),
    ("*.id", &[]),
    ("requests.>", &[]),
    ("responses.*", &[]),
    ("acknowledgments.id", &[]),
    ("dead_letters.>", &[]),
    ("$KV.>", &[]),
    ("$KV.requested.id", &[]),
    ("$JS.>", &[]),
    ("$JS.ACK.>", &[]),
    ("$JS.API.>", &[]),
    ("$JS.EVENT.ADVISORY.>", &[]),
    ("$SYS.>", &[]),
];

/// A subject to which no user may publish. Once it is refused, the broker has checked all publishes before it.
const SENTINEL: &str = "sentinel";

/// A broker with the shipped configuration, with its users and no others.
pub struct Guarded {
    pub broker: Broker,
    directory: TempDir,
}

impl Guarded {
    async fn start() -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/nats/nats.conf");
        let base = std::fs::read_to_string(file).unwrap();
        let password = |user: &&str| {
            let name = format!("{}_PASSWORD", user.to_uppercase());
            let given = given_to_the_broker(&name, &password(user));
            (name, given)
        };
        let name = ("SERVER_NAME".to_owned(), "guarded".to_owned());
        let environment = USERS.iter().map(password).chain([name]).collect();
        let options = BrokerOptions { base, environment, ..BrokerOptions::default() };
        let broker = Broker::start(options).await.unwrap();
        Self { broker, directory: tempfile::tempdir().unwrap() }
    }

    /// Such a broker, with the topology declared by the declarer.
    pub async fn declared() -> Self {
        let guarded = Self::start().await;
        guarded.declare().await;
        guarded
    }

    async fn declare(&self) {
        let declarer = self.connect(DECLARER).await;
        declare(declarer.context(), &LIMITS).await.unwrap();
    }

    async fn connect(&self, user: &str) -> Connection {
        let settings = NatsSettings {
            nats_user: Some(user.to_owned()),
            nats_password: Some(password(user)),
            nats_inbox_prefix: inbox(user),
            ..NatsSettings::at(self.broker.url())
        };
        observe::connect(&settings, "test").await.unwrap()
    }

    /// Starts the gateway as its own user, and returns the address of its API and its page.
    pub async fn gateway(&self) -> (Process, SocketAddr) {
        let mut gateway = self.command(&programs().await.gateway, GATEWAY);
        gateway.env("GATEWAY_ADDR", "127.0.0.1:0").env("CONTROL", "on");
        gateway.env("CONTROL_USER", OPERATOR).env("CONTROL_PASSWORD", password(OPERATOR));
        let gateway = Process::spawn(gateway, self.log("gateway")).unwrap();
        let addr = api_addr(&gateway).await;
        logged(&gateway, api::ACCEPTS).await;
        (gateway, addr)
    }

    /// Starts `declare --watch` as the declarer, under [`LIMITS`], but with this limit of each queue.
    async fn declare_and_watch(&self, queue_limit: u64) -> Process {
        let mut decoupled = self.command(&programs().await.decoupled, DECLARER);
        decoupled.args(["declare", "--watch"]);
        decoupled.env("ACK_WAIT", "1s").env("QUEUE_LIMIT", queue_limit.to_string());
        Process::spawn(decoupled, self.log("declare")).unwrap()
    }

    /// The output of a command of `decoupled` that is run as this user.
    async fn decoupled(&self, user: &str, words: &[&str]) -> String {
        let mut decoupled = self.command(&programs().await.decoupled, user);
        let output = soon("it ends", decoupled.args(words).output()).await.unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self, program: &Path, user: &str) -> Command {
        let mut command = bound_to_this(program);
        command.env_clear().env("NATS_URL", self.broker.url()).env("LOG_FORMAT", "pretty");
        command.env("NATS_USER", user).env("NATS_PASSWORD", password(user));
        command.env("NATS_INBOX_PREFIX", inbox(user));
        command
    }

    /// Starts a replica of a service, as its own user.
    pub async fn run(&self, service: Service, name: &str, settings: &[(&str, &str)]) -> Process {
        let user = service.name();
        let (password, inbox) = (password(user), inbox(user));
        let as_user = [
            ("NATS_USER", user),
            ("NATS_PASSWORD", password.as_str()),
            ("NATS_INBOX_PREFIX", inbox.as_str()),
        ];
        let settings = [as_user.as_slice(), settings].concat();
        run(service, &self.broker.url(), self.log(name), &settings).await
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    /// The denials of the broker so far.
    pub fn refused(&self) -> Vec<String> {
        let log = self.broker.log_text();
        log.lines().filter(|line| line.contains("Violation")).map(str::to_owned).collect()
    }

    /// The verdict of the auditor, once nothing is pending any more.
    async fn verdict(&self) -> Verdict {
        audit(self.connect(AUDITOR).await.context(), LIMIT).await.unwrap()
    }

    /// All dead letters as the operator lists them, once there are this many.
    pub async fn dead_letters(&self, count: usize) -> Vec<DeadLetter> {
        let operator = self.connect(OPERATOR).await;
        eventually("the dead letters are there", async || {
            let letters = list(operator.context(), None).await.unwrap();
            if letters.len() == count { Ok(letters) } else { Err(letters) }
        })
        .await
    }
}

/// The password of this user. Without quotes, the broker's configuration would not parse it as a text.
fn password(user: &str) -> String {
    let text = match user {
        REQUESTOR => "12345",
        GENERATOR => "4k",
        DECLARER => "007",
        AUDITOR => "true",
        OPERATOR => "two words",
        BACKUP => "it's a,b;c",
        _ => r#"$HOME # "\"#,
    };
    text.to_owned()
}

/// A password as it is in the broker's environment: `k8s/nats/start` quotes it.
fn given_to_the_broker(name: &str, password: &str) -> String {
    let given = String::from_utf8(started(name, password).stdout).unwrap();
    given.strip_suffix('\n').expect("printenv ends its line").to_owned()
}

/// Runs `k8s/nats/start` with this password, and `printenv` in the place of the broker.
fn started(name: &str, password: &str) -> Output {
    let start = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/nats/start");
    let mut command = std::process::Command::new("sh");
    command.arg(start).args(["printenv", name]).env(name, password);
    command.output().unwrap()
}

fn inbox(user: &str) -> String {
    format!("_INBOX_{user}")
}

/// A client that tries subjects that may be forbidden.
struct Intruder {
    client: async_nats::Client,
    denials: mpsc::UnboundedReceiver<String>,
}

impl Intruder {
    async fn connect(broker: &Broker, user: &str) -> Self {
        let (heard, denials) = mpsc::unbounded_channel();
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password(user))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    let _ = heard.send(error.to_string());
                }
                std::future::ready(())
            });
        Self { client: options.connect(broker.url()).await.unwrap(), denials }
    }

    /// Whether the broker refuses the last try.
    async fn is_refused(&mut self, what: &str) -> bool {
        self.client.publish(SENTINEL, "".into()).await.unwrap();
        let mut refused = false;
        loop {
            let denial = soon("the sentinel is refused", self.denials.recv()).await.unwrap();
            assert!(denial.contains("Permissions Violation"), "{what}: {denial}");
            if denial.contains(&format!("\"{SENTINEL}\"")) {
                return refused;
            }
            assert!(denial.contains(&format!("\"{what}\"")), "{what}: {denial}");
            refused = true;
        }
    }
}

#[tokio::test]
async fn each_user_publishes_only_what_it_is_permitted_to() {
    let guarded = Guarded::declared().await;
    let mut wrong = Vec::new();
    for user in USERS {
        let mut intruder = Intruder::connect(&guarded.broker, user).await;
        for (subject, who) in PUBLISHES {
            intruder.client.publish(*subject, "".into()).await.unwrap();
            if intruder.is_refused(subject).await == who.contains(&user) {
                wrong.push((user, subject));
            }
        }
    }
    assert!(wrong.is_empty(), "allowed and should not be, or the other way round: {wrong:#?}");
}

#[tokio::test]
async fn each_user_subscribes_only_to_what_it_is_permitted_to() {
    let guarded = Guarded::declared().await;
    let mut wrong = Vec::new();
    for user in USERS {
        let mut intruder = Intruder::connect(&guarded.broker, user).await;
        for (subject, who) in SUBSCRIPTIONS {
            let subscription = intruder.client.subscribe(*subject).await.unwrap();
            let alone = intruder.is_refused(subject).await;
            drop(subscription);
            let group = intruder.client.queue_subscribe(*subject, "group".to_owned()).await;
            let in_group = intruder.is_refused(subject).await;
            drop(group.unwrap());
            if alone == who.contains(&user) || in_group == who.contains(&user) {
                wrong.push((user, subject));
            }
        }
    }
    assert!(wrong.is_empty(), "allowed and should not be, or the other way round: {wrong:#?}");
}

#[tokio::test]
async fn client_without_a_password_is_refused() {
    let guarded = Guarded::start().await;
    for options in [
        ConnectOptions::new(),
        ConnectOptions::with_user_and_password(REQUESTOR.to_owned(), password(GENERATOR)),
        ConnectOptions::with_user_and_password("somebody".to_owned(), String::new()),
    ] {
        let refused = options.connect(guarded.broker.url()).await.unwrap_err().to_string();
        assert!(refused.contains("authorization violation"), "{refused}");
    }
}

#[test]
fn password_that_the_broker_cannot_use_is_refused() {
    let too_long = "x".repeat(513);
    for (name, password, fault) in [
        ("GATEWAY_PASSWORD", "", "is empty"),
        ("GATEWAY_PASSWORD", "$2a$10$c2VjcmV0", "looks like a bcrypt hash"),
        ("GATEWAY_PASSWORD", "secret\n", "has a newline"),
        ("GATEWAY_PASSWORD", "secret\nOTHER_PASSWORD=b", "has a newline"),
        ("GATEWAY_PASSWORD", &too_long, "is longer than 512 bytes"),
        ("ROUTE_PASSWORD", "secret,b", "has to be letters and digits"),
        ("ROUTE_PASSWORD", "secret#b", "has to be letters and digits"),
        ("ROUTE_PASSWORD", "secret\"b", "has to be letters and digits"),
        ("ROUTE_PASSWORD", "secr\u{e9}t", "has to be letters and digits"),
    ] {
        let output = started(name, password);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name} {password:?}: {said}");
        assert!(said.starts_with(&format!("{name} {fault}")), "{name} {password:?}: {said}");
        assert!(!said.contains("secr"), "a password is logged: {said}");
        assert!(output.stdout.is_empty(), "{name} {password:?}: the broker would start");
    }
}

#[test]
fn password_of_any_other_text_is_accepted() {
    let longest = "x".repeat(512);
    for (name, password) in [
        ("GATEWAY_PASSWORD", longest.as_str()),
        ("GATEWAY_PASSWORD", "c2VjcmV0=="),
        ("GATEWAY_PASSWORD", "=$2a$10$c2VjcmV0"),
        ("ROUTE_PASSWORD", "Az09"),
    ] {
        assert_eq!(given_to_the_broker(name, password), format!("\"{password}\""));
    }
}

#[tokio::test]
async fn every_user_has_the_permissions_that_it_needs() {
    let guarded = Guarded::declared().await;
    // A second time with other limits: the first declaration creates, this one changes in place.
    let limits = Limits { queue_limit: 50_000, ..LIMITS };
    let declarer = guarded.connect(DECLARER).await;
    let changes = declare(declarer.context(), &limits).await.unwrap();
    assert_eq!(changes.len(), 4, "{changes:?}");

    // A failed request becomes a dead letter at once.
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let mut generator = guarded.run(Service::Generator, "clumsy", &clumsy).await;
    // The requestor ends by itself once its requests are dead letters.
    let total = [("REQUEST_TOTAL", "5"), ("REQUEST_RATE", "max")];
    let mut requestor = guarded.run(Service::Requestor, "unlucky", &total).await;
    guarded.dead_letters(5).await;
    ended(&mut requestor).await;
    generator.terminate().unwrap();
    succeeded(&mut generator).await;

    let limited = [("RATE_LIMIT", "1000")];
    let _generator = guarded.run(Service::Generator, "generator", &limited).await;
    let operator = guarded.connect(OPERATOR).await;
    assert_eq!(replay(&operator, &guarded.dead_letters(5).await).await.unwrap(), 0);
    let total = [("REQUEST_TOTAL", "200"), ("REQUEST_RATE", "max")];
    let mut requestor = guarded.run(Service::Requestor, "asking", &total).await;
    succeeded(&mut requestor).await;
    let requestor = guarded.run(Service::Requestor, "requestor", &limited).await;
    ready(&requestor).await;
    // A client submits a request through the gateway, twice under one key, and looks up each step.
    let (_gateway, api) = guarded.gateway().await;
    let id = api::accepted(&api::post(api, Some("key"), &json!({})).await);
    assert_eq!(api::accepted(&api::post(api, Some("key"), &json!({})).await), id);
    for path in [format!("/requests/{id}?wait=60s"), "/requests?limit=1000".to_owned()] {
        let answer = api::get(api, &path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // A delayed request, and a schedule.
    let later = api::accepted(&api::post(api, None, &json!({"delay": "100ms"})).await);
    let far = json!({"cron": "0 0 0 1 1 *", "time_zone": "Europe/Berlin"});
    assert_eq!(later::put(api, "yearly", &far).await.status, 201);
    for path in [format!("/requests/{later}?wait=60s"), "/schedules".to_owned()] {
        let answer = api::get(api, &path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(api::get(api, "/schedules/yearly").await.status, 200);
    assert_eq!(later::delete(api, "yearly").await.status, 204);
    let set = guarded.decoupled(OPERATOR, &["schedules", "set", "yearly", "--every", "24h"]).await;
    assert_eq!(set, "yearly is set: every 24h.\n");
    assert!(guarded.decoupled(OPERATOR, &["schedules", "list"]).await.contains("every 24h"));
    let removed = guarded.decoupled(OPERATOR, &["schedules", "remove", "yearly"]).await;
    assert_eq!(removed, "yearly is removed.\n");
    let listed = ["requests", "list", "--status=scheduled"];
    assert_eq!(guarded.decoupled(AUDITOR, &listed).await, "There are no such requests.\n");

    // Existing facts are looked up, from the nearest broker or from the leader.
    let request = request();
    let publish = async |user: &str, publication: Publication| {
        let Publication { subject, body, .. } = publication;
        let nats = guarded.connect(user).await;
        nats.context().publish_with_headers(subject, HeaderMap::new(), body).await.unwrap().await
    };
    publish(REQUESTOR, creation(&request)).await.unwrap();
    for value in ["first", "second"] {
        publish(GENERATOR, publication(&response(&request, value))).await.unwrap();
        publish(REQUESTOR, publication(&acknowledgment(&request, "first"))).await.unwrap();
    }
    // A person submits a request and looks it up, through the broker alone.
    let submitted = guarded.decoupled(REQUESTOR, &["requests", "submit", "--wait=0s"]).await;
    let shown = guarded.decoupled(AUDITOR, &["requests", "show", submitted.trim()]).await;
    assert!(shown.starts_with(submitted.trim()), "{shown}");
    let listed = guarded.decoupled(AUDITOR, &["requests", "list", "--limit=300"]).await;
    assert!(listed.contains(submitted.trim()), "{listed}");
    guarded.decoupled(OPERATOR, &["queues", "pause", "RESPONSES", "--for=1m"]).await;
    guarded.decoupled(OPERATOR, &["queues", "resume", "RESPONSES"]).await;
    // The operator cancels a scheduled request, and another one by its dead letter.
    let scheduled = api::accepted(&api::post(api, None, &json!({"delay": "1h"})).await).to_string();
    let shown = guarded.decoupled(OPERATOR, &["requests", "cancel", &scheduled]).await;
    assert!(shown.contains("cancelled"), "{shown}");
    let expired = ["requests", "submit", "--expires-at=2020-01-01T00:00:00Z"];
    guarded.decoupled(REQUESTOR, &expired).await;
    guarded.dead_letters(1).await;
    let discarded = guarded.decoupled(OPERATOR, &["dead-letters", "discard", "--all"]).await;
    assert_eq!(discarded, "Discarded 1 of 1.\n");

    let verdict = guarded.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(
        (verdict.complete, verdict.cancelled, verdict.pending, verdict.dead_lettered),
        (211, 2, 0, 0),
        "{verdict}"
    );

    assert_eq!(guarded.refused(), [""; 0]);

    // Messages that no client can read are found, dead-lettered and removed by the declarer.
    let _watching = guarded.declare_and_watch(limits.queue_limit).await;
    for (count, (user, queue)) in
        (1..).zip([(REQUESTOR, REQUESTS), (GENERATOR, RESPONSES), (REQUESTOR, ACKNOWLEDGMENTS)])
    {
        publish_unreadable(guarded.broker.port(), user, &queue.subject_of("colon")).await;
        guarded.dead_letters(count).await;
    }
    for letter in guarded.dead_letters(3).await {
        assert!(letter.reason.starts_with("malformed: the client library cannot read it"));
    }
    assert!(guarded.verdict().await.is_clean());
    // They break connections, and the broker refuses an answer for an earlier connection.
    let refused = guarded.refused();
    let refused: Vec<_> = refused.iter().filter(|line| !line.contains("_INBOX_gateway")).collect();
    assert_eq!(refused, [""; 0]);
}

#[tokio::test]
async fn failed_and_redelivered_bundles_need_no_other_permission() {
    let guarded = Guarded::declared().await;
    let bundles = ("BUNDLE_LIMIT", "8");
    let slow = [bundles, ("WORK_TIME", "1h"), ("CONCURRENCY", "64")];
    let mut generator = guarded.run(Service::Generator, "killed", &slow).await;
    let asking = [bundles, ("REQUEST_TOTAL", "500"), ("REQUEST_RATE", "max")];
    let mut requestor = guarded.run(Service::Requestor, "asking", &asking).await;
    let auditor = guarded.connect(AUDITOR).await;
    eventually("several bundles are in flight", async || {
        let state = topology::queue_state(auditor.context(), REQUESTS).await.unwrap();
        let in_flight = state.in_flight();
        if in_flight > 3 { Ok(()) } else { Err(in_flight) }
    })
    .await;
    generator.kill().await.unwrap();
    let failing = [bundles, ("FAILURE_RATE", "0.3"), ("MAX_ATTEMPTS", "100")];
    let _generator = guarded.run(Service::Generator, "generator", &failing).await;
    succeeded(&mut requestor).await;
    let _requestor = guarded.run(Service::Requestor, "requestor", &[]).await;
    let verdict = guarded.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.complete, verdict.pending), (500, 0), "{verdict}");
    assert_eq!(guarded.refused(), [""; 0]);
}

#[tokio::test]
async fn limited_service_waits_for_counters_of_a_restarted_broker() {
    let mut guarded = Guarded::declared().await;
    let limited = [("RATE_LIMIT", "1000")];
    let generator = guarded.run(Service::Generator, "generator", &limited).await;
    let total = [("REQUEST_TOTAL", "50"), ("REQUEST_RATE", "max")];
    succeeded(&mut guarded.run(Service::Requestor, "before", &total).await).await;
    // The counters were in memory, and no service may create their stream.
    guarded.broker.kill().await.unwrap();
    guarded.broker.restart().await.unwrap();
    let mut after = guarded.run(Service::Requestor, "after", &total).await;
    logged(&generator, "this stream is missing and this user may not create it").await;
    let _declaring = guarded.declare_and_watch(LIMITS.queue_limit).await;
    succeeded(&mut after).await;
    let verdict = guarded.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (100, 100), "{verdict}");
}

/// Publishes headers that no client can read, and waits until the broker has stored them.
async fn publish_unreadable(port: u16, user: &str, subject: &str) {
    let headers = b"NATS/1.0\r\nnothing\r\n\r\n";
    let message = Raw { subject: subject.as_bytes(), headers, body: b"" };
    publish_raw(port, Some((user, &password(user))), &inbox(user), message).await;
}

#[tokio::test]
async fn backup_user_restores_everything_on_an_empty_broker() {
    let guarded = Guarded::declared().await;
    let mut generator = guarded.run(Service::Generator, "generator", &[]).await;
    let total = [("REQUEST_TOTAL", "100"), ("REQUEST_RATE", "max")];
    let mut requestor = guarded.run(Service::Requestor, "requestor", &total).await;
    succeeded(&mut requestor).await;
    // Larger than one part of a snapshot, so that a part has to be acked.
    let body: Vec<u8> = (0..200_000).map(|_| rand::random()).collect();
    let garbage = REQUESTS.subject_of("garbage");
    let client = guarded.connect(REQUESTOR).await;
    client.context().publish(garbage, body.into()).await.unwrap().await.unwrap();
    guarded.dead_letters(1).await;
    assert_eq!(guarded.verdict().await.complete, 100);
    generator.terminate().unwrap();
    succeeded(&mut generator).await;

    let backup = guarded.directory.path().join("backup");
    cli::backup::backup(&guarded.connect(BACKUP).await, &backup).await.unwrap();
    assert_eq!(guarded.refused(), [""; 0]);

    let other = Guarded::start().await;
    cli::backup::restore(&other.connect(BACKUP).await, &backup, None).await.unwrap();
    let verdict = other.verdict().await;
    assert_eq!((verdict.requested, verdict.complete), (100, 100), "{verdict}");
    assert!(verdict.is_clean(), "{verdict}");
    // The restored streams are as declared. The counters of rates are no part of a backup.
    let declarer = other.connect(DECLARER).await;
    assert_eq!(declare(declarer.context(), &LIMITS).await.unwrap(), ["created stream RATES"]);
    assert_eq!(other.refused(), [""; 0]);
}

#[tokio::test]
async fn service_that_may_not_declare_waits_for_the_declaration() {
    let mut guarded = Guarded::start().await;
    let generator = guarded.run(Service::Generator, "generator", &[]).await;
    let rate = [("REQUEST_RATE", "100")];
    let requestor = guarded.run(Service::Requestor, "requestor", &rate).await;
    for service in [&generator, &requestor] {
        logged(service, "decoupled declare").await;
    }
    guarded.declare().await;
    for service in [&generator, &requestor] {
        ready(service).await;
    }
    // Again while the watch runs: the broker has lost its store.
    guarded.broker.kill().await.unwrap();
    guarded.broker.wipe().unwrap();
    guarded.broker.restart().await.unwrap();
    let refused = guarded.refused().len();
    eventually("it looks for what is gone", async || match guarded.refused().len() {
        more if more > refused => Ok(()),
        same => Err(same),
    })
    .await;
    guarded.declare().await;
    let auditor = guarded.connect(AUDITOR).await;
    eventually("work goes on", async || {
        let received = topology::bucket_state(auditor.context(), facts::RECEIVED).await;
        let received = received.unwrap().state.messages;
        if received > 0 { Ok(()) } else { Err(received) }
    })
    .await;
}
