//! The messages that Rust publishes, their headers, and the examples.

use async_nats::HeaderMap;
use bytes::Bytes;
use contract::facts::{Asked, Received, Stored};
use contract::queues::{Acknowledgment, DueRequest, Request, Response};
use contract::{facts, queues};
use jiff::Timestamp;
use serde_json::{Value, json};
use workqueue::headers::MESSAGE_VERSION;
use workqueue::{Fact, Job, Publication, Trace, dead_letters};

use crate::document::{
    address, at, bucket_address, dead_letters_address, golden, golden_id, headers_as_json, keys,
    message, schema, texts, typed,
};

const TRACEPARENT: &str = "00-a6a040c6aed8ff2483d6fbe7802e13cf-7a3fb503641c430e-01";

/// A trace with all headers of a trace.
fn trace() -> Trace {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", TRACEPARENT);
    headers.insert("tracestate", "vendor=opaque");
    Trace::of(Some(&headers))
}

/// All publications of Rust for the golden request, each with its address.
fn publications(trace: &Trace) -> Vec<(String, Publication)> {
    let request: Request = typed(&golden("request"));
    let response: Response = typed(&golden("response"));
    let acknowledgment: Acknowledgment = typed(&golden("acknowledgment"));
    let received: Received = typed(&golden("received"));
    let asked: Asked = typed(&golden("asked"));
    vec![
        (address(|id| queues::SCHEDULES.subject(id)), due(trace)),
        (
            address(|id| queues::REQUESTS.subject(id)),
            request.publication(request.id, trace).unwrap(),
        ),
        (
            address(|id| queues::RESPONSES.subject(id)),
            response.publication(response.id, trace).unwrap(),
        ),
        (
            address(|id| queues::ACKNOWLEDGMENTS.subject(id)),
            acknowledgment.publication(acknowledgment.id, trace).unwrap(),
        ),
        (bucket_address(facts::IDEMPOTENCY), asked.creation(trace).unwrap()),
        (bucket_address(facts::REQUESTED), request.creation(trace).unwrap()),
        (bucket_address(facts::STORED), Stored::Strings(acknowledgment).creation(trace).unwrap()),
        (bucket_address(facts::RECEIVED), received.creation(trace).unwrap()),
    ]
}

/// The golden request that is due, as the broker publishes it.
fn due(trace: &Trace) -> Publication {
    let due: DueRequest = typed(&golden("due_request"));
    let mut fired = due.publication(golden_id(), trace).unwrap();
    fired.headers.insert("Nats-Scheduler", format!("schedules.once.{}", golden_id()));
    fired.headers.insert("Nats-Schedule-Next", "purge");
    fired
}

const CAUSE: dead_letters::Cause<'_> = dead_letters::Cause {
    reason: "malformed: no JSON",
    attempts: 1,
    at: Timestamp::UNIX_EPOCH,
    by: "generator-1",
};

fn original<'a>(headers: &'a HeaderMap, body: &'a Bytes) -> dead_letters::Original<'a> {
    dead_letters::Original {
        queue: queues::REQUESTS,
        sequence: 7,
        subject: "requests.42",
        headers: Some(headers),
        body,
    }
}

fn dead_letter(headers: &HeaderMap) -> Publication {
    original(headers, &Bytes::from_static(b"\xff not JSON")).dead_letter(&CAUSE)
}

fn unreadable(headers: &HeaderMap) -> Publication {
    original(headers, &Bytes::new()).unreadable(b"nothing that is a header", &CAUSE)
}

#[test]
fn publications_match_the_document() {
    for trace in [Trace::default(), trace()] {
        for (address, publication) in publications(&trace) {
            let message = message(&address);
            let asked: Asked = typed(&golden("asked"));
            let subject = address.replace("{id}", &golden_id().to_string());
            let subject = subject.replace("{priority}", "normal");
            assert_eq!(publication.subject, subject.replace("{key}", &asked.key.token()));
            let headers = headers_as_json(&publication.headers);
            schema(&format!("{message}/headers"))
                .validate(&headers)
                .unwrap_or_else(|error| panic!("headers of {address}: {error}"));
            let body = serde_json::from_slice(&publication.body).unwrap();
            schema(&format!("{message}/payload"))
                .validate(&body)
                .unwrap_or_else(|error| panic!("body of {address}: {error}"));
        }
    }
}

#[test]
fn publications_have_the_required_headers_and_the_trace() {
    let described = |address: &str| {
        let reference = at(&format!("{}/headers", message(address)))["$ref"].as_str().unwrap();
        at(reference.strip_prefix('#').unwrap())
    };
    for (address, publication) in publications(&Trace::default()) {
        let headers = headers_as_json(&publication.headers);
        assert_eq!(keys(&headers), texts(&described(&address)["required"]), "{address}");
    }
    for (address, publication) in publications(&trace()) {
        let headers = headers_as_json(&publication.headers);
        assert_eq!(keys(&headers), keys(&described(&address)["properties"]), "{address}");
    }

    let described = described(&dead_letters_address());
    let headers = headers_as_json(&dead_letter(&HeaderMap::new()).headers);
    assert_eq!(keys(&headers), texts(&described["required"]));
    let mut of_original = HeaderMap::new();
    of_original.insert("traceparent", TRACEPARENT);
    of_original.insert("tracestate", "vendor=opaque");
    of_original.insert("X-Too-Large", "x".repeat(65_000));
    let headers = headers_as_json(&unreadable(&of_original).headers);
    assert_eq!(keys(&headers), keys(&described["properties"]));
    assert!(schema(&format!("{}/headers", message(&dead_letters_address()))).is_valid(&headers));
}

#[test]
fn dead_letters_match_the_document() {
    let address = dead_letters_address();
    let schema = schema(&format!("{}/headers", message(&address)));
    for (_, mut publication) in publications(&trace()) {
        publication.headers.insert("Nats-Msg-Id", "of another publisher");
        let dead = dead_letter(&publication.headers);
        assert_eq!(dead.subject, "dead_letters.REQUESTS.42");
        let headers = headers_as_json(&dead.headers);
        assert!(schema.is_valid(&headers), "{headers}");
        let described = at("/components/schemas/DeadLetterHeaders/description").as_str().unwrap();
        assert!(described.contains(&format!("`{}`", dead_letters::ORIGINAL)));
        assert!(keys(&headers).iter().any(|name| name.starts_with(dead_letters::ORIGINAL)));
    }
}

#[test]
fn document_refuses_missing_and_changed_headers() {
    let dead_letter = (dead_letters_address(), dead_letter(&HeaderMap::new()));
    for (address, publication) in publications(&trace()).into_iter().chain([dead_letter]) {
        let schema = schema(&format!("{}/headers", message(&address)));
        let headers = headers_as_json(&publication.headers);
        for name in keys(&headers) {
            // A trace is copied unchanged, whatever it is. The headers of the dead letter here are only for people.
            let free = [
                "traceparent",
                "tracestate",
                dead_letters::REASON,
                dead_letters::SUBJECT,
                dead_letters::BY,
            ];
            let mut without = headers.clone();
            without.as_object_mut().unwrap().remove(name);
            assert_eq!(schema.is_valid(&without), name.starts_with("trace"), "{address}: {name}");
            let mut other = headers.clone();
            other[name] = json!("?");
            assert_eq!(schema.is_valid(&other), free.contains(&name), "{address}: {name}");
        }
    }
    for bucket in facts::ALL {
        let message = message(&bucket_address(bucket));
        let headers = json!({
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Nats-Msg-Id": golden_id().to_string(),
        });
        assert!(!schema(&format!("{message}/headers")).is_valid(&headers), "{bucket:?}");
    }
}

#[test]
fn document_has_the_version_that_rust_writes() {
    let headers = at("/components/schemas/MessageHeaders/properties");
    assert_eq!(headers[MESSAGE_VERSION]["const"], Request::VERSION.to_string());
    let document = at("/info/version").as_str().unwrap();
    assert_eq!(document.split('.').next(), Some(Request::VERSION.to_string().as_str()));
}

#[test]
fn examples_in_the_document_are_the_golden_files() {
    let mut without_state = HeaderMap::new();
    without_state.insert("traceparent", TRACEPARENT);
    for (address, publication) in publications(&Trace::of(Some(&without_state))) {
        let message = message(&address);
        let body: Value = serde_json::from_slice(&publication.body).unwrap();
        let examples = at(&format!("{message}/examples")).as_array().unwrap();
        let example = examples.first().expect("each message has an example");
        assert_eq!(example["headers"], headers_as_json(&publication.headers), "{message}");
        assert_eq!(example["payload"], body, "{message}");
    }
}

#[test]
fn golden_files_describe_one_request() {
    let request: Request = typed(&golden("request"));
    let response: Response = typed(&golden("response"));
    let acknowledgment: Acknowledgment = typed(&golden("acknowledgment"));
    let received: Received = typed(&golden("received"));
    assert_eq!([response.id, acknowledgment.id, received.id], [request.id; 3]);
    let asked: Asked = typed(&golden("asked"));
    assert_eq!(asked.request, request);
    assert_eq!([response.requested_at, acknowledgment.requested_at], [request.requested_at; 2]);
    let stored =
        Acknowledgment::new(response.clone(), &acknowledgment.requestor, acknowledgment.stored_at);
    assert_eq!(acknowledgment, stored);
    assert_eq!(received.values, acknowledgment.values);
    assert_eq!(response.values.as_slice().len(), request.amount.count() as usize);
    assert_eq!(response.values.as_slice()[0].len(), request.amount.length() as usize);
    let times = [
        request.requested_at,
        response.generated_at,
        acknowledgment.stored_at,
        received.received_at,
    ];
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
}
