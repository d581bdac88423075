//! The broker, as a real process.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use testkit::broker::{Broker, BrokerOptions, Brokers};
use testkit::eventually::eventually;
use testkit::http;
use tokio::net::{TcpSocket, TcpStream};

async fn jetstream_of(broker: &Broker) -> jetstream::Context {
    jetstream::new(async_nats::connect(broker.url()).await.unwrap())
}

/// The number of messages in a stream after this many publishes to it.
async fn messages(jetstream: &jetstream::Context, published: usize) -> u64 {
    messages_of(jetstream, published, 1).await
}

async fn messages_of(jetstream: &jetstream::Context, published: usize, replicas: usize) -> u64 {
    let config = stream::Config {
        name: "KEPT".to_owned(),
        subjects: vec!["kept.>".to_owned()],
        storage: stream::StorageType::File,
        num_replicas: replicas,
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
async fn started_broker_answers() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let account = jetstream_of(&broker).await.query_account().await.unwrap();
    assert_eq!(account.streams, 0);

    let address = broker.monitor_url().replace("http://", "").parse().unwrap();
    let (_, answer) = http::get(address, "/healthz").await.unwrap();
    assert!(answer.contains("{\"status\":\"ok\"}"), "{answer}");
}

#[tokio::test]
async fn confirmed_messages_survive_a_kill_and_a_stop() {
    for sync_always in [false, true] {
        let options = BrokerOptions { sync_always, ..Default::default() };
        let mut broker = Broker::start(options).await.unwrap();
        let (url, monitor_url) = (broker.url(), broker.monitor_url());
        assert_eq!(messages(&jetstream_of(&broker).await, 50).await, 50);

        broker.kill().await.unwrap();
        assert!(async_nats::connect(&url).await.is_err(), "no server listens on the port");
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
async fn given_directory_outlives_the_broker() {
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
async fn temporary_directory_is_removed_with_the_broker() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    messages(&jetstream_of(&broker).await, 3).await;
    let log = broker.log();
    assert!(log.exists());
    drop(broker);
    assert!(!log.parent().unwrap().exists());
}

#[tokio::test]
async fn options_reach_the_broker() {
    let extra = "jetstream { max_file_store: 1MB }\nmax_payload: 1234".to_owned();
    let broker = Broker::start(BrokerOptions { extra, ..Default::default() }).await.unwrap();
    let jetstream = jetstream_of(&broker).await;
    assert_eq!(jetstream.client().server_info().max_payload, 1234);
    assert_eq!(messages(&jetstream, 1).await, 1);
    assert!(broker.log().parent().unwrap().join("jetstream").exists());

    let plain = BrokerOptions { without_jetstream: true, ..Default::default() };
    let plain = Broker::start(plain).await.unwrap();
    assert!(!async_nats::connect(plain.url()).await.unwrap().server_info().jetstream);
}

#[tokio::test]
async fn broker_with_a_password_counts_as_started() {
    let extra = "authorization { user: somebody, password: secret }".to_owned();
    let broker = Broker::start(BrokerOptions { extra, ..Default::default() }).await.unwrap();
    assert!(async_nats::connect(broker.url()).await.is_err());
    let options = async_nats::ConnectOptions::with_user_and_password;
    let client = options("somebody".into(), "secret".into()).connect(broker.url()).await.unwrap();
    jetstream::new(client).query_account().await.unwrap();
}

#[tokio::test]
async fn broker_that_cannot_start_names_the_reason_at_once() {
    let first = Broker::start(BrokerOptions::default()).await.unwrap();
    let begun = Instant::now();
    let options = BrokerOptions { port: Some(first.port()), ..Default::default() };
    let error = format!("{:#}", Broker::start(options).await.unwrap_err());
    assert!(error.contains("address already in use"), "{error}");

    let options = BrokerOptions { extra: "no_such_setting: 1".to_owned(), ..Default::default() };
    let error = format!("{:#}", Broker::start(options).await.unwrap_err());
    assert!(error.contains("no_such_setting"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(25), "it has waited for the limit");
    jetstream_of(&first).await.query_account().await.unwrap();
}

#[tokio::test]
async fn ports_of_a_broker_that_is_down_stay_reserved() {
    let mut broker = Broker::start(BrokerOptions::default()).await.unwrap();
    broker.kill().await.unwrap();
    let port = SocketAddr::from(([127, 0, 0, 1], broker.port()));
    assert!(TcpStream::connect(port).await.is_err(), "a server listens");
    assert!(TcpSocket::new_v4().unwrap().bind(port).is_err(), "the port is free");
    broker.restart().await.unwrap();
}

/// The broker that leads the stream of these tests.
async fn leader(brokers: &Brokers) -> usize {
    eventually("the stream has a leader", async || {
        brokers.leader("KEPT").await.unwrap().ok_or("none")
    })
    .await
}

/// Waits until JetStream answers, because the killed broker may have been its meta leader.
async fn jetstream_of_all(brokers: &Brokers) -> jetstream::Context {
    let addresses: Vec<async_nats::ServerAddr> =
        brokers.url().split(',').map(|url| url.parse().unwrap()).collect();
    let jetstream = jetstream::new(async_nats::connect(addresses).await.unwrap());
    eventually("JetStream answers", async || jetstream.query_account().await).await;
    jetstream
}

#[tokio::test]
async fn cluster_keeps_confirmed_messages_over_any_kill() {
    let mut brokers = Brokers::start(3, None).await.unwrap();
    let (url, ports) = (brokers.url(), brokers.ports());
    assert_eq!((brokers.len(), ports.len()), (3, 3));
    assert_eq!(brokers.leader("KEPT").await.unwrap(), None);
    assert_eq!(messages_of(&jetstream_of_all(&brokers).await, 50, 3).await, 50);

    let first = leader(&brokers).await;
    brokers.kill(first).await.unwrap();
    assert!(!brokers.all_run().unwrap());
    assert_ne!(leader(&brokers).await, first);
    // The others confirm without the killed broker, and it catches up later.
    assert_eq!(messages_of(&jetstream_of_all(&brokers).await, 5, 3).await, 55);
    brokers.restart(first).await.unwrap();
    assert!(brokers.all_run().unwrap());

    // While most of them are down, a restarted broker has no quorum.
    for index in 0..3 {
        brokers.kill(index).await.unwrap();
    }
    brokers.leader("KEPT").await.unwrap_err();
    for index in 0..3 {
        brokers.restart(index).await.unwrap();
    }
    leader(&brokers).await;
    assert_eq!(messages_of(&jetstream_of_all(&brokers).await, 0, 3).await, 55);
    assert_eq!((brokers.url(), brokers.ports()), (url, ports));
    brokers.stop().await.unwrap();
    brokers.stop().await.unwrap();
}

#[tokio::test]
async fn single_broker_leads_all_of_its_streams() {
    let directory = tempfile::tempdir().unwrap();
    let mut brokers = Brokers::start(1, Some(directory.path().to_owned())).await.unwrap();
    assert_eq!(messages(&jetstream_of_all(&brokers).await, 3).await, 3);
    assert_eq!(brokers.leader("KEPT").await.unwrap(), Some(0));
    assert_eq!(brokers.leader("ANOTHER").await.unwrap(), None);
    brokers.kill(0).await.unwrap();
    brokers.leader("KEPT").await.unwrap_err();
    brokers.restart(0).await.unwrap();
    assert_eq!(messages(&jetstream_of_all(&brokers).await, 0).await, 3);
    drop(brokers);
    assert!(directory.path().join("broker").join("nats-server.log").exists());
}

#[tokio::test]
async fn cluster_without_brokers_is_refused() {
    Brokers::start(0, None).await.unwrap_err();
}
