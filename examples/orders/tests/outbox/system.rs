//! A broker, a database, and the programs of a test.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orders::audit::{Fate, Verdict, audit};
use orders::database::Database;
use orders::{OrderEvent, orders as service, payments};
use serde_json::json;
use tempfile::TempDir;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::http::{HttpResponse, ask};
use testkit::process::{Process, bound_to_this};
use testkit::proxy::Proxy;
use tokio::process::Command;
use tokio::time::timeout;
use workqueue::batch::{self, StoredMessage};
use workqueue::{Connection, Job, JobId, NatsSettings, Settings, topology};

use crate::postgres::Postgres;

/// A time limit that only a bug reaches, even on a slow machine.
pub const LIMIT: Duration = Duration::from_mins(5);

/// The kind of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file for each service.
    Sqlite,
    /// One database for both.
    Postgres,
}

/// The databases of the tests.
pub fn kinds() -> impl Iterator<Item = Kind> {
    let all = [Kind::Sqlite, Kind::Postgres];
    all.into_iter().filter(|kind| *kind == Kind::Sqlite || cfg!(feature = "postgres"))
}

pub struct System {
    pub broker: Broker,
    pub postgres: Option<Postgres>,
    directory: TempDir,
    orders_url: String,
    payments_url: String,
    started: AtomicUsize,
}

impl System {
    pub async fn start(kind: Kind) -> Self {
        let broker = Broker::start(BrokerOptions::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let postgres = match kind {
            Kind::Sqlite => None,
            Kind::Postgres => Some(Postgres::start().await),
        };
        let url = |name| match &postgres {
            None => format!("sqlite:{}/{name}.db", directory.path().display()),
            Some(postgres) => postgres.url(),
        };
        let (orders_url, payments_url) = (url("orders"), url("payments"));
        Self { broker, postgres, directory, orders_url, payments_url, started: AtomicUsize::new(0) }
    }

    /// Starts one of the programs with this address of the broker.
    pub fn run_at(&self, nats_url: &str, program: &str, settings: &[(&str, &str)]) -> Process {
        let mut command = self.command(nats_url, program);
        command.envs(settings.iter().copied());
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.directory.path().join(format!("{program}-{number}.log"));
        Process::spawn(command, log).unwrap()
    }

    pub fn run(&self, program: &str) -> Process {
        self.run_at(&self.broker.url(), program, &[])
    }

    /// One of the programs, with its settings.
    pub fn command(&self, nats_url: &str, program: &str) -> Command {
        let mut command = bound_to_this(match program {
            "orders" => env!("CARGO_BIN_EXE_orders"),
            "orders-relay" => env!("CARGO_BIN_EXE_orders-relay"),
            "payments" => env!("CARGO_BIN_EXE_payments"),
            "orders-audit" => env!("CARGO_BIN_EXE_orders-audit"),
            _ => panic!("there is no {program}"),
        });
        let is_payments = program == "payments";
        command.env_clear().env("NATS_URL", nats_url).env("LOG_FORMAT", "pretty");
        command
            .env("DATABASE_URL", if is_payments { &self.payments_url } else { &self.orders_url });
        command.env("PAYMENTS_DATABASE_URL", &self.payments_url);
        command.env("LISTEN_ADDR", "127.0.0.1:0").env("ACK_WAIT", "1s");
        command.env("POLL_INTERVAL", "20ms");
        command
    }

    /// Waits until this many orders are complete, and there are no others.
    pub async fn complete(&self, orders: usize) {
        eventually(&format!("{orders} orders are complete"), async || {
            let verdict = self.verdict().await;
            let complete = verdict.0.get(&Fate::Complete).map_or(0, BTreeSet::len);
            let is_all = verdict.0.keys().all(|fate| *fate == Fate::Complete);
            if is_all && complete == orders { Ok(()) } else { Err(verdict) }
        })
        .await;
    }

    pub async fn verdict(&self) -> Verdict {
        let orders = Database::connect(&self.orders_url, service::TABLES).await.unwrap();
        let payments = Database::connect(&self.payments_url, payments::TABLES).await.unwrap();
        audit(&orders, &payments, &self.settings()).await.unwrap()
    }

    fn settings(&self) -> Settings {
        Settings { nats: NatsSettings::at(self.broker.url()), ..Settings::from_env() }
    }

    /// Kills a process once the broker has its first event. The process does not have the confirmation, because it was
    /// paused when the proxy withheld the event.
    pub async fn kill_after(&self, proxy: &Proxy, process: &mut Process) {
        held(proxy).await;
        process.pause().unwrap();
        proxy.release();
        self.events(1).await;
        process.kill().await.unwrap();
    }

    /// The events in the queue, in its order, once there are this many.
    pub async fn events(&self, count: usize) -> Vec<OrderEvent> {
        let nats = self.connect().await;
        let awaited = format!("{count} events in the queue");
        let events = eventually(&awaited, async || {
            let (stream, subjects) = (OrderEvent::QUEUE.stream, "order-events.>");
            match batch::from_sequence(nats.context(), stream, subjects, 1, 1000).await {
                Ok((events, 0)) if events.len() == count => Ok(events),
                other => Err(other),
            }
        });
        let event = |event: StoredMessage| serde_json::from_slice(&event.body).unwrap();
        events.await.into_iter().map(event).collect()
    }

    /// The number of events that the queue has ever had.
    pub async fn events_so_far(&self) -> u64 {
        let nats = self.connect().await;
        let stream = topology::stream_state(nats.context(), OrderEvent::QUEUE.stream).await;
        stream.unwrap().state.last_sequence
    }

    pub async fn connect(&self) -> Connection {
        Connection::establish(&self.settings().nats, "test", |_connected| {}).await.unwrap()
    }
}

/// The address of the order service.
pub async fn http(orders: &Process) -> SocketAddr {
    eventually("HTTP listens", async || {
        orders.logged_addr("HTTP listens addr=").ok_or_else(|| orders.log_text())
    })
    .await
}

/// Waits until a program is ready.
pub async fn ready(process: &Process) {
    eventually("it is ready", async || {
        if process.is_ready().await { Ok(()) } else { Err(process.log_text()) }
    })
    .await;
}

/// Sends a new order with this id.
pub async fn post(http: SocketAddr, id: JobId) -> anyhow::Result<HttpResponse> {
    let body = json!({ "id": id, "item": "a book", "amount": 1200 }).to_string();
    ask(http, "POST", "/orders", &[("Content-Type", "application/json")], &body).await
}

/// Places an order.
pub async fn place(http: SocketAddr) -> JobId {
    let id = JobId::new();
    let answer = post(http, id).await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    id
}

/// Cancels an order.
pub async fn cancel(http: SocketAddr, id: JobId) {
    let answer = ask(http, "DELETE", &format!("/orders/{id}"), &[], "").await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// Kills a process when the proxy withholds its publish.
pub async fn kill_before(proxy: &Proxy, process: &mut Process) {
    held(proxy).await;
    process.kill().await.unwrap();
    proxy.release();
}

/// Waits until the proxy withholds a publish.
pub async fn held(proxy: &Proxy) {
    timeout(LIMIT, proxy.held()).await.expect("the process publishes");
}
