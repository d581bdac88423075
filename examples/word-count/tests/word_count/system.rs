//! The programs with a broker of their own.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::http::{HttpResponse, ask};
use testkit::process::{Process, bound_to_this};

/// The front, and a broker. The tests start the workers.
pub struct System {
    _front: Process,
    addr: SocketAddr,
    pub broker: Broker,
    directory: TempDir,
}

impl System {
    pub async fn start() -> Self {
        let broker = Broker::start(BrokerOptions::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", directory.path().join("results.db").display());
        let settings = [("LISTEN_ADDR", "127.0.0.1:0"), ("DATABASE_URL", &database)];
        let front = env!("CARGO_BIN_EXE_word-count");
        let front = spawn(front, "front", &broker, &directory, &settings);
        let addr = eventually("the front listens", async || {
            front.logged_addr("word-count listens addr=").ok_or_else(|| front.log_text())
        })
        .await;
        Self { _front: front, addr, broker, directory }
    }

    /// Starts a worker of this name.
    pub fn worker(&self, name: &str, settings: &[(&str, &str)]) -> Process {
        let settings = [&[("ALLOW_PRIVATE", "true"), ("HOST_RATE", "1000")], settings].concat();
        spawn(env!("CARGO_BIN_EXE_word-counter"), name, &self.broker, &self.directory, &settings)
    }

    pub async fn ask(&self, method: &str, path: &str, body: &Value) -> HttpResponse {
        let headers = [("Content-Type", "application/json")];
        ask(self.addr, method, path, &headers, &body.to_string()).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, &Value::Null).await.json()
    }

    /// Submits a page to be counted, and returns the address of its count.
    pub async fn count(&self, url: &str) -> String {
        let accepted = self.ask("POST", "/word-counts", &json!({ "url": url })).await;
        assert_eq!(accepted.status, 202, "{accepted:?}");
        format!("/{}", accepted.header("location").unwrap())
    }

    /// The job, once it has this state.
    pub async fn becomes(&self, state: &str, location: &str) -> Value {
        eventually(&format!("{location} is {state}"), async || {
            let job = self.get(location).await;
            if job["state"] == state { Ok(job) } else { Err(job) }
        })
        .await
    }
}

fn spawn(
    program: &str,
    name: &str,
    broker: &Broker,
    directory: &TempDir,
    settings: &[(&str, &str)],
) -> Process {
    let mut command = bound_to_this(program);
    command
        .env_clear()
        .env("NATS_URL", broker.url())
        .env("INSTANCE", name)
        .env("LOG_FORMAT", "pretty");
    // The broker redelivers a job of a killed worker soon.
    command.env("NO_COLOR", "1").env("ACK_WAIT", "2s").envs(settings.iter().copied());
    Process::spawn(command, directory.path().join(name)).unwrap()
}
