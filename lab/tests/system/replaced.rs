//! Lost stores with new ones in their place: the audit does not mistake the new store for the old one.

use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Config;
use cli::backup::{backup, restore};
use contract::queues::REQUESTS;
use contract::{facts, queues};
use jiff::SignedDuration;
use observe::audit::{Verdict, audit};
use testkit::eventually::eventually;
use testkit::process::Process;
use workqueue::{Bucket, dead_letters, topology};

use crate::audit::at_rest;
use crate::deployment::{Deployment, LIMITS, Service, ready, succeeded};
use crate::watch::copy;

/// Longer than the difference between clocks that the audit allows.
const CLOCKS: Duration = Duration::from_millis(1500);

/// Waits until all events so far are older than that difference.
pub async fn clocks_are_ahead() {
    let begun = Instant::now();
    eventually("clocks are ahead", async || match begun.elapsed() {
        elapsed if elapsed > CLOCKS => Ok(()),
        elapsed => Err(elapsed),
    })
    .await;
}

async fn delete(nats: &Context, stream: &str) {
    nats.delete_stream(stream).await.unwrap();
}

/// Asserts that the current verdict is *cannot tell*.
async fn cannot_tell(deployment: &Deployment) -> Verdict {
    let verdict = audit(deployment.nats(), Duration::ZERO).await.unwrap();
    let why = verdict.cannot_tell.as_deref().unwrap_or_default();
    assert!(why.starts_with("a store was replaced at "), "{verdict}");
    assert!(!verdict.is_clean() && verdict.remembers_since.is_some(), "{verdict}");
    verdict
}

/// All streams on the broker.
fn streams() -> impl Iterator<Item = &'static str> {
    let buckets = facts::ALL.iter().map(|bucket| bucket.stream).chain([dead_letters::STREAM]);
    buckets.chain(queues::ALL.iter().map(|queue| queue.stream))
}

/// Deletes all streams.
async fn delete_all(deployment: &Deployment) {
    for stream in streams() {
        delete(deployment.nats(), stream).await;
    }
}

/// Sets the creation of all streams to an hour ago, as a restore does.
async fn grow_old(deployment: &Deployment) {
    for stream in streams() {
        let stream = topology::stream_state(deployment.nats(), stream).await.unwrap();
        let created = topology::created_at(&stream) - SignedDuration::from_hours(1);
        let mut config = stream.config;
        config.metadata.insert("first_created".to_owned(), created.to_string());
        deployment.nats().update_stream(&config).await.unwrap();
    }
}

/// Makes more requests, and waits until all are complete.
async fn ask_more(deployment: &Deployment) {
    let mut generator = deployment.run(Service::Generator, "again", &[]).await;
    succeeded(&mut deployment.ask(5).await).await;
    deployment.drained(queues::ACKNOWLEDGMENTS).await;
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
}

async fn under_load(deployment: &Deployment) -> [Process; 2] {
    let services = [
        deployment.run(Service::Generator, "generator", &[]).await,
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "max")]).await,
    ];
    deployment.facts_reach(facts::RECEIVED, 100).await;
    services
}

/// Waits for more results than the requestor had requests in flight.
async fn asks_anew(deployment: &Deployment) {
    deployment.facts_reach(facts::REQUESTED, 1000).await;
}

#[tokio::test]
async fn streams_declared_again_under_load_are_noticed() {
    let deployment = Deployment::start().await;
    let [generator, requestor] = under_load(&deployment).await;
    // Both services have work in flight, which continues in the new streams.
    generator.pause().unwrap();
    requestor.pause().unwrap();
    clocks_are_ahead().await;
    delete_all(&deployment).await;
    deployment.declare(&LIMITS).await;
    generator.resume().unwrap();
    requestor.resume().unwrap();
    asks_anew(&deployment).await;
    cannot_tell(&deployment).await;

    let (status, said) = deployment.decoupled(["audit", "--wait", "1h"]).await;
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("\n  the broker remembers since "), "{said}");
    assert!(said.contains("\nCANNOT TELL: a store was replaced at "), "{said}");
    assert!(!said.contains("Nothing lost"), "{said}");
    let (status, said) = deployment.decoupled(["audit", "--json"]).await;
    assert_eq!(status, Some(3), "{said}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let why = said["cannot_tell"].as_str().unwrap();
    assert!(why.starts_with("a store was replaced at "), "{said}");
    assert!(said["remembers_since"].is_string(), "{said}");
}

#[tokio::test]
async fn broker_restarted_empty_is_noticed() {
    let mut deployment = Deployment::start().await;
    let _services = under_load(&deployment).await;
    deployment.broker.kill().await.unwrap();
    clocks_are_ahead().await;
    deployment.broker.wipe().unwrap();
    deployment.broker.restart().await.unwrap();
    deployment.declare(&LIMITS).await;
    asks_anew(&deployment).await;
    cannot_tell(&deployment).await;
}

#[tokio::test]
async fn services_report_a_store_that_they_declare_again() {
    let mut deployment = Deployment::start().await;
    // So slow that the new store may have no part of the old one's work.
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "1")]).await;
    deployment.facts_reach(facts::RECEIVED, 2).await;
    deployment.broker.kill().await.unwrap();
    deployment.broker.wipe().unwrap();
    deployment.broker.restart().await.unwrap();
    deployment.facts_reach(facts::RECEIVED, 2).await;
    cannot_tell(&deployment).await;
}

#[tokio::test]
async fn watch_reports_streams_that_are_declared_again() {
    for by_another in [false, true] {
        let deployment = Deployment::start().await;
        let watch = deployment.watch("watch", &LIMITS, &[]).await;
        ready(&watch).await;
        delete_all(&deployment).await;
        if by_another {
            deployment.declare(&LIMITS).await;
        }
        let told = async || match audit(deployment.nats(), Duration::ZERO).await {
            Ok(Verdict { cannot_tell: Some(why), .. }) => Ok(why),
            other => Err(other.map(|verdict| verdict.to_string())),
        };
        let why = eventually("the audit cannot tell", told).await;
        assert!(why.starts_with("a store was replaced at "), "{why}");
        assert!(why.contains(": there was another "), "{why}");
    }
}

#[tokio::test]
async fn bucket_declared_again_is_noticed() {
    for bucket in [facts::REQUESTED, facts::STORED, facts::RECEIVED] {
        let (deployment, _id) = at_rest().await;
        clocks_are_ahead().await;
        delete(deployment.nats(), bucket.stream).await;
        deployment.declare(&LIMITS).await;
        cannot_tell(&deployment).await;
    }
}

/// The sets of buckets that a test changes.
const SETS: [&[Bucket]; 2] =
    [&[facts::REQUESTED], &[facts::REQUESTED, facts::STORED, facts::RECEIVED]];

#[tokio::test]
async fn buckets_declared_again_are_noticed_after_a_restore() {
    let (deployment, _id) = at_rest().await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("backup");
    eventually("no service waits any more", async || {
        backup(deployment.connection(), &directory).await
    })
    .await;
    for buckets in SETS {
        let other = Deployment::bare().await;
        restore(other.connection(), &directory, None).await.unwrap();
        let verdict = other.verdict().await;
        assert_eq!((verdict.complete, verdict.is_clean()), (10, true), "{verdict}");
        grow_old(&other).await;
        for bucket in buckets {
            delete(other.nats(), bucket.stream).await;
        }
        other.declare(&LIMITS).await;
        cannot_tell(&other).await;
        ask_more(&other).await;
        cannot_tell(&other).await;
    }
}

#[tokio::test]
async fn emptied_bucket_is_noticed() {
    for buckets in SETS {
        let (deployment, _id) = at_rest().await;
        for bucket in buckets {
            deployment.nats().get_stream(bucket.stream).await.unwrap().purge().await.unwrap();
        }
        for asked_again in [false, true] {
            if asked_again {
                ask_more(&deployment).await;
            }
            let verdict = audit(deployment.nats(), Duration::ZERO).await.unwrap();
            let why = "KV_requested had facts that it should still have";
            assert_eq!(verdict.cannot_tell.as_deref(), Some(why), "{verdict}");
        }
    }
}

/// Waits until a watch with the default limits has checked everything once more.
async fn watch_looks(deployment: &Deployment) {
    let is = topology::stream_state(deployment.nats(), REQUESTS.stream).await.unwrap().config;
    deployment.nats().update_stream(Config { max_messages: 7, ..is }).await.unwrap();
    eventually("the watch has looked", async || {
        let is = topology::stream_state(deployment.nats(), REQUESTS.stream).await.unwrap().config;
        if is.max_messages == 7 { Err("not yet") } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn older_store_put_back_under_a_watch_is_noticed() {
    let (mut deployment, _id) = at_rest().await;
    let store = deployment.broker.configuration_file().with_file_name("jetstream");
    let older = deployment.log("older");
    deployment.broker.stop().await.unwrap();
    copy(&store, &older);
    deployment.broker.restart().await.unwrap();
    let watch = deployment.watch("watch", &LIMITS, &[]).await;
    ready(&watch).await;
    ask_more(&deployment).await;
    watch_looks(&deployment).await;
    // A killed broker restarts with its whole store.
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    ready(&watch).await;
    watch_looks(&deployment).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.is_clean()), (15, true), "{verdict}");

    deployment.broker.stop().await.unwrap();
    deployment.broker.wipe().unwrap();
    copy(&older, &store);
    deployment.broker.restart().await.unwrap();
    let told = async || match audit(deployment.nats(), Duration::ZERO).await {
        Ok(Verdict { cannot_tell: Some(why), .. }) => Ok(why),
        other => Err(other.map(|verdict| verdict.to_string())),
    };
    let why = eventually("the audit cannot tell", told).await;
    assert!(why.starts_with("KV_requested had facts of up to "), "{why}");
}

#[tokio::test]
async fn store_that_outlives_its_broker_is_not_doubted() {
    let (mut deployment, _id) = at_rest().await;
    let before = deployment.verdict().await;
    assert!(before.is_clean(), "{before}");
    clocks_are_ahead().await;
    deployment.broker.kill().await.unwrap();
    deployment.broker.restart().await.unwrap();
    deployment.declare(&LIMITS).await;
    let after = deployment.verdict().await;
    assert_eq!((&after.ids, after.complete, after.is_clean()), (&before.ids, 10, true), "{after}");
    assert_eq!(after.remembers_since, before.remembers_since);
}

#[tokio::test]
async fn store_whose_facts_have_expired_is_not_doubted() {
    const AGE: Duration = Duration::from_secs(1);
    let (deployment, _id) = at_rest().await;
    for bucket in facts::ALL {
        let config = topology::bucket_state(deployment.nats(), bucket).await.unwrap().config;
        let forgetful = Config { max_age: AGE, duplicate_window: AGE, ..config };
        deployment.nats().update_stream(&forgetful).await.unwrap();
    }
    eventually("all facts have aged out", async || match deployment.facts(facts::RECEIVED).await {
        0 => Ok(()),
        facts => Err(facts),
    })
    .await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
}
