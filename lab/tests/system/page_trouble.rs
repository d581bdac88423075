//! The reason on the page while the broker cannot be read.

use std::net::SocketAddr;

use serde_json::Value;
use testkit::broker::{Broker, BrokerOptions};
use testkit::process::Process;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;

use crate::deployment::{Deployment, Service, admin, api_addr, gateway, ready, soon};
use crate::startup::with_password;

/// The number of snapshots that are read after the broker has gone: more than a replica is remembered for.
const SILENT: usize = 4;

/// The snapshots of a page.
struct Snapshots(Lines<BufReader<TcpStream>>);

impl Snapshots {
    async fn of(gateway: SocketAddr) -> Self {
        let mut events = TcpStream::connect(gateway).await.unwrap();
        events.write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        Self(BufReader::new(events).lines())
    }

    /// The next snapshot that matches.
    async fn find(&mut self, like: fn(&Value) -> bool) -> Value {
        loop {
            let snapshot = self.next().await;
            if like(&snapshot) {
                return snapshot;
            }
        }
    }

    async fn next(&mut self) -> Value {
        let mut is_snapshot = false;
        loop {
            let line = soon("an event", self.0.next_line()).await.unwrap().expect("it goes on");
            if let (true, Some(data)) = (is_snapshot, line.strip_prefix("data: ")) {
                return serde_json::from_str(data).unwrap();
            }
            is_snapshot = line == "event: snapshot";
        }
    }
}

#[tokio::test]
async fn killed_broker_is_silent_from_the_first_snapshot_on() {
    let mut deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    let gateway = deployment.gateway("gateway", &[]).await;
    let mut snapshots = Snapshots::of(api_addr(&gateway).await).await;
    snapshots.find(|snapshot| snapshot["flow"]["generators"] == 1).await;
    deployment.broker.kill().await.unwrap();
    let mut kinds = Vec::new();
    while kinds.len() < SILENT {
        let trouble = &snapshots.next().await["trouble"];
        if !trouble.is_null() {
            kinds.push(trouble["kind"].clone());
        }
    }
    assert_eq!(kinds, ["silent"; SILENT]);
}

#[tokio::test]
async fn broker_that_refuses_the_gateway_is_not_shown_as_absent() {
    let directory = tempfile::tempdir().unwrap();
    let settings = [("NATS_USER", "somebody"), ("NATS_PASSWORD", "right")];
    let refuses = async |gateway: &Process| {
        let mut snapshots = Snapshots::of(api_addr(gateway).await).await;
        let refused = snapshots.find(|snapshot| snapshot["trouble"]["kind"] == "refused").await;
        let words = refused["trouble"]["words"].as_str().unwrap();
        assert!(words.contains("refuses the credentials of the gateway"), "{words}");
        assert!(!words.contains("somebody"), "{words}");
    };
    let mut strict = with_password("other", None).await;
    let url = strict.url();
    let gateway = gateway(&url, directory.path().join("log"), &settings).await;
    refuses(&gateway).await;
    let (status, why) = admin(&gateway, "/readyz").await;
    assert!(status == 503 && why.contains("refuses the credentials"), "{why}");
    strict.kill().await.unwrap();
    let mut broker = with_password("right", Some(&strict)).await;
    ready(&gateway).await;
    broker.kill().await.unwrap();
    let _strict = with_password("other", Some(&broker)).await;
    refuses(&gateway).await;
}

#[tokio::test]
async fn missing_permission_is_named_on_the_page() {
    const SUBJECT: &str = "$JS.API.STREAM.INFO.KV_stored";
    let users = format!(
        "authorization {{ users = [
            {{ user: any, password: any }}
            {{ user: blind, password: blind, permissions {{ publish {{ deny: \"{SUBJECT}\" }} }} }}
        ] }}
        no_auth_user: any"
    );
    let options = BrokerOptions { base: users, ..BrokerOptions::default() };
    let deployment = Deployment::at(Broker::start(options).await.unwrap()).await;
    assert_eq!(deployment.decoupled(["declare"]).await.0, Some(0));
    let blind = [("NATS_USER", "blind"), ("NATS_PASSWORD", "blind")];
    let gateway = deployment.gateway("gateway", &blind).await;
    let mut snapshots = Snapshots::of(api_addr(&gateway).await).await;
    let denied = snapshots.find(|snapshot| snapshot["trouble"]["kind"] == "denied").await;
    let words = denied["trouble"]["words"].as_str().unwrap();
    assert!(words.contains(&format!("Publish to \"{SUBJECT}\"")), "{words}");
}
