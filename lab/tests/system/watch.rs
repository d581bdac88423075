//! `decoupled declare --watch`, which keeps the topology as it is declared.

use std::fs;
use std::path::Path;

use async_nats::jetstream::stream::DiscardPolicy;
use contract::facts::{self, RECEIVED};
use contract::queues::{REQUESTS, RESPONSES};
use testkit::eventually::eventually;
use testkit::process::{Process, logged};
use tokio::process::Command;
use workqueue::topology::{self, Limits};

use crate::deployment::{
    Deployment, LIMITS, Service, admin, admin_addr, creation, programs, publication, ready,
    succeeded,
};
use crate::round_trips::request;

/// Waits until the watch is not ready, for this reason.
async fn unready(watch: &Process, reason: &str) {
    eventually(&format!("it is not ready: {reason}"), async || {
        match admin(watch, "/readyz").await {
            (503, text) if text.contains(reason) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// The exit status and the output of the health check.
async fn healthcheck(watch: &Process) -> (Option<i32>, String) {
    let mut command = Command::new(&programs().await.decoupled);
    command.env_clear().arg("healthcheck").env("ADMIN_ADDR", admin_addr(watch).await.to_string());
    let output = command.output().await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn watch_creates_missing_objects_each_time() {
    let mut deployment = Deployment::bare().await;
    let watch = deployment.watch("watch", &LIMITS, &[]).await;
    ready(&watch).await;
    topology::stream_state(deployment.nats(), REQUESTS.stream).await.unwrap();
    deployment.nats().delete_stream(RESPONSES.stream).await.unwrap();
    logged(&watch, r#"created object="consumer requestor of stream RESPONSES""#).await;
    deployment.broker.stop().await.unwrap();
    unready(&watch, "not connected to the broker").await;
    deployment.broker.wipe().unwrap();
    deployment.broker.restart().await.unwrap();
    ready(&watch).await;
    eventually("all of it is there", async || {
        topology::bucket_state(deployment.nats(), facts::ALL[facts::ALL.len() - 1]).await
    })
    .await;
}

#[tokio::test]
async fn watch_changes_limits_in_place_under_running_services() {
    let deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    let limits = Limits { queue_limit: 7, ..LIMITS };
    let watch = deployment.watch("watch", &limits, &[]).await;
    ready(&watch).await;
    let stream = topology::stream_state(deployment.nats(), REQUESTS.stream).await.unwrap();
    assert_eq!(stream.config.max_messages, 7);
    let (_, metrics) = admin(&watch, "/metrics").await;
    // One limit of each queue, and the missing counters of rates.
    assert!(metrics.contains("decoupled_topology_changes_total 5\n"), "{metrics}");
    assert!(metrics.contains("decoupled_log_lines_dropped_total 0\n"), "{metrics}");
    let mut requestor = deployment.ask(100).await;
    succeeded(&mut requestor).await;
}

#[tokio::test]
async fn watch_reports_once_each_difference_that_it_cannot_change() {
    let deployment = Deployment::start().await;
    let discard = async |policy| {
        let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
        let mut config = stream.cached_info().config.clone();
        config.discard = policy;
        deployment.nats().update_stream(config).await.unwrap();
    };
    discard(DiscardPolicy::Old).await;
    let watch = deployment.watch("watch", &LIMITS, &[]).await;
    let problem = "stream REQUESTS: discard is Old, should be New";
    unready(&watch, problem).await;
    let (status, said) = healthcheck(&watch).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(problem), "{said}");
    // It creates another missing stream, which shows that it has checked again.
    deployment.nats().delete_stream(RESPONSES.stream).await.unwrap();
    logged(&watch, r#"created object="stream RESPONSES""#).await;
    discard(DiscardPolicy::New).await;
    ready(&watch).await;
    assert_eq!(healthcheck(&watch).await.0, Some(0));
    let log = watch.log_text();
    assert_eq!(log.matches(problem).count(), 1, "{log}");
}

#[tokio::test]
async fn stopped_watch_exits_0_with_or_without_a_broker() {
    let mut deployment = Deployment::start().await;
    let mut watch = deployment.watch("connected", &LIMITS, &[]).await;
    ready(&watch).await;
    watch.terminate().unwrap();
    succeeded(&mut watch).await;
    deployment.broker.kill().await.unwrap();
    let mut watch = deployment.watch("alone", &LIMITS, &[]).await;
    logged(&watch, "cannot connect to the broker yet").await;
    watch.interrupt().unwrap();
    succeeded(&mut watch).await;
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copied = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &copied);
        } else {
            fs::copy(entry.path(), copied).unwrap();
        }
    }
}

#[tokio::test]
async fn watch_requeues_acked_messages_that_still_exist() {
    let mut deployment = Deployment::start().await;
    for request in [request(), request()] {
        deployment.publish(&publication(&request)).await;
        deployment.publish(&creation(&request)).await;
    }
    let store = deployment.broker.configuration_file().with_file_name("jetstream");
    let (messages, saved) = (store.join("$G/streams/REQUESTS/msgs"), deployment.log("saved"));
    deployment.broker.stop().await.unwrap();
    copy(&messages, &saved);
    deployment.broker.restart().await.unwrap();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "0")]).await;
    deployment.facts_reach(RECEIVED, 2).await;
    deployment.drained(REQUESTS).await;

    // The broker forgets that it has removed the messages, but not that they were acked, as if it were killed in
    // between.
    deployment.broker.stop().await.unwrap();
    fs::remove_dir_all(&messages).unwrap();
    copy(&saved, &messages);
    deployment.broker.restart().await.unwrap();
    assert_eq!(deployment.depth(REQUESTS).await, 2);

    let watch = deployment.watch("watch", &LIMITS, &[]).await;
    deployment.drained(REQUESTS).await;
    // The counter includes them once the whole sweep has ended.
    eventually("both are counted", async || {
        let (_, metrics) = admin(&watch, "/metrics").await;
        let counted = metrics.contains("decoupled_requeued_messages_total 2\n");
        if counted { Ok(()) } else { Err(metrics) }
    })
    .await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.is_clean()), (2, true), "{verdict}");
}
