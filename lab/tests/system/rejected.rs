//! Messages that break the contract: each becomes a dead letter, unchanged, with a reason that a person understands, and
//! does not block later messages.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config;
use contract::facts::{REQUESTED, Received, Stored};
use contract::queues::{ACKNOWLEDGMENTS, REQUESTS, RESPONSES, Request};
use serde_json::{Value, json};
use testkit::process::logged;
use workqueue::dead_letters::{self, ATTEMPTS, LEFT_OUT, ORIGINAL, REASON, SUBJECT};
use workqueue::{JobId, Publication, Queue, now};

use crate::dead_letters::value;
use crate::deployment::{
    Deployment, PATIENT, Service, creation, ended, publication, ready, succeeded,
};
use crate::foreign_messages::{acknowledgment, response};
use crate::round_trips::request;

/// The name of a fault, the change that makes it from a healthy message, and the reason in its dead letter.
type Case = (&'static str, fn(&mut Publication), &'static str);

/// The case of a message.
const CASE: &str = "X-Case";

fn edit(publication: &mut Publication, change: impl FnOnce(&mut Value)) {
    let mut body = serde_json::from_slice(&publication.body).unwrap();
    change(&mut body);
    publication.body = serde_json::to_vec(&body).unwrap().into();
}

fn set(publication: &mut Publication, field: &str, value: Value) {
    edit(publication, |body| body[field] = value);
}

fn unset(publication: &mut Publication, field: &str) {
    edit(publication, |body| drop(body.as_object_mut().unwrap().remove(field).unwrap()));
}

fn amount(publication: &mut Publication, count: u32, length: u32) {
    set(publication, "count", json!(count));
    set(publication, "length", json!(length));
}

fn version(publication: &mut Publication, version: &str) {
    publication.headers.insert("Message-Version", version);
}

/// Faults of any message.
const ANY: [Case; 15] = [
    ("no JSON", |it| it.body = "{\"id\": ".into(), "its body is not a message: EOF while parsing"),
    ("nothing", |it| it.body = "".into(), "its body is not a message: it is not a JSON object"),
    ("no text", |it| it.body = "{\"\u{0}".into(), "its body is not a message: control character"),
    (
        "a list",
        |it| it.body = "[1, 2]".into(),
        "its body is not a message: it is not a JSON object",
    ),
    ("an id that is a number", |it| set(it, "id", json!(7)), "invalid type: integer `7`"),
    ("an id that is no UUID", |it| set(it, "id", json!("x")), "'x' is not a UUID of version 7"),
    ("no id", |it| unset(it, "id"), "missing field `id`"),
    (
        "an id that is not its subject's",
        |it| set(it, "id", json!(JobId::new())),
        "its body has the id ",
    ),
    ("no time", |it| unset(it, "requested_at"), "missing field `requested_at`"),
    (
        "a time that is a number",
        |it| set(it, "requested_at", json!(1)),
        "invalid type: integer `1`",
    ),
    ("a time that is none", |it| set(it, "requested_at", json!("noon")), "failed to parse"),
    (
        "a time to come",
        |it| set(it, "requested_at", json!("9999-01-01T00:00:00Z")),
        "asked at 9999-01-01T00:00:00Z, which is more than an hour ahead of ",
    ),
    (
        "a version that is a word",
        |it| version(it, "one"),
        "its version is 'one', which is not a whole number from 1",
    ),
    ("version 0", |it| version(it, "0"), "its version is '0', which is not a whole number from 1"),
    ("an empty version", |it| version(it, ""), "its version is '', which is not a whole number"),
];

/// Malformed strings of a response.
const STRINGS: [Case; 11] = [
    ("no values", |it| unset(it, "values"), "missing field `values`"),
    ("values that are one", |it| set(it, "values", json!("a")), "invalid type: string \"a\""),
    ("a value that is none", |it| set(it, "values", json!([null])), "invalid type: null"),
    ("not a single value", |it| set(it, "values", json!([])), "0 strings: 1 to 1000 are allowed"),
    (
        "too many values",
        |it| set(it, "values", json!(vec!["a"; 1001])),
        "1001 strings: 1 to 1000 are allowed",
    ),
    (
        "an empty value",
        |it| set(it, "values", json!([""])),
        "0 characters in a string: 1 to 1024 are allowed",
    ),
    (
        "a value that is too long",
        |it| set(it, "values", json!(["a".repeat(1025)])),
        "1025 characters in a string: 1 to 1024 are allowed",
    ),
    (
        "too many characters in all",
        |it| set(it, "values", json!(vec!["a".repeat(1024); 65])),
        "65 strings of 1024 characters: 65536 characters in all",
    ),
    (
        "values of different lengths",
        |it| set(it, "values", json!(["aa", "b"])),
        "the string at 1 is not as long as the first",
    ),
    (
        "a character that no generator makes",
        |it| set(it, "values", json!(["aa", "a-"])),
        "the string at 1 has characters other than A-Z, a-z and 0-9",
    ),
    ("no generator", |it| unset(it, "generator"), "missing field `generator`"),
];

/// Publishes each case with a healthy message behind it, and expects a dead letter and a result. All of these requests
/// are accepted.
async fn each_is_rejected(
    queue: Queue,
    healthy: impl Fn(&Request) -> Publication,
    cases: impl IntoIterator<Item = Case>,
) {
    let deployment = Deployment::with(&PATIENT).await;
    let mut sent = Vec::new();
    let mut behind = Vec::new();
    for (what, change, reason) in cases {
        let wrong = request();
        let mut publication = healthy(&wrong);
        change(&mut publication);
        publication.headers.insert(CASE, what);
        deployment.publish(&publication).await;
        deployment.publish(&accepted(&wrong, queue.key(&publication.subject).unwrap())).await;
        let right = request();
        if queue == ACKNOWLEDGMENTS {
            for request in [&wrong, &right] {
                let stored = Stored::Strings(acknowledgment(request, "aaaa"));
                deployment.publish(&creation(&stored)).await;
            }
        }
        deployment.publish(&healthy(&right)).await;
        deployment.publish(&creation(&right)).await;
        behind.push(right.id);
        sent.push((what, publication, reason));
    }
    let _both = [
        deployment.run(Service::Generator, "generator", &[]).await,
        deployment.run(Service::Requestor, "requestor", &[]).await,
    ];
    for id in &behind {
        deployment.fact_eventually::<Received>(*id).await;
    }
    let letters = deployment.dead_letters(sent.len().try_into().unwrap()).await;
    for (what, original, reason) in &sent {
        let letter = letters.iter().find(|(_, headers, _)| value(headers, CASE) == *what);
        let (subject, headers, body) = letter.unwrap_or_else(|| panic!("{what} is missing"));
        let why = value(headers, REASON);
        assert!(why.starts_with("malformed: ") && why.contains(reason), "{what}: {why}");
        assert_eq!(*body, original.body, "{what}");
        let key = queue.key(&original.subject).unwrap();
        assert_eq!(*subject, dead_letters::subject(queue.stream, key), "{what}");
        assert_eq!(value(headers, SUBJECT), original.subject, "{what}");
        assert_eq!(value(headers, ATTEMPTS), "1", "{what}: it was tried again");
        for (name, values) in original.headers.iter() {
            assert_eq!(value(headers, name.as_ref()), values[0].as_str(), "{what}: {name}");
        }
    }
    deployment.drained(queue).await;
    let verdict = deployment.verdict().await;
    let counted = (verdict.complete, verdict.dead_lettered, verdict.lost, verdict.doubled);
    assert_eq!(counted, (behind.len(), sent.len(), 0, 0), "{verdict}");
    assert_eq!(verdict.requested, behind.len() + sent.len(), "{verdict}");
}

/// The fact that a request with this id was accepted.
fn accepted(request: &Request, key: &str) -> Publication {
    Publication { subject: REQUESTED.subject_of(key), ..creation(request) }
}

#[tokio::test]
async fn malformed_request_is_a_dead_letter() {
    let own: [Case; 13] = [
        ("no count", |it| unset(it, "count"), "missing field `count`"),
        ("a count in words", |it| set(it, "count", json!("ten")), "invalid type: string \"ten\""),
        ("half a string", |it| set(it, "count", json!(0.5)), "invalid type: floating point `0.5`"),
        ("less than none", |it| set(it, "count", json!(-1)), "invalid value: integer `-1`"),
        ("no strings", |it| amount(it, 0, 1), "0 strings: 1 to 1000 are allowed"),
        ("too many strings", |it| amount(it, 1001, 1), "1001 strings: 1 to 1000 are allowed"),
        ("empty strings", |it| amount(it, 1, 0), "0 characters in a string: 1 to 1024"),
        ("too long strings", |it| amount(it, 1, 1025), "1025 characters in a string: 1 to"),
        (
            "one string too many",
            |it| amount(it, 65, 1024),
            "65 strings of 1024 characters: 65536 characters in all",
        ),
        ("no requestor", |it| unset(it, "requestor"), "missing field `requestor`"),
        ("a requestor that is a list", |it| set(it, "requestor", json!([])), "invalid type"),
        (
            "a subject that names no UUID",
            |it| it.subject = REQUESTS.subject_of("mine"),
            "and its subject is requests.normal.mine",
        ),
        (
            "a key that is no UUID on both",
            |it| {
                it.subject = REQUESTS.subject_of("yours");
                set(it, "id", json!("yours"));
            },
            "'yours' is not a UUID of version 7 in lower case with hyphens",
        ),
    ];
    each_is_rejected(REQUESTS, publication, ANY.into_iter().chain(own)).await;
}

#[tokio::test]
async fn malformed_response_is_a_dead_letter() {
    let healthy = |request: &Request| publication(&response(request, "aaaa"));
    each_is_rejected(RESPONSES, healthy, ANY.into_iter().chain(STRINGS)).await;
}

#[tokio::test]
async fn malformed_acknowledgment_is_a_dead_letter() {
    let own: [Case; 2] = [
        ("no requestor", |it| unset(it, "requestor"), "missing field `requestor`"),
        ("not stored at any time", |it| unset(it, "stored_at"), "missing field `stored_at`"),
    ];
    let healthy = |request: &Request| publication(&acknowledgment(request, "aaaa"));
    each_is_rejected(ACKNOWLEDGMENTS, healthy, ANY.into_iter().chain(STRINGS).chain(own)).await;
}

#[tokio::test]
async fn broker_headers_of_dead_letters_are_kept_without_effect() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut taken = Vec::new();
    for (order, value) in [
        ("Nats-Expected-Stream", "REQUESTS"),
        ("nats-expected-stream", "REQUESTS"),
        ("Nats-Expected-Last-Sequence", "2"),
        ("Nats-Expected-Last-Msg-Id", "Nats-Expected-Last-Sequence"),
        ("Nats-Expected-Last-Subject-Sequence", "0"),
        ("Nats-Msg-Id", "one of its own"),
        ("Nats-Rollup", "all"),
        ("Nats-TTL", "1s"),
        ("Nats-Incr", "+1"),
        ("Nats-Schedule", "@at 2100-01-01T00:00:00Z"),
        ("Nats-Schedule-Target", "requests.another"),
        ("Nats-Marker-Reason", "Purge"),
        ("Nats-Batch-Id", "batch"),
        ("KV-Operation", "PURGE"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", order);
        headers.insert(order, value);
        let publication = Publication {
            subject: REQUESTS.subject(JobId::new()),
            headers,
            body: order.to_owned().into(),
        };
        // The broker refuses some headers, so they cannot get into a queue.
        if deployment.publish_unless_full(&publication).await {
            taken.push((order, value, publication));
        }
    }
    let orders: Vec<&str> = taken.iter().map(|(order, ..)| *order).collect();
    let conditions = orders.iter().filter(|order| order.to_lowercase().contains("expected"));
    assert_eq!(conditions.count(), 5, "{orders:?}");
    let behind = request();
    deployment.publish(&publication(&behind)).await;
    let _both = [
        deployment.run(Service::Generator, "generator", &[]).await,
        deployment.run(Service::Requestor, "requestor", &[]).await,
    ];
    deployment.fact_eventually::<Received>(behind.id).await;
    let letters = deployment.dead_letters(taken.len().try_into().unwrap()).await;
    for (order, original, publication) in &taken {
        let letter = letters.iter().find(|(.., body)| body == order.as_bytes());
        let (_, headers, _) = letter.unwrap_or_else(|| panic!("{order} is missing"));
        assert_eq!(value(headers, SUBJECT), publication.subject, "{order}");
        if order.to_ascii_lowercase().starts_with("nats-") {
            assert_eq!(value(headers, &format!("{ORIGINAL}{order}")), *original);
        } else {
            assert_eq!(value(headers, order), *original);
        }
    }
}

#[tokio::test]
async fn largest_message_fits_into_a_dead_letter() {
    let deployment = Deployment::with(&PATIENT).await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    let limit = usize::try_from(stream.cached_info().config.max_message_size).unwrap();
    let mut publication = Publication {
        subject: REQUESTS.subject(JobId::new()),
        headers: HeaderMap::new(),
        body: "x".repeat(limit + 1).into(),
    };
    assert!(!deployment.publish_unless_full(&publication).await, "it is too large by one byte");
    publication.body = publication.body.slice(1..);
    deployment.publish(&publication).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let letters = deployment.dead_letters(1).await;
    assert_eq!(letters[0].2, publication.body);
}

#[tokio::test]
async fn message_with_the_most_headers_is_a_dead_letter() {
    let deployment = Deployment::with(&PATIENT).await;
    let subject = REQUESTS.subject(JobId::new());
    let mut headers = HeaderMap::new();
    headers.insert("X-Small", "kept");
    headers.insert("X-Large", "x".repeat(65_000));
    deployment.publish_raw(&subject, headers, b"not JSON").await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let letters = deployment.dead_letters(1).await;
    let (_, headers, body) = &letters[0];
    assert_eq!(body, b"not JSON");
    assert_eq!(value(headers, "X-Small"), "kept");
    assert_eq!(value(headers, LEFT_OUT), "X-Large");
}

#[tokio::test]
async fn forged_snooze_delays_no_message() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut forever = publication(&request());
    let id = REQUESTS.key(&forever.subject).unwrap().parse().unwrap();
    forever.headers.insert("Snooze-Attempts", "0");
    forever.headers.insert("Snooze-Until", "9999-01-01T00:00:00Z");
    let mut nameless = forever.clone();
    nameless.subject = REQUESTS.subject_of("mine");
    nameless.headers.insert("Snooze-Until", (now() + Duration::from_hours(24)).to_string());
    deployment.publish(&forever).await;
    deployment.publish(&nameless).await;
    let _both = [
        deployment.run(Service::Generator, "generator", &[]).await,
        deployment.run(Service::Requestor, "requestor", &[]).await,
    ];
    deployment.fact_eventually::<Received>(id).await;
    let letters = deployment.dead_letters(1).await;
    assert_eq!(value(&letters[0].1, SUBJECT), nameless.subject);
}

#[tokio::test]
async fn requestor_whose_requests_are_rejected_stops_at_once() {
    let deployment = Deployment::with(&PATIENT).await;
    // A requestor that does not heed the stop would go on until the end of the drain.
    let patient = [("REQUEST_RATE", "max"), ("DRAIN_TIMEOUT", "1h")];
    let mut requestor = deployment.run(Service::Requestor, "requestor", &patient).await;
    ready(&requestor).await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    let config = stream.cached_info().config.clone();
    deployment.nats().update_stream(Config { sealed: true, ..config }).await.unwrap();
    logged(&requestor, "the broker rejects requests; trying again").await;
    requestor.terminate().unwrap();
    succeeded(&mut requestor).await;
}

#[tokio::test]
async fn requestor_gives_up_requests_that_its_queue_never_accepts() {
    let deployment = Deployment::with(&PATIENT).await;
    let stream = deployment.nats().get_stream(REQUESTS.stream).await.unwrap();
    let config = stream.cached_info().config.clone();
    deployment.nats().update_stream(Config { max_message_size: 50, ..config }).await.unwrap();
    let mut requestor = deployment.ask(2).await;
    let status = ended(&mut requestor).await;
    let log = requestor.log_text();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("2 of 2 requests have no result:"), "{log}");
    assert!(log.contains(" too large: message size exceeds maximum allowed"), "{log}");
}

#[tokio::test]
async fn request_with_a_huge_trace_is_not_retried() {
    let deployment = Deployment::with(&PATIENT).await;
    let mut publication = publication(&request());
    publication.headers = HeaderMap::new();
    publication.headers.insert("traceparent", "x".repeat(65_500));
    deployment.publish(&publication).await;
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let letters = deployment.dead_letters(1).await;
    let (_, headers, body) = &letters[0];
    let reason = value(headers, REASON);
    assert!(reason.starts_with("failed: too large: header size exceeds maximum"), "{reason}");
    assert_eq!(value(headers, ATTEMPTS), "1");
    assert_eq!(*body, publication.body);
}
