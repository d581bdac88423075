//! Rust decodes its own messages, and rejects invalid headers, subjects and bodies.

use std::fmt;

use async_nats::{HeaderMap, HeaderValue};
use contract::facts::{Received, Stored};
use contract::queues::{self, Acknowledgment, Request, Response};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use workqueue::headers::MESSAGE_VERSION;
use workqueue::{DecodeError, Fact, Job, Priority, Trace};

use crate::arbitrary::{
    a_cancellation, a_header, a_received, a_request, a_response, a_trace, an_acknowledgment,
    an_asked, an_id, an_instance, any_json,
};
use crate::document::{address, bucket_address, golden, golden_id, headers_as_json, typed};
use crate::kinds::{assert_same_verdict, kind, kinds, request_kind, with};

fn version(text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(MESSAGE_VERSION, text.parse::<HeaderValue>().unwrap());
    headers
}

fn golden_request(headers: Option<&HeaderMap>) -> Result<Request, DecodeError> {
    let body = golden("request").to_string();
    let subject = queues::REQUESTS.subject(golden_id());
    Ok(Request::decode(&subject, headers, body.as_bytes())?.1)
}

/// The version of a message that is too new to be read.
fn newer_version<T>(read: Result<T, DecodeError>) -> Option<String> {
    match read {
        Err(DecodeError::NewerVersion { version, .. }) => Some(version),
        _ => None,
    }
}

/// The bytes of a golden file, a few of them replaced.
fn a_broken_golden_file() -> impl Strategy<Value = Vec<u8>> {
    (0..kinds().len(), any::<Index>(), 0..5usize, vec(any::<u8>(), 0..5)).prop_map(
        |(kind, place, length, others)| {
            let mut bytes = kinds()[kind].golden.to_string().into_bytes();
            let start = place.index(bytes.len());
            let end = bytes.len().min(start + length);
            bytes.splice(start..end, others);
            bytes
        },
    )
}

/// Makes the publication of the message, and checks it against the document and Rust.
fn check_message<M: Job + PartialEq + fmt::Debug>(message: &M, trace: &Trace) {
    let kind = kind(&address(|id| M::QUEUE.subject(id)));
    let publication = message.publication(message.id().unwrap(), trace).unwrap();
    let headers = headers_as_json(&publication.headers);
    assert!(kind.headers.is_valid(&headers), "{headers}");
    let body = serde_json::from_slice(&publication.body).unwrap();
    assert!(kind.allows(&body), "{body}");
    let read = M::decode(&publication.subject, Some(&publication.headers), &publication.body);
    assert_eq!(read.unwrap().1, *message);
    assert_eq!(Trace::of(Some(&publication.headers)), *trace);
}

/// Makes the publication that creates the fact, and checks it against the document and Rust.
fn check_fact<F: Fact + PartialEq + fmt::Debug>(fact: &F) {
    let kind = kind(&bucket_address(F::BUCKET));
    let publication = fact.creation(&Trace::default()).unwrap();
    let headers = headers_as_json(&publication.headers);
    assert!(kind.headers.is_valid(&headers), "{headers}");
    let body = serde_json::from_slice(&publication.body).unwrap();
    assert!(kind.allows(&body), "{body}");
    assert_eq!(F::BUCKET.key(&publication.subject), Some(fact.key().as_str()));
    assert_eq!(F::from_body(&publication.body).unwrap(), *fact);
}

#[test]
fn array_with_the_values_of_a_message_is_no_message() {
    for kind in kinds() {
        let values: Vec<_> = kind.golden.as_object().unwrap().values().cloned().collect();
        assert!((kind.read)(&values.into()).is_err());
    }
    let id = golden_id();
    let body = format!(r#"["{id}", 1, 64, "somebody", "2026-01-01T12:00:00Z"]"#);
    let read = Request::decode(&queues::REQUESTS.subject(id), None, body.as_bytes());
    assert!(matches!(read, Err(DecodeError::Body(_))), "{read:?}");
}

#[test]
fn request_is_published_in_the_lane_of_its_priority() {
    let kind = request_kind();
    for priority in Priority::ALL {
        let body = with(kind, "priority", priority.as_str().into());
        assert!(kind.allows(&body), "{body}");
        let request: Request = typed(&body);
        let published = request.publication(request.id, &Trace::default()).unwrap().subject;
        assert_eq!(published, format!("requests.{priority}.{}", request.id));
        let read = Request::decode(&published, None, body.to_string().as_bytes()).unwrap().1;
        assert_eq!(read.priority, priority);
    }
    for wrong in ["urgent", "High", ""] {
        assert_same_verdict(kind, &with(kind, "priority", wrong.into()));
    }
}

#[test]
fn request_without_a_priority_in_its_subject_is_normal() {
    let subject = format!("requests.{}", golden_id());
    let lane = queues::REQUESTS.lane(Priority::Normal);
    assert!(lane.filters().contains(&"requests.*".to_owned()));
    let read = Request::decode(&subject, None, golden("request").to_string().as_bytes());
    assert_eq!(read.unwrap().1.priority, Priority::Normal);
}

#[test]
fn message_without_a_version_is_read_as_version_1() {
    let mut other_headers = version("1");
    other_headers.insert("X-Mine", "unknown");
    let headers = [None, Some(HeaderMap::new()), Some(version("1")), Some(other_headers)];
    for headers in headers {
        let read = golden_request(headers.as_ref());
        assert_eq!(read.map(|request| request.id).unwrap(), golden_id(), "{headers:?}");
    }
}

#[test]
fn malformed_version_is_refused() {
    for text in ["0", "", "x", "-1", "+1", "01", "+2", "1.0", "1 2"] {
        let read = golden_request(Some(&version(text)));
        assert!(matches!(&read, Err(DecodeError::Version(it)) if it == text), "{text}: {read:?}");
    }
}

#[test]
fn message_of_another_queue_is_refused() {
    let body = golden("request").to_string();
    for queue in queues::ALL {
        let read = Request::decode(&queue.subject(golden_id()), None, body.as_bytes());
        assert_eq!(read.is_ok(), queue == queues::REQUESTS, "{queue:?}: {read:?}");
    }
}

proptest! {
    #[test]
    fn requests_match_the_document_and_round_trip(
        request in a_request(),
        trace in a_trace(),
    ) {
        check_message(&request, &trace);
        check_fact(&request);
    }

    #[test]
    fn idempotency_facts_match_the_document_and_round_trip(
        asked in an_asked(),
    ) {
        check_fact(&asked);
    }

    #[test]
    fn responses_match_the_document_and_round_trip(
        response in a_response(),
        trace in a_trace(),
    ) {
        check_message(&response, &trace);
    }

    #[test]
    fn acknowledgments_match_the_document_and_round_trip(
        acknowledgment in an_acknowledgment(),
        trace in a_trace(),
    ) {
        check_message(&acknowledgment, &trace);
        check_fact(&Stored::Strings(acknowledgment));
    }

    #[test]
    fn cancellations_match_the_document_and_round_trip(
        cancellation in a_cancellation(),
    ) {
        check_fact(&Stored::Cancelled(cancellation));
    }

    #[test]
    fn received_facts_match_the_document_and_round_trip(
        received in a_received(),
    ) {
        check_fact(&received);
    }

    #[test]
    fn unknown_fields_are_ignored(
        fields in btree_map("[a-z_-]{0,12}|\\PC{1,9}", any_json(), 1..4),
    ) {
        for kind in kinds() {
            let mut body = kind.golden.clone();
            for (name, value) in &fields {
                // A known field would be changed by this, which another test covers.
                body.as_object_mut().unwrap().entry(name).or_insert(value.clone());
            }
            prop_assert!(kind.allows(&body));
            let read = (kind.read)(&body);
            prop_assert_eq!(read.as_ref(), Ok(&kind.golden));
        }
    }

    #[test]
    fn newer_version_is_recognised_with_any_body(
        newer in "[2-9]|[1-9][0-9]{1,30}",
        body in vec(any::<u8>(), 0..100),
    ) {
        let headers = version(&newer);
        let read = golden_request(Some(&headers));
        prop_assert_eq!(newer_version(read), Some(newer.clone()));
        let read = Response::decode("responses.any", Some(&headers), &body);
        prop_assert_eq!(newer_version(read), Some(newer.clone()));
    }

    #[test]
    fn message_with_another_id_in_its_subject_is_refused(
        request in a_request(),
        other in an_id(),
        key in "[a-z0-9.*>-]{0,40}",
    ) {
        let id = request.id.to_string();
        let keys =
            [other.to_string(), key, id.to_uppercase(), format!("{id}."), format!(".{id}")];
        prop_assume!(!keys.contains(&id));
        let body = request.publication(request.id, &Trace::default()).unwrap().body;
        for key in keys {
            let subject = format!("requests.{key}");
            let read = Request::decode(&subject, None, &body);
            match read {
                Err(DecodeError::OtherSubject { id: named, subject: of }) => {
                    prop_assert_eq!((named, of), (request.id, subject));
                }
                other => prop_assert!(false, "{}: {:?}", subject, other),
            }
        }
    }

    #[test]
    fn decoding_arbitrary_input_does_not_panic(
        body in prop_oneof![
            vec(any::<u8>(), 0..200),
            any_json().prop_map(|body| body.to_string().into_bytes()),
            a_broken_golden_file(),
        ],
        subject in prop_oneof![
            an_instance(),
            "(requests|responses|acknowledgments)[.]?\\PC{0,40}",
            Just(queues::REQUESTS.subject(golden_id())),
        ],
        version_header in option::of(prop_oneof![a_header(), Just("1".to_owned())]),
    ) {
        let headers = version_header.map(|text| version(&text));
        let _ = Request::decode(&subject, headers.as_ref(), &body);
        let _ = Response::decode(&subject, headers.as_ref(), &body);
        let _ = Acknowledgment::decode(&subject, headers.as_ref(), &body);
        let _ = Request::from_body(&body);
        let _ = Stored::from_body(&body);
        let _ = Received::from_body(&body);
    }
}
