//! Messages that no worker can handle.

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;
use cli::dead_letters::replay;
use contract::Amount;
use contract::facts::{Received, STORED};
use contract::queues::{DueRequest, REQUESTS, RESPONSES, SCHEDULES};
use jiff::SignedDuration;
use testkit::eventually::eventually;
use testkit::process::logged;
use workqueue::dead_letters::{self, ATTEMPTS, BY, Cause, Original, REASON, SUBJECT, list};
use workqueue::{Job, JobId, Publication, Queue, Trace, topology};

use crate::deployment::{Deployment, Service, admin, creation, ended, publication, succeeded};
use crate::foreign_messages::{Raw, publish_raw};
use crate::round_trips::request;

pub fn value<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.as_str())
}

/// Publishes the dead letter of a message from this queue.
pub async fn publish_dead_letter(
    deployment: &Deployment,
    queue: Queue,
    original: &Publication,
    reason: &str,
) {
    let Publication { subject, headers, body } = original;
    let dead = Original { queue, sequence: 1, subject, headers: Some(headers), body };
    let cause = Cause { reason, attempts: 1, at: workqueue::now(), by: "by hand" };
    deployment.publish(&dead.dead_letter(&cause)).await;
}

#[tokio::test]
async fn two_dead_letters_of_one_request_are_both_kept() {
    let deployment = Deployment::start().await;
    let id = JobId::new();
    let bodies = [b"not JSON".as_slice(), b"\xff\x00 nor text"];
    for body in bodies {
        let mut headers = HeaderMap::new();
        headers.insert("X-Mine", "kept");
        deployment.publish_raw(&REQUESTS.subject(id), headers, body).await;
    }
    let settings = [("INSTANCE", "generator-1")];
    let _generator = deployment.run(Service::Generator, "generator", &settings).await;
    let letters = deployment.dead_letters(2).await;
    let mut kept: Vec<&[u8]> = letters.iter().map(|(_, _, body)| body.as_slice()).collect();
    kept.sort_by_key(|body| bodies.iter().position(|sent| sent == body));
    assert_eq!(kept, bodies);
    for (subject, headers, _) in &letters {
        assert_eq!(*subject, dead_letters::subject("REQUESTS", &id.to_string()));
        assert_eq!(value(headers, SUBJECT), REQUESTS.subject(id));
        assert_eq!(value(headers, ATTEMPTS), "1");
        assert_eq!(value(headers, BY), "generator-1");
        assert_eq!(value(headers, "X-Mine"), "kept");
        assert!(value(headers, REASON).starts_with("malformed: "), "{}", value(headers, REASON));
    }
    deployment.drained(REQUESTS).await;
}

#[tokio::test]
async fn request_older_than_its_facts_becomes_a_dead_letter() {
    let deployment = Deployment::start().await;
    let mut old = request();
    old.requested_at = workqueue::now() - SignedDuration::from_hours(25);
    let expired = publication(&old);
    deployment.publish(&expired).await;
    let young = request();
    deployment.publish(&publication(&young)).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    let letters = deployment.dead_letters(1).await;
    let (_, headers, body) = &letters[0];
    assert!(value(headers, REASON).starts_with("expired: "), "{}", value(headers, REASON));
    assert_eq!(*body, expired.body);
    // The message behind it is handled.
    deployment.fact_eventually::<Received>(young.id).await;
    assert!(deployment.fact::<Received>(old.id).await.is_none());
}

#[tokio::test]
async fn job_that_always_fails_is_dead_lettered_at_its_last_attempt() {
    let deployment = Deployment::start().await;
    let failing = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "3")];
    let _generator = deployment.run(Service::Generator, "generator", &failing).await;
    let mut requestor = deployment.ask(2).await;
    let letters = deployment.dead_letters(2).await;
    for (_, headers, _) in &letters {
        assert_eq!(value(headers, ATTEMPTS), "3");
        assert!(value(headers, REASON).starts_with("failed: "), "{}", value(headers, REASON));
    }
    // The requestor names them, and its exit status shows that not all requests were stored.
    let status = ended(&mut requestor).await;
    let log = requestor.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("2 of 2 requests have no result:"), "{log}");
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.dead_lettered, verdict.lost, verdict.doubled), (2, 0, 0), "{verdict}");
    for id in verdict.ids.dead_lettered {
        assert!(log.contains(&id), "{id} is not named:\n{log}");
    }
}

#[tokio::test]
async fn newer_version_is_given_back_before_it_is_dead_lettered() {
    let deployment = Deployment::start().await;
    let mut newer = publication(&request());
    newer.headers.insert("Message-Version", "2");
    deployment.publish(&newer).await;
    let mut patient = deployment.run(Service::Generator, "patient", &[]).await;
    // It is delayed for half a minute. The test does not wait for that: it is enough that it is no dead letter yet.
    logged(&patient, "given back queue=\"REQUESTS\"").await;
    assert_eq!(deployment.depth(REQUESTS).await, 1);
    // Gracefully, because a delivery to a killed generator would count as an attempt.
    patient.terminate().unwrap();
    succeeded(&mut patient).await;
    let impatient = [("MAX_ATTEMPTS", "1")];
    let _impatient = deployment.run(Service::Generator, "impatient", &impatient).await;
    let mut again = publication(&request());
    again.headers.insert("Message-Version", "2");
    deployment.publish(&again).await;
    let letters = deployment.dead_letters(1).await;
    let (_, headers, _) = &letters[0];
    assert!(value(headers, REASON).starts_with("unsupported: "), "{}", value(headers, REASON));
}

#[tokio::test]
async fn message_that_kills_its_worker_is_dead_lettered() {
    let deployment = Deployment::start().await;
    let deadly = request();
    deployment.publish(&publication(&deadly)).await;
    deployment.publish(&creation(&deadly)).await;
    let settings = [("WORK_TIME", "1h"), ("MAX_ATTEMPTS", "3")];
    for victim in 1..=3 {
        let mut victim =
            deployment.run(Service::Generator, &format!("victim-{victim}"), &settings).await;
        eventually("the message is in flight", async || {
            let (_, metrics) = admin(&victim, "/metrics").await;
            let held = r#"generator_in_flight{queue="REQUESTS"} 1"#;
            if metrics.lines().any(|line| line == held) { Ok(()) } else { Err(metrics) }
        })
        .await;
        victim.kill().await.unwrap();
    }
    let behind = request();
    deployment.publish(&publication(&behind)).await;
    let settings = [("MAX_ATTEMPTS", "3"), ("INSTANCE", "survivor")];
    let _survivor = deployment.run(Service::Generator, "survivor", &settings).await;
    let letters = deployment.dead_letters(1).await;
    let (_, headers, body) = &letters[0];
    assert_eq!(
        value(headers, REASON),
        "exhausted: delivered 4 times and never settled; perhaps it stops every process that handles it, or its dead \
         letter could not be stored"
    );
    assert_eq!((value(headers, ATTEMPTS), value(headers, BY)), ("4", "survivor"));
    assert_eq!(*body, publication(&deadly).body);
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;
    deployment.fact_eventually::<Received>(behind.id).await;
    // Only the request behind it was ever answered.
    let responses = topology::stream_state(deployment.nats(), RESPONSES.stream).await.unwrap();
    assert_eq!(responses.state.last_sequence, 1);
    let verdict = deployment.verdict().await;
    assert_eq!(verdict.ids.dead_lettered, [deadly.id.to_string()], "{verdict}");
    assert_eq!((verdict.requested, verdict.complete, verdict.lost), (1, 0, 0), "{verdict}");
}

#[tokio::test]
async fn huge_reason_does_not_prevent_dead_lettering() {
    let deployment = Deployment::start().await;
    let large = format!(r#"{{"id": "{}"}}"#, "x".repeat(200_000));
    let subject = REQUESTS.subject(JobId::new());
    deployment.publish_raw(&subject, HeaderMap::new(), large.as_bytes()).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let letters = deployment.dead_letters(1).await;
    let (_, headers, body) = &letters[0];
    assert_eq!(body, large.as_bytes());
    assert_eq!(value(headers, ATTEMPTS), "1");
}

#[tokio::test]
async fn longest_subject_does_not_prevent_dead_lettering() {
    let deployment = Deployment::start().await;
    // The broker accepts commands of up to 4096 bytes.
    let subject = REQUESTS.subject_of(&"x".repeat(4060));
    let client = deployment.nats().client();
    client.publish(subject.clone(), "not JSON".into()).await.unwrap();
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let letters = deployment.dead_letters(1).await;
    let (_, headers, _) = &letters[0];
    assert_eq!(value(headers, SUBJECT), subject);
    assert_eq!(value(headers, ATTEMPTS), "1");
    deployment.drained(REQUESTS).await;
}

#[tokio::test]
async fn odd_subject_does_not_prevent_dead_lettering() {
    // The broker stores all of these, and a client can read them. It also stores a key with a DEL, and the key `>`, but
    // does not deliver them.
    let keys = ["*", "a*b", "a>", "a\u{1}b", "a\0b", "ä"];
    let deployment = Deployment::start().await;
    let subjects = keys.map(|key| REQUESTS.subject_of(key));
    for subject in &subjects {
        let message = Raw { subject: subject.as_bytes(), headers: b"", body: b"not JSON" };
        publish_raw(deployment.broker.port(), None, "inbox", message).await;
    }
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let letters = deployment.dead_letters(keys.len().try_into().unwrap()).await;
    let dead: BTreeSet<_> = letters.iter().map(|(_, headers, _)| value(headers, SUBJECT)).collect();
    assert_eq!(dead, subjects.iter().map(String::as_str).collect());
    deployment.drained(REQUESTS).await;
}

#[tokio::test]
async fn replayed_dead_letter_is_handled_and_removed() {
    let deployment = Deployment::start().await;
    let failing = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let mut failing = deployment.run(Service::Generator, "failing", &failing).await;
    let mut requestor = deployment.ask(3).await;
    deployment.dead_letters(3).await;
    failing.kill().await.unwrap();
    ended(&mut requestor).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let _requestor = deployment.run(Service::Requestor, "requestor", &[]).await;

    let letters = list(deployment.nats(), None).await.unwrap();
    // One by the id of its request, one by its sequence, and then all that are left.
    let one = list(deployment.nats(), Some(&letters[0].id)).await.unwrap();
    assert_eq!(replay(deployment.connection(), &one).await.unwrap(), 0);
    let sequence = letters[1].sequence.to_string();
    let another = list(deployment.nats(), Some(&sequence)).await.unwrap();
    assert_eq!(replay(deployment.connection(), &another).await.unwrap(), 0);
    let rest = list(deployment.nats(), None).await.unwrap();
    assert_eq!((one.len(), another.len(), rest.len()), (1, 1, 1));
    assert_eq!(replay(deployment.connection(), &rest).await.unwrap(), 0);

    for letter in letters {
        deployment.fact_eventually::<Received>(letter.id.parse().unwrap()).await;
    }
    let verdict = deployment.verdict().await;
    assert_eq!((verdict.complete, verdict.dead_lettered), (3, 0), "{verdict}");
    assert!(list(deployment.nats(), None).await.unwrap().is_empty());
}

#[tokio::test]
async fn number_is_the_sequence_of_a_dead_letter_and_no_id() {
    let deployment = Deployment::start().await;
    for id in ["2", "other"] {
        let subject = dead_letters::subject("REQUESTS", id);
        deployment.publish_raw(&subject, HeaderMap::new(), b"x").await;
    }
    let found = list(deployment.nats(), Some("2")).await.unwrap();
    let found: Vec<_> = found.iter().map(|letter| (letter.sequence, letter.id.as_str())).collect();
    assert_eq!(found, [(2, "other")]);
}

#[tokio::test]
async fn replay_of_no_dead_letters_succeeds() {
    let deployment = Deployment::start().await;
    let replay = |which| deployment.decoupled(["dead-letters", "replay", which]);
    assert_eq!(replay("--all").await, (Some(0), "There are no such dead letters.\n".to_owned()));
    assert_eq!(replay("7").await, (Some(2), "Error: there is no dead letter 7\n".to_owned()));
}

#[tokio::test]
async fn dead_letter_whose_replay_is_not_stored_stays() {
    let deployment = Deployment::start().await;
    let id = JobId::new();
    let mut headers = HeaderMap::new();
    // A header with an instruction that the broker cannot follow, so it refuses the message.
    headers.insert("Nats-Expected-Last-Msg-Id", "another");
    let original = Publication { subject: REQUESTS.subject(id), headers, body: "not JSON".into() };
    publish_dead_letter(&deployment, REQUESTS, &original, "failed").await;
    let letters = list(deployment.nats(), None).await.unwrap();
    assert!(letters[0].full().contains("not JSON"), "{}", letters[0].full());
    let (status, said) = deployment.decoupled(["dead-letters", "replay", "--all"]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.ends_with("Error: 1 of 1 could not be replayed\n"), "{said}");
    assert_eq!(list(deployment.nats(), None).await.unwrap().len(), 1);
}

#[tokio::test]
async fn dead_letters_are_listed_over_several_pages() {
    // A page has 100.
    const LETTERS: usize = 201;
    let deployment = Deployment::start().await;
    let run = async |words: &[&str]| {
        let (status, said) = deployment.decoupled(["dead-letters"].iter().chain(words)).await;
        assert_eq!(status, Some(0), "{said}");
        said
    };
    assert_eq!(run(&["list"]).await, "There are no dead letters.\n");
    assert_eq!(run(&["list", "--json"]).await, "[]\n");
    let id = JobId::new().to_string();
    for number in 0..LETTERS {
        let key = if number < 2 { id.as_str() } else { "garbage" };
        let subject = dead_letters::subject("REQUESTS", key);
        deployment.publish_raw(&subject, HeaderMap::new(), b"x").await;
    }
    let letters = list(deployment.nats(), None).await.unwrap();
    let lines: Vec<String> = letters.iter().map(|letter| format!("{letter}\n")).collect();
    assert_eq!(run(&["list"]).await, lines.concat());
    let json = serde_json::to_string_pretty(&letters).unwrap();
    assert_eq!(run(&["list", "--json"]).await, format!("{json}\n"));
    for (name, count) in [(id.as_str(), 2), ("garbage", LETTERS - 2), ("201", 1)] {
        assert_eq!(run(&["show", name]).await.matches("attempt ?").count(), count, "{name}");
    }
    let (status, said) = deployment.decoupled(["dead-letters", "show", "*"]).await;
    assert_eq!((status, said.as_str()), (Some(2), "Error: there is no dead letter *\n"));
}

#[tokio::test]
async fn discard_without_room_keeps_a_letter_and_continues() {
    let deployment = Deployment::start().await;
    publish_dead_letter(&deployment, REQUESTS, &publication(&request()), "failed").await;
    let garbage = dead_letters::subject("REQUESTS", "garbage");
    deployment.publish_raw(&garbage, HeaderMap::new(), b"x").await;
    // There is no room for the cancellation of the request.
    let config = topology::bucket_state(deployment.nats(), STORED).await.unwrap().config;
    deployment.nats().update_stream(Config { max_bytes: 1, ..config }).await.unwrap();
    let (status, said) = deployment.decoupled(["dead-letters", "discard", "--all"]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("it is away, or has no room"), "{said}");
    assert!(said.contains("Discarded 1 of 2."), "{said}");
    let left = list(deployment.nats(), None).await.unwrap();
    assert!(left.len() == 1 && left[0].id != "garbage", "{left:?}");
}

#[tokio::test]
async fn letter_of_a_newer_scheduled_request_is_not_discarded() {
    let deployment = Deployment::start().await;
    let id = JobId::new();
    let due = DueRequest::new(Amount::new(1, 8).unwrap(), "by hand");
    let mut newer = due.publication(id, &Trace::default()).unwrap();
    newer.headers.insert("Message-Version", "2");
    publish_dead_letter(&deployment, SCHEDULES, &newer, "unsupported: its version is 2").await;
    let (status, said) = deployment.decoupled(["dead-letters", "discard", &id.to_string()]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("use the newer program"), "{said}");
    assert_eq!(list(deployment.nats(), None).await.unwrap().len(), 1);
}
