//! Replicas answer service discovery by NATS's service protocol.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;
use testkit::eventually::eventually;
use tokio::time::timeout;

use crate::deployment::{Deployment, Service, ready, succeeded};

/// All answers to a request, until no further one arrives for a while.
async fn answers(deployment: &Deployment, subject: &str) -> Vec<Value> {
    let client = deployment.nats().client();
    let inbox = client.new_inbox();
    let mut heard = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(subject.to_owned(), inbox, "".into()).await.unwrap();
    let mut answers = Vec::new();
    while let Ok(Some(message)) = timeout(Duration::from_millis(200), heard.next()).await {
        // If no service listens, the broker answers with an empty message.
        answers.extend(serde_json::from_slice::<Value>(&message.payload));
    }
    answers
}

async fn settled(deployment: &Deployment, queue: &str) -> u64 {
    let endpoints = |answer: &Value| answer["endpoints"].as_array().cloned().unwrap_or_default();
    let answers = answers(deployment, "$SRV.STATS").await;
    let endpoints = answers.iter().flat_map(endpoints).filter(|endpoint| endpoint["name"] == queue);
    endpoints.filter_map(|endpoint| endpoint["num_requests"].as_u64()).sum()
}

#[tokio::test]
async fn replicas_announce_their_instance_and_statistics() {
    let mut deployment = Deployment::start().await;
    let one = [("INSTANCE", "one")];
    let mut generator = deployment.run(Service::Generator, "one", &one).await;
    let another = deployment.run(Service::Generator, "another", &[("INSTANCE", "another")]).await;
    for process in [&generator, &another] {
        ready(process).await;
    }
    // Malformed requests, and those without a reply subject, are ignored.
    let client = deployment.nats().client();
    for subject in ["$SRV.PING", "$SRV.nothing", "$SRV.STATS.generator"] {
        client.publish(subject, vec![0xff; 1000].into()).await.unwrap();
    }
    let instances = async |subject: &str, count: usize| {
        let answering = eventually("they answer in time", async || {
            let answers = answers(&deployment, subject).await;
            if answers.len() == count { Ok(answers) } else { Err(answers) }
        });
        let mut instances = answering.await;
        instances.sort_by_key(|answer| answer["metadata"]["instance"].to_string());
        instances
    };
    let pings = instances("$SRV.PING", 2).await;
    assert_eq!(pings[0]["metadata"]["instance"], "another");
    assert_eq!(pings[1]["metadata"]["state"], "ready");
    instances("$SRV.PING.requestor", 0).await;
    let id = pings[1]["id"].as_str().unwrap();
    let alone = instances(&format!("$SRV.INFO.generator.{id}"), 1).await;
    assert_eq!(alone[0]["endpoints"][0]["name"], "REQUESTS");

    let mut requestor = deployment.ask(50).await;
    succeeded(&mut requestor).await;
    deployment.verdict().await;
    eventually("what was done is counted", async || {
        match (
            settled(&deployment, "REQUESTS").await,
            settled(&deployment, "ACKNOWLEDGMENTS").await,
        ) {
            (50, 50) => Ok(()),
            other => Err(other),
        }
    })
    .await;

    // They answer again after an outage of the broker, and no more once they have stopped.
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    eventually("only the other one answers", async || {
        let pings = answers(&deployment, "$SRV.PING.generator").await;
        match pings.as_slice() {
            [ping] if ping["metadata"]["instance"] == "another" => Ok(()),
            _ => Err(pings),
        }
    })
    .await;
}
