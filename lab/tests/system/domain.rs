//! JetStream behind a leaf node: all programs connect to the leaf, and the hub stores all messages.

use std::time::Duration;

use async_nats::jetstream;
use contract::facts::RECEIVED;
use futures_util::TryStreamExt;
use observe::audit::audit;
use serde_json::Value;
use testkit::broker::{Broker, BrokerOptions};
use testkit::http;
use testkit::process::{Process, logged};
use tokio::process::Command;

use crate::api::get;
use crate::deployment::{
    Deployment, Service, api_addr, gateway, programs, ready, run, soon, succeeded,
};

/// A hub with a domain, and a leaf node with another domain.
async fn hub_and_leaf() -> (Deployment, Broker) {
    let hub = BrokerOptions {
        extra: "jetstream { domain: hub }\nleafnodes { listen: \"127.0.0.1:-1\" }".to_owned(),
        ..BrokerOptions::default()
    };
    let hub = Broker::start(hub).await.unwrap();
    let monitor = hub.monitor_url().trim_start_matches("http://").parse().unwrap();
    let (_, of_hub) = http::get(monitor, "/varz").await.unwrap();
    let port = serde_json::from_str::<Value>(&of_hub).unwrap()["leaf"]["port"].take();
    let leaf = BrokerOptions {
        extra: format!(
            "jetstream {{ domain: edge }}\nleafnodes {{ remotes: [{{ url: \"nats://127.0.0.1:{port}\" }}] }}"
        ),
        ..BrokerOptions::default()
    };
    (Deployment::at(hub).await, Broker::start(leaf).await.unwrap())
}

#[tokio::test]
async fn audit_without_the_right_domain_names_the_setting() {
    let (hub, leaf) = hub_and_leaf().await;
    let mut audit = Command::new(&programs().await.decoupled);
    audit.env_clear().envs([("NATS_URL", leaf.url().as_str()), ("NATS_DOMAIN", "none")]);
    audit.arg("audit");
    let audit = Process::spawn(audit, hub.log("audit")).unwrap();
    logged(&audit, "or set NATS_DOMAIN").await;
}

#[tokio::test]
async fn every_program_works_through_a_leaf_node() {
    let (hub, leaf) = hub_and_leaf().await;
    let url = leaf.url();
    let domain = ("NATS_DOMAIN", "hub");
    let mut generator = run(Service::Generator, &url, hub.log("generator"), &[domain]).await;
    ready(&generator).await;
    let total = [domain, ("REQUEST_TOTAL", "20"), ("REQUEST_RATE", "max")];
    succeeded(&mut run(Service::Requestor, &url, hub.log("requestor"), &total).await).await;
    hub.facts_reach(RECEIVED, 20).await;
    let verdict = audit(hub.nats(), Duration::ZERO).await.unwrap();
    assert!(verdict.is_clean() && verdict.complete == 20, "{verdict}");

    generator.terminate().unwrap();
    succeeded(&mut generator).await;

    let backup = hub.log("backup");
    for words in [&["declare"][..], &["audit"], &["backup", backup.to_str().unwrap()]] {
        let mut decoupled = Command::new(&programs().await.decoupled);
        decoupled.env_clear().envs([("NATS_URL", url.as_str()), domain]).args(words);
        let output = soon("it ends", decoupled.output()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let gateway = gateway(&url, hub.log("gateway"), &[domain]).await;
    ready(&gateway).await;
    let list = get(api_addr(&gateway).await, "/requests").await.json();
    let received = list["requests"].as_array().unwrap().iter();
    let received = received.filter(|request| request["status"] == "received").count();
    assert_eq!(received, 20, "{list}");

    let at_the_leaf = jetstream::new(async_nats::connect(&url).await.unwrap());
    let streams: Vec<String> = at_the_leaf.stream_names().try_collect().await.unwrap();
    assert_eq!(streams, [] as [&str; 0]);
}
