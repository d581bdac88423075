//! The audit detects faults: each is made by hand, and the audit names it.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::Config;
use contract::Strings;
use contract::facts::{self, Received, Stored};
use contract::queues::{REQUESTS, RESPONSES, Request};
use futures_util::StreamExt;
use observe::audit::{Verdict, audit};
use testkit::eventually::eventually;
use testkit::process::{Process, logged};
use testkit::proxy::Proxy;
use tokio::process::Command;
use tokio::sync::oneshot;
use workqueue::{Job, JobId, NatsSettings, dead_letters, topology};

use crate::deployment::{
    Deployment, PATIENT, Service, creation, programs, publication, ready, soon, succeeded,
};
use crate::foreign_messages::response;

/// An idle deployment with some complete requests, and the id of one of them.
pub async fn at_rest() -> (Deployment, JobId) {
    let deployment = Deployment::start().await;
    let mut generator = deployment.run(Service::Generator, "generator", &[]).await;
    let mut requestor = deployment.ask(10).await;
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.is_clean()), (10, true), "{verdict}");
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
    let stream = deployment.nats().get_stream(facts::REQUESTED.stream).await.unwrap();
    let last = stream.cached_info().state.last_sequence;
    let message = stream.get_raw_message(last).await.unwrap();
    let id = facts::REQUESTED.key(&message.subject).unwrap().parse().unwrap();
    (deployment, id)
}

/// Asserts that nine requests are complete, and that `ids`, those of one state, has only this request.
fn only(verdict: &Verdict, ids: &[String], id: JobId) {
    assert!(!verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.complete, 9, "{verdict}");
    assert_eq!(ids, [id.to_string()], "{verdict}");
}

#[tokio::test]
async fn audit_reports_its_wait_for_pending_requests() {
    let deployment = Deployment::start().await;
    // No generator answers it.
    let requestor = deployment.ask(1).await;
    logged(&requestor, "waiting until each request is stored").await;
    let mut audit = Command::new(&programs().await.decoupled);
    audit.env_clear().args(["audit", "--wait", "1h", "--nats-url", deployment.url()]);
    let directory = tempfile::tempdir().unwrap();
    let audit = Process::spawn(audit, directory.path().join("log")).unwrap();
    logged(&audit, "waiting for up to 3600s until nothing is pending").await;
}

#[tokio::test]
async fn requests_that_wait_in_bundles_are_pending() {
    const REQUESTED: usize = 300;
    let deployment = Deployment::with(&PATIENT).await;
    let bundles = ("BUNDLE_LIMIT", "8");
    let total = REQUESTED.to_string();
    let asking = [bundles, ("REQUEST_RATE", "max"), ("REQUEST_TOTAL", total.as_str())];
    let pending = async |what: &str| {
        let verdict = audit(deployment.nats(), Duration::ZERO).await.unwrap();
        let counted = (verdict.pending, verdict.lost, verdict.unasked, verdict.requested);
        assert_eq!(counted, (REQUESTED, 0, 0, REQUESTED), "{what}: {verdict}");
        let mut poller = observe::Poller::new(deployment.connection());
        for _ in 0..4 {
            let snapshot = eventually("a snapshot", async || {
                poller.snapshot().await.map_err(|error| error.to_string())
            });
            assert_eq!(snapshot.await.totals.missing, 0, "{what}");
        }
    };
    let mut requestor = deployment.run(Service::Requestor, "asking", &asking).await;
    logged(&requestor, "waiting until each request is stored").await;
    deployment.facts_reach(facts::REQUESTED, REQUESTED as u64).await;
    let messages = deployment.depth(REQUESTS).await;
    assert!(messages < REQUESTED as u64, "there is no bundle among {messages} messages");
    pending("requests").await;
    requestor.kill().await.unwrap();

    let generator = deployment.run(Service::Generator, "generator", &[bundles]).await;
    deployment.drained(REQUESTS).await;
    let messages = deployment.depth(RESPONSES).await;
    assert!(messages < REQUESTED as u64, "there is no bundle among {messages} messages");
    pending("responses").await;

    let _requestor = deployment.run(Service::Requestor, "requestor", &[bundles]).await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.is_clean()), (REQUESTED, true), "{verdict}");
    assert_eq!(verdict.unasked, 0, "{verdict}");
    drop(generator);
}

#[tokio::test]
async fn distant_broker_has_snapshots_with_its_replicas() {
    let deployment = Deployment::start().await;
    let generator = deployment.run(Service::Generator, "generator", &[]).await;
    ready(&generator).await;
    let proxy = Proxy::start(deployment.broker.port()).await.unwrap();
    let connection = observe::connect(&NatsSettings::at(proxy.url()), "test").await.unwrap();
    // Some 70 ms for a question and its answer, as between two continents.
    proxy.slow(Duration::from_millis(35));
    let mut poller = observe::Poller::new(&connection);
    eventually("a snapshot with the generator", async || {
        let snapshot = poller.snapshot().await.map_err(|error| error.to_string())?;
        let states: Vec<_> = snapshot.replicas.replicas.iter().map(|it| it.state).collect();
        if states == ["ready"] { Ok(()) } else { Err(format!("{states:?}")) }
    })
    .await;
}

#[tokio::test]
async fn lost_question_is_repeated() {
    let deployment = Deployment::start().await;
    let client = deployment.connection().client().clone();
    // Passes on all questions to the broker except for one, as if a leader died with that one.
    let mut questions = client.subscribe("LOSSY.API.>").await.unwrap();
    let broker = client.clone();
    let (lost, mut was_lost) = oneshot::channel();
    let handing_on = tokio::spawn(async move {
        let mut lost = Some(lost);
        while let Some(question) = questions.next().await {
            let subject = question.subject.replacen("LOSSY", "$JS", 1);
            let lists = String::from_utf8_lossy(&question.payload).contains("subjects_filter");
            if lists
                && subject.ends_with("STREAM.INFO.DEAD_LETTERS")
                && let Some(lost) = lost.take()
            {
                lost.send(()).unwrap();
                continue;
            }
            let (reply, headers) = (question.reply.unwrap(), question.headers.unwrap_or_default());
            let payload = question.payload;
            broker.publish_with_reply_and_headers(subject, reply, headers, payload).await.unwrap();
        }
    });
    let nats = async_nats::jetstream::with_prefix(client, "LOSSY.API");
    let verdict = soon("a verdict", audit(&nats, Duration::ZERO)).await.unwrap();
    assert!(verdict.is_clean(), "{verdict}");
    handing_on.abort();
    was_lost.try_recv().unwrap();
}

#[tokio::test]
async fn command_on_an_empty_broker_names_the_missing_stream() {
    let deployment = Deployment::bare().await;
    let id = JobId::new().to_string();
    let cancel = ["requests", "cancel", &id];
    for (words, stream) in [(&["audit"][..], "REQUESTS"), (&cancel, "KV_requested")] {
        let (status, printed) = deployment.decoupled(words).await;
        assert_eq!(status, Some(2), "{printed}");
        let missing = format!(
            "Error: the broker cannot show stream {stream}, which is not there; start a service, or run \
             `decoupled declare`"
        );
        assert!(printed.contains(&missing), "{printed}");
    }
}

#[tokio::test]
async fn dead_letters_of_another_system_are_no_requests() {
    let (deployment, id) = at_rest().await;
    let letter = dead_letters::subject("THUMBNAILS", &JobId::new().to_string());
    deployment.publish_raw(&letter, async_nats::HeaderMap::new(), b"not ours").await;
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.unasked, verdict.is_clean()), (10, 0, true), "{verdict}");
    // Nor does one stand for a request that is missing.
    let stream = deployment.nats().get_stream(facts::STORED.stream).await.unwrap();
    stream.purge().filter(facts::STORED.subject(id)).await.unwrap();
    let mut poller = observe::Poller::new(deployment.connection());
    missing_eventually(&mut poller, 1).await;
    // The fact `stored` of an older request may have expired before its fact `requested`.
    let config = topology::bucket_state(deployment.nats(), facts::REQUESTED).await.unwrap().config;
    let max_age = Duration::from_hours(1) + Duration::from_millis(1);
    deployment.nats().update_stream(&Config { max_age, ..config }).await.unwrap();
    missing_eventually(&mut poller, 0).await;
    assert_eq!(deployment.facts(facts::REQUESTED).await, 10);
}

/// Waits until this many requests are missing, by the counts of the page.
async fn missing_eventually(poller: &mut observe::Poller, missing: u64) {
    eventually(&format!("missing requests: {missing}"), async || {
        match poller.snapshot().await.map(|snapshot| snapshot.totals.missing) {
            Ok(seen) if seen == missing => Ok(()),
            other => Err(other.map_err(|error| error.to_string())),
        }
    })
    .await;
}

#[tokio::test]
async fn request_without_a_fact_that_was_removed_is_lost() {
    for bucket in [facts::STORED, facts::RECEIVED] {
        let (deployment, id) = at_rest().await;
        let stream = deployment.nats().get_stream(bucket.stream).await.unwrap();
        stream.purge().filter(bucket.subject(id)).await.unwrap();
        let verdict = deployment.verdict().await;
        only(&verdict, &verdict.ids.lost, id);
    }
}

#[tokio::test]
async fn fact_written_again_with_other_values_is_doubled() {
    let (deployment, id) = at_rest().await;
    let mut received: Received = deployment.fact(id).await.unwrap();
    received.values = Strings::try_from(vec!["other".to_owned()]).unwrap();
    let mut second = creation(&received);
    second.headers = async_nats::HeaderMap::new();
    deployment.publish(&second).await;
    let verdict = deployment.verdict().await;
    only(&verdict, &verdict.ids.doubled, id);
}

#[tokio::test]
async fn fact_replaced_by_another_is_doubled() {
    let (deployment, id) = at_rest().await;
    let mut stored = deployment.stored(id).await.unwrap();
    stored.values = Strings::try_from(vec!["other".to_owned()]).unwrap();
    let stream = deployment.nats().get_stream(facts::STORED.stream).await.unwrap();
    stream.purge().filter(facts::STORED.subject(id)).await.unwrap();
    deployment.publish(&creation(&Stored::Strings(stored.clone()))).await;
    let verdict = deployment.verdict().await;
    only(&verdict, &verdict.ids.doubled, id);
}

#[tokio::test]
async fn message_removed_from_its_queue_is_lost() {
    let deployment = Deployment::start().await;
    let mut requestor =
        deployment.run(Service::Requestor, "requestor", &[("REQUEST_RATE", "max")]).await;
    deployment.facts_reach(facts::REQUESTED, 10).await;
    requestor.terminate().unwrap();
    succeeded(&mut requestor).await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    let message = stream.get_raw_message(1).await.unwrap();
    let id = REQUESTS.key(&message.subject).unwrap().to_owned();
    stream.delete_message(1).await.unwrap();
    // The others are still in their queue, but the verdict is clear already.
    let hours = audit(deployment.nats(), Duration::from_hours(1));
    let verdict = soon("the loss ends the wait", hours).await.unwrap();
    assert!(!verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.ids.lost, [id], "{verdict}");
    assert_eq!(verdict.pending, verdict.requested - 1, "{verdict}");
}

/// The first step of a generator.
#[derive(Clone, Copy)]
enum First {
    Publish,
    Ack,
}

/// Makes ten requests for a generator with two steps in this order. For the last three it does only the first step, as
/// if it were killed. Returns the ids of these three.
async fn gone_in_between(deployment: &Deployment, first: First) -> Vec<String> {
    let mut requestor = deployment.ask(10).await;
    deployment.facts_reach(facts::REQUESTED, 10).await;
    requestor.kill().await.unwrap();
    let consumer: PullConsumer = deployment
        .nats()
        .get_consumer_from_stream(REQUESTS.consumer, REQUESTS.stream)
        .await
        .unwrap();
    let mut deliveries = consumer.fetch().max_messages(10).messages().await.unwrap();
    let mut ids = Vec::new();
    for number in 1..=10 {
        let delivery = deliveries.next().await.unwrap().unwrap();
        let (subject, headers) = (&delivery.subject, delivery.headers.as_ref());
        let request = Request::decode(subject, headers, &delivery.payload).unwrap().1;
        let answer = publication(&response(&request, "made"));
        let publish = deployment.publish(&answer);
        let ack = async { delivery.double_ack().await.unwrap() };
        let is_gone = number > 7;
        match first {
            First::Publish => {
                publish.await;
                if !is_gone {
                    ack.await;
                }
            }
            First::Ack => {
                ack.await;
                if !is_gone {
                    publish.await;
                }
            }
        }
        if is_gone {
            ids.push(request.id.to_string());
        }
    }
    ids.sort();
    ids
}

#[tokio::test]
async fn ack_before_publish_loses_the_request_with_its_generator() {
    let deployment = Deployment::start().await;
    let ids = gone_in_between(&deployment, First::Ack).await;
    let _both = both_services(&deployment).await;
    let verdict = deployment.verdict().await;
    assert!(!verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.ids.lost, ids, "{verdict}");
    assert_eq!((verdict.requested, verdict.complete), (10, 7), "{verdict}");
    let said = verdict.to_string();
    assert!(ids.iter().all(|id| said.contains(id)), "{said}");
}

#[tokio::test]
async fn publish_before_ack_outlives_its_generator() {
    let deployment = Deployment::start().await;
    gone_in_between(&deployment, First::Publish).await;
    let _both = both_services(&deployment).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.requested, verdict.complete), (10, 10), "{verdict}");
}

async fn both_services(deployment: &Deployment) -> [Process; 2] {
    [
        deployment.run(Service::Generator, "generator", &[]).await,
        deployment.run(Service::Requestor, "requestor", &[]).await,
    ]
}

#[tokio::test]
async fn request_accepted_during_the_audit_is_not_unasked() {
    let deployment = Deployment::start().await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _busy = deployment.run(Service::Requestor, "busy", &[("REQUEST_RATE", "max")]).await;
    deployment.facts_reach(facts::RECEIVED, 2_000).await;
    // For a moment, a request whose fact is just being created may count as unasked.
    eventually("an audit under load sees no unasked request", async || {
        match audit(deployment.nats(), Duration::ZERO).await.unwrap().unasked {
            0 => Ok(()),
            unasked => Err(unasked),
        }
    })
    .await;
}
