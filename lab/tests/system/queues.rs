//! `decoupled queues`: a queue is paused, and resumed.

use contract::queues::{REQUESTS, RESPONSES};
use serde_json::Value;
use testkit::eventually::eventually;
use workqueue::topology::Limits;

use crate::deployment::{Deployment, LIMITS, Service, ready, succeeded};

/// The queues from `decoupled queues list`. None while the command fails.
async fn listed(deployment: &Deployment) -> Option<Value> {
    let (status, said) = deployment.decoupled(["queues", "list", "--json"]).await;
    (status == Some(0)).then(|| serde_json::from_str(&said).unwrap())
}

#[tokio::test]
async fn limit_of_a_queue_by_bytes_is_shown() {
    let limits = Limits { max_bytes: Some(1_000_000), ..LIMITS };
    let deployment = Deployment::with(&limits).await;
    let queues = listed(&deployment).await.unwrap();
    assert!(queues[0]["max_bytes"] == 1_000_000 && queues[0]["bytes"] == 0, "{queues}");
    let (_, said) = deployment.decoupled(["queues", "list"]).await;
    assert_eq!(said.matches("100000  0 of 1000000 bytes").count(), 4, "{said}");
}

#[tokio::test]
async fn paused_queue_keeps_its_messages_until_it_is_resumed() {
    let mut deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    let (status, said) =
        deployment.decoupled(["queues", "pause", "requests", "--for", "10m"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with("REQUESTS is paused until "), "{said}");
    let mut asking = deployment.ask(5).await;
    let all_wait = async || {
        let queues = listed(&deployment).await;
        let waiting = queues.as_ref().map(|queues| queues[1]["waiting"] == 5);
        if waiting == Some(true) { Ok(()) } else { Err(queues) }
    };
    eventually("all requests wait", all_wait).await;
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    let queues = eventually("the broker tells", async || listed(&deployment).await.ok_or(())).await;
    assert_eq!(queues[1]["name"], REQUESTS.stream);
    assert!(queues[1]["paused_until"].is_string(), "{queues}");
    assert!(queues[1]["waiting"] == 5 && queues[1]["in_flight"] == 0, "{queues}");
    assert_eq!(queues[2]["name"], RESPONSES.stream);
    assert!(queues[2]["paused_until"].is_null(), "{queues}");
    let (_, said) = deployment.decoupled(["queues", "list"]).await;
    assert_eq!(said.matches("paused until ").count(), 1, "{said}");
    let resumed = deployment.decoupled(["queues", "resume", "REQUESTS"]).await;
    assert_eq!(resumed, (Some(0), "REQUESTS is resumed.\n".to_owned()));
    succeeded(&mut asking).await;
    let (_, said) = deployment.decoupled(["queues", "list"]).await;
    assert!(!said.contains("paused until "), "{said}");
}

#[tokio::test]
async fn wrong_queue_or_time_is_refused_with_a_hint() {
    let deployment = Deployment::bare().await;
    for (words, said) in [
        (
            ["pause", "KV_stored", "--for=1m"],
            "the queues are SCHEDULES, REQUESTS, RESPONSES and ACKNOWLEDGMENTS",
        ),
        (["pause", "REQUESTS", "--for=0s"], "write a time above zero"),
        (["pause", "REQUESTS", "--for=soon"], "write a number with a unit"),
        (["pause", "REQUESTS", "--for=1m"], "run `decoupled declare`"),
    ] {
        let (status, output) = deployment.decoupled([["queues"].as_slice(), &words].concat()).await;
        assert!(status == Some(2) && output.contains(said), "{words:?}: {output}");
    }
}
