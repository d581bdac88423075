//! The proxy, between real clients and a real broker.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, RequestErrorKind, Subscriber};
use futures_util::StreamExt;
use testkit::broker::{Broker, BrokerOptions};
use testkit::eventually::eventually;
use testkit::proxy::Proxy;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

struct Setting {
    broker: Broker,
    proxy: Proxy,
    /// A client that is connected to the broker directly, and gets all messages.
    direct: Client,
    heard: Subscriber,
}

impl Setting {
    async fn new() -> Self {
        let broker = Broker::start(BrokerOptions::default()).await.unwrap();
        let proxy = Proxy::start(broker.port()).await.unwrap();
        let direct = async_nats::connect(broker.url()).await.unwrap();
        let heard = direct.subscribe("*.*").await.unwrap();
        is_done(&direct).await;
        Self { broker, proxy, direct, heard }
    }

    async fn client(&self) -> Client {
        async_nats::connect(self.proxy.url()).await.unwrap()
    }

    /// The subjects of the messages that the broker has got so far, up to a sentinel.
    async fn heard(&mut self) -> Vec<String> {
        say(&self.direct, "the.sentinel").await;
        let mut subjects = Vec::new();
        loop {
            match self.heard.next().await.unwrap().subject.to_string() {
                sentinel if sentinel == "the.sentinel" => return subjects,
                subject => subjects.push(subject),
            }
        }
    }
}

/// Publishes, without a flush.
async fn say(client: &Client, subject: &str) {
    client.publish(subject.to_owned(), "text".into()).await.unwrap();
}

/// Waits until the broker has handled all that the client has sent, by its answer to another question. A flush does not
/// wait for an answer.
async fn is_done(client: &Client) {
    let answer = client.request("nobody", "".into()).await;
    assert_eq!(answer.unwrap_err().kind(), RequestErrorKind::NoResponders);
}

async fn is(client: &Client, wanted: State) {
    eventually("the client is connected or not, as expected", async || {
        let state = client.connection_state();
        if state == wanted { Ok(()) } else { Err(state) }
    })
    .await;
}

async fn has_connections(proxy: &Proxy, wanted: usize) {
    eventually("the proxy has as many connections as expected", async || {
        let connections = proxy.connections();
        if connections == wanted { Ok(()) } else { Err(connections) }
    })
    .await;
}

#[tokio::test]
async fn held_publish_reaches_the_broker_once_it_is_released() {
    let mut setting = Setting::new().await;
    let (client, other) = (setting.client().await, setting.client().await);

    setting.proxy.hold("held.");
    for subject in ["free.1", "held.1", "free.2", "held.2"] {
        say(&client, subject).await;
    }
    assert_eq!(setting.proxy.held().await, "held.1");
    say(&other, "free.3").await;
    is_done(&other).await;
    // There is no order between two connections.
    let mut heard = Vec::new();
    eventually("all that is free arrives, and nothing else", async || {
        heard.extend(setting.heard().await);
        heard.sort();
        if heard == ["free.1", "free.3"] { Ok(()) } else { Err(heard.clone()) }
    })
    .await;

    setting.proxy.release();
    is_done(&client).await;
    assert_eq!(setting.heard().await, ["held.1", "free.2", "held.2"]);
}

#[tokio::test]
async fn held_publish_does_not_hold_what_the_broker_sends() {
    let setting = Setting::new().await;
    let client = setting.client().await;
    let mut inbox = client.subscribe("inbox").await.unwrap();
    is_done(&client).await;
    setting.proxy.hold("held.");
    say(&client, "held.1").await;
    setting.proxy.held().await;
    say(&setting.direct, "inbox").await;
    assert_eq!(inbox.next().await.unwrap().payload, "text");
}

#[tokio::test]
async fn each_hold_returns_its_own_first_publish() {
    let setting = Setting::new().await;
    let client = setting.client().await;
    setting.proxy.hold("first.");
    say(&client, "first.1").await;
    assert_eq!(setting.proxy.held().await, "first.1");
    setting.proxy.hold("second.");
    say(&client, "second.1").await;
    assert_eq!(setting.proxy.held().await, "second.1");
}

#[tokio::test]
async fn held_publish_of_a_client_that_is_gone_never_arrives() {
    let mut setting = Setting::new().await;
    let address = setting.proxy.url().replace("nats://", "");
    let mut client = TcpStream::connect(address).await.unwrap();
    setting.proxy.hold("held.");
    let sent = b"CONNECT {\"verbose\":false}\r\nPUB free.1 2\r\nok\r\nPUB held.1 2\r\nok\r\n";
    client.write_all(sent).await.unwrap();
    assert_eq!(setting.proxy.held().await, "held.1");
    has_connections(&setting.proxy, 1).await;

    drop(client);
    has_connections(&setting.proxy, 0).await;
    setting.proxy.release();
    assert_eq!(setting.heard().await, ["free.1"]);
}

#[tokio::test]
async fn last_bytes_of_a_client_arrive() {
    let mut setting = Setting::new().await;
    let address = setting.proxy.url().replace("nats://", "");
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"CONNECT {\"verbose\":true}\r\n").await.unwrap();
    client.write_all(&b"PUB free.1 2\r\nok\r\n".repeat(10_000)).await.unwrap();
    client.shutdown().await.unwrap();
    let mut arrived = 0;
    eventually("all that the client has sent arrives", async || {
        arrived += setting.heard().await.len();
        if arrived == 10_000 { Ok(()) } else { Err(arrived) }
    })
    .await;
    has_connections(&setting.proxy, 0).await;
}

#[tokio::test]
async fn client_reconnects_when_the_cut_is_mended() {
    let mut setting = Setting::new().await;
    let client = setting.client().await;
    setting.proxy.cut();
    is(&client, State::Disconnected).await;
    assert!(async_nats::connect(setting.proxy.url()).await.is_err());
    assert_eq!(setting.proxy.connections(), 0);
    setting.proxy.mend();
    is(&client, State::Connected).await;
    assert_eq!(setting.proxy.connections(), 1);
    say(&client, "free.1").await;
    is_done(&client).await;
    assert_eq!(setting.heard().await, ["free.1"]);
}

#[tokio::test]
async fn cut_that_is_mended_at_once_still_ends_connections() {
    let setting = Setting::new().await;
    let client = TcpStream::connect(setting.proxy.url().replace("nats://", "")).await.unwrap();
    has_connections(&setting.proxy, 1).await;
    setting.proxy.cut();
    setting.proxy.mend();
    has_connections(&setting.proxy, 0).await;
    drop(client);
    is(&setting.client().await, State::Connected).await;
}

#[tokio::test]
async fn reset_ends_the_connections_and_accepts_new_ones() {
    let mut setting = Setting::new().await;
    let raw = TcpStream::connect(setting.proxy.url().replace("nats://", "")).await.unwrap();
    let client = setting.client().await;
    has_connections(&setting.proxy, 2).await;
    setting.proxy.reset();
    // The client reconnects by itself. The other connection is no NATS client.
    eventually("only the client is connected", async || {
        match (setting.proxy.connections(), client.statistics().connects.load(Ordering::Relaxed)) {
            (1, 2) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    drop(raw);
    say(&client, "free.1").await;
    is_done(&client).await;
    assert_eq!(setting.heard().await, ["free.1"]);
}

#[tokio::test]
async fn slow_link_delays_everything_and_loses_nothing() {
    const DELAY: Duration = Duration::from_millis(50);
    let mut setting = Setting::new().await;
    let client = setting.client().await;
    setting.proxy.slow(DELAY);
    let asked = Instant::now();
    is_done(&client).await;
    // The delay applies in both directions. It may take longer, but never less.
    assert!(asked.elapsed() >= 2 * DELAY, "{:?}", asked.elapsed());
    let subjects: Vec<String> = (0..100).map(|number| format!("free.{number}")).collect();
    for subject in &subjects {
        say(&client, subject).await;
    }
    is_done(&client).await;
    assert_eq!(setting.heard().await, subjects);
}

#[tokio::test]
async fn nothing_passes_a_hanging_connection_until_it_is_mended() {
    let mut setting = Setting::new().await;
    let client = setting.client().await;
    let mut inbox = client.subscribe("inbox").await.unwrap();
    is_done(&client).await;

    setting.proxy.hang();
    say(&client, "free.1").await;
    say(&setting.direct, "inbox").await;
    assert!(setting.heard().await.is_empty());
    assert_eq!(client.connection_state(), State::Connected);
    assert_eq!(setting.proxy.connections(), 1);

    setting.proxy.mend();
    is_done(&client).await;
    assert_eq!(setting.heard().await, ["free.1"]);
    assert_eq!(inbox.next().await.unwrap().payload, "text");
}

#[tokio::test]
async fn clients_reconnect_when_the_broker_behind_the_proxy_restarts() {
    let mut setting = Setting::new().await;
    let client = setting.client().await;
    setting.broker.kill().await.unwrap();
    is(&client, State::Disconnected).await;
    setting.broker.restart().await.unwrap();
    is(&client, State::Connected).await;
    is(&setting.direct, State::Connected).await;
}
