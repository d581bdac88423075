//! The broker of the lab, as a real process.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use lab::broker::{Broker, BrokerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

async fn jetstream_of(broker: &Broker) -> jetstream::Context {
    jetstream::new(async_nats::connect(broker.url()).await.unwrap())
}

/// How many messages a stream has, once as many as given are published to it.
async fn messages(jetstream: &jetstream::Context, published: usize) -> u64 {
    let config = stream::Config {
        name: "KEPT".to_owned(),
        subjects: vec!["kept.>".to_owned()],
        storage: stream::StorageType::File,
        ..Default::default()
    };
    let stream = jetstream.get_or_create_stream(config).await.unwrap();
    for number in 0..published {
        let subject = format!("kept.{number}");
        jetstream.publish(subject, "text".into()).await.unwrap().await.unwrap();
    }
    stream.get_info().await.unwrap().state.messages
}

#[tokio::test]
async fn a_broker_that_has_started_answers() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let account = jetstream_of(&broker).await.query_account().await.unwrap();
    assert_eq!(account.streams, 0);

    let address = broker.monitor_url().replace("http://", "");
    let mut monitor = TcpStream::connect(address).await.unwrap();
    monitor.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    monitor.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("{\"status\":\"ok\"}"), "{answer}");
}

#[tokio::test]
async fn what_is_confirmed_survives_a_kill_and_a_stop_on_the_same_port() {
    for sync_always in [false, true] {
        let options = BrokerOptions { sync_always, ..Default::default() };
        let mut broker = Broker::start(options).await.unwrap();
        let (url, monitor_url) = (broker.url(), broker.monitor_url());
        assert_eq!(messages(&jetstream_of(&broker).await, 50).await, 50);

        broker.kill().await.unwrap();
        assert!(async_nats::connect(&url).await.is_err(), "nobody listens on the port");
        assert_eq!(broker.id(), None);
        broker.restart().await.unwrap();
        assert_eq!(messages(&jetstream_of(&broker).await, 5).await, 55);

        assert!(broker.stop().await.unwrap().success());
        broker.restart().await.unwrap();
        assert_eq!(messages(&jetstream_of(&broker).await, 0).await, 55);

        broker.restart().await.unwrap();
        assert_eq!(messages(&jetstream_of(&broker).await, 0).await, 55);
        assert_eq!((broker.url(), broker.monitor_url()), (url, monitor_url));
    }
}

#[tokio::test]
async fn a_directory_that_was_given_outlives_the_broker() {
    let directory = tempfile::tempdir().unwrap();
    let directory = Some(directory.path().join("broker of \"mine\""));
    let options = BrokerOptions { directory, ..Default::default() };
    let first = Broker::start(options.clone()).await.unwrap();
    assert_eq!(messages(&jetstream_of(&first).await, 3).await, 3);
    drop(first);
    let second = Broker::start(options).await.unwrap();
    assert_eq!(messages(&jetstream_of(&second).await, 0).await, 3);
}

#[tokio::test]
async fn a_temporary_directory_goes_with_the_broker() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    messages(&jetstream_of(&broker).await, 3).await;
    let log = broker.log();
    assert!(log.exists());
    drop(broker);
    assert!(!log.parent().unwrap().exists());
}

#[tokio::test]
async fn the_options_reach_the_broker() {
    let extra = "jetstream { max_file_store: 1MB }\nmax_payload: 1234".to_owned();
    let broker = Broker::start(BrokerOptions { extra, ..Default::default() }).await.unwrap();
    let jetstream = jetstream_of(&broker).await;
    assert_eq!(jetstream.client().server_info().max_payload, 1234);
    assert_eq!(messages(&jetstream, 1).await, 1);
    assert!(broker.log().parent().unwrap().join("jetstream").exists());

    let plain = BrokerOptions { jetstream: false, ..Default::default() };
    let plain = Broker::start(plain).await.unwrap();
    assert!(!async_nats::connect(plain.url()).await.unwrap().server_info().jetstream);
}

#[tokio::test]
async fn a_broker_that_wants_a_password_has_started_too() {
    let extra = "authorization { user: somebody, password: secret }".to_owned();
    let broker = Broker::start(BrokerOptions { extra, ..Default::default() }).await.unwrap();
    assert!(async_nats::connect(broker.url()).await.is_err());
    let options = async_nats::ConnectOptions::with_user_and_password;
    let client = options("somebody".into(), "secret".into()).connect(broker.url()).await.unwrap();
    jetstream::new(client).query_account().await.unwrap();
}

#[tokio::test]
async fn a_broker_that_cannot_start_says_why_at_once() {
    let begun = Instant::now();
    let first = Broker::start(BrokerOptions::default()).await.unwrap();
    let options = BrokerOptions { port: Some(first.port()), ..Default::default() };
    let refusal = format!("{:#}", Broker::start(options).await.unwrap_err());
    assert!(refusal.contains("address already in use"), "{refusal}");

    let options = BrokerOptions { extra: "no_such_setting: 1".to_owned(), ..Default::default() };
    let refusal = format!("{:#}", Broker::start(options).await.unwrap_err());
    assert!(refusal.contains("no_such_setting"), "{refusal}");
    assert!(begun.elapsed() < Duration::from_secs(25), "it has waited for the limit");
    jetstream_of(&first).await.query_account().await.unwrap();
}

#[tokio::test]
async fn nobody_else_gets_the_ports_of_a_broker_that_is_down() {
    let mut broker = Broker::start(BrokerOptions::default()).await.unwrap();
    broker.kill().await.unwrap();
    let port = SocketAddr::from(([127, 0, 0, 1], broker.port()));
    assert!(TcpStream::connect(port).await.is_err(), "somebody listens");
    assert!(TcpSocket::new_v4().unwrap().bind(port).is_err(), "the port is free");
    broker.restart().await.unwrap();
}
