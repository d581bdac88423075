//! Properties that hold for any input, for each decoder of the contract. The fuzz targets run these checks on generated
//! bytes, and the tests beside this file run them on the seeds.

use std::fmt::Debug;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use contract::facts::{self, Asked, Received, Stored};
use contract::queues::{self, Acknowledgment, REQUESTS, Request, Response};
use jiff::Timestamp;
use workqueue::dead_letters::{
    self, Cause, LEFT_OUT, NotReplayable, Original, REASON, Reason, SUBJECT,
};
use workqueue::headers::{MESSAGE_VERSION, SNOOZE_ATTEMPTS, SNOOZE_SPAN, SNOOZE_UNTIL};
use workqueue::{DecodeError, Fact, Job, JobId, Publication, Trace};

const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Checks the bytes as the body of each message and fact.
pub fn bodies(data: &[u8]) {
    let request = message::<Request>(data);
    message::<Response>(data);
    let acknowledgment = message::<Acknowledgment>(data);
    // The same bytes mean the same in a queue and in a bucket.
    assert_eq!(fact::<Request>(data), request);
    let stored = fact::<Stored>(data);
    assert_eq!(stored.and_then(Stored::acknowledgment), acknowledgment);
    fact::<Received>(data);
    // The fact of a key has all fields of the request.
    if let Some(asked) = fact::<Asked>(data) {
        assert_eq!(request, Some(asked.request));
    }
}

fn message<M: Job + PartialEq + Debug>(body: &[u8]) -> Option<M> {
    // A body is decoded only under the subject that has its id.
    let id = serde_json::from_slice::<serde_json::Value>(body).ok();
    let id = id.as_ref().and_then(|body| body.get("id")?.as_str()).unwrap_or("none");
    let subject = M::QUEUE.subject_of(id);
    let (id, message) = M::decode(&subject, None, body).ok()?;
    let publication = message.publication(id, &Trace::default()).unwrap();
    let Publication { subject: published, headers, body } = publication;
    assert_eq!(published, subject);
    assert_eq!(M::decode(&published, Some(&headers), &body).unwrap().1, message);
    let other = M::QUEUE.subject(JobId::new());
    assert!(matches!(M::decode(&other, None, &body), Err(DecodeError::OtherSubject { .. })));
    Some(message)
}

fn fact<F: Fact + PartialEq + Debug>(body: &[u8]) -> Option<F> {
    let fact = F::from_body(body).ok()?;
    let creation = fact.creation(&Trace::default()).unwrap();
    assert_eq!(creation.subject, F::BUCKET.subject_of(&fact.key()));
    assert_eq!(F::from_body(&creation.body).unwrap(), fact);
    Some(fact)
}

/// Checks the bytes as a message from a queue: a line with its subject, a line for each header, an empty line, and its
/// body.
pub fn headers(data: &[u8]) {
    let Some((subject, headers, body)) = delivery(data) else { return };
    let trace = Trace::of(Some(&headers));
    version(&headers, &trace);
    // As a dead letter that a person has published by hand.
    if let Ok(replayed) = dead_letters::replay(&headers, &body, &queues::ALL) {
        assert!(is_of_a_queue(&replayed.subject), "{}", replayed.subject);
        assert_eq!(replayed.body, body);
    }
    // As a message that becomes a dead letter, for any reason.
    for reason in ["failed: badly", &body.escape_ascii().to_string(), &text(&body)] {
        let cause = Cause { reason, attempts: 3, at: Timestamp::UNIX_EPOCH, by: &subject };
        check_dead_letter_and_replay(&subject, &headers, &body, &cause);
    }
}

/// Decoding follows the contract's rules for versions, and the trace is carried on.
fn version(headers: &HeaderMap, trace: &Trace) {
    const REQUEST: &[u8] = include_bytes!("../../examples/request.json");
    let request: Request = Fact::from_body(REQUEST).unwrap();
    let named = headers.get(MESSAGE_VERSION).map(HeaderValue::as_str);
    match Request::decode(&REQUESTS.subject(request.id), Some(headers), REQUEST) {
        Ok((id, decoded)) => {
            assert!(matches!(named, None | Some("1")), "{named:?} is read as version 1");
            assert_eq!(decoded, request);
            let published = request.publication(id, trace).unwrap();
            assert_eq!(Trace::of(Some(&published.headers)), *trace);
        }
        Err(DecodeError::NewerVersion { version: text, .. }) => {
            assert_eq!(Some(text.as_str()), named);
            assert!(text != "1" && !text.starts_with('0'), "{text} counts as newer");
            assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "{text} counts as newer");
        }
        Err(DecodeError::Version(text)) => assert_eq!(Some(text.as_str()), named),
        Err(error) => panic!("{error}"),
    }
}

fn check_dead_letter_and_replay(
    subject: &str,
    headers: &HeaderMap,
    body: &Bytes,
    cause: &Cause<'_>,
) {
    let queue = REQUESTS;
    let original = Original { queue, sequence: 7, subject, headers: Some(headers), body };
    let dead = original.dead_letter(cause);
    assert_eq!(dead.body, body);
    assert!(dead_letters::key(&dead.subject).is_some(), "{}", dead.subject);
    // The broker accepts lines of 4096 bytes, and ends the connection after a longer one.
    assert!(dead.subject.len() <= 2048, "{} bytes of subject", dead.subject.len());
    assert_eq!(received(&dead.headers), dead.headers, "the broker does not deliver what was sent");
    assert!(wire(&dead.headers).len() <= 65_535 - "NATS/1.0\r\n\r\n".len());
    for (name, values) in dead.headers.iter() {
        let name: &str = name.as_ref();
        if name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-")) {
            assert_eq!(name, MESSAGE_ID, "a header with an effect on the broker");
            assert_eq!(*values, [HeaderValue::from("REQUESTS:7")]);
        }
    }
    let named = |name| dead.headers.get(name).map(HeaderValue::as_str);
    assert_eq!(named(SUBJECT), Some(subject));
    match dead_letters::replay(&dead.headers, &dead.body, &queues::ALL) {
        Ok(replayed) => {
            assert!(
                !cause.reason.starts_with(Reason::Expired.as_str()),
                "it has expired, and is replayed"
            );
            assert_eq!(replayed.subject, subject);
            if named(LEFT_OUT).is_none() {
                assert_eq!(replayed.headers, without_dropped_headers(headers));
            }
            assert_eq!(replayed.body, body);
        }
        Err(NotReplayable::Expired) => {
            assert!(
                named(REASON).is_some_and(|reason| reason.starts_with(Reason::Expired.as_str()))
            );
        }
        Err(NotReplayable::Subject(named)) => {
            assert!(!is_of_a_queue(subject), "{subject} is not replayed");
            assert_eq!(named, subject);
        }
        Err(NotReplayable::Unreadable) => panic!("it was read, and is not replayed"),
    }
}

/// Without the headers that a replay omits: the message id, those of a schedule, and those of a snooze.
fn without_dropped_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in headers.iter() {
        let low = name.to_string().to_lowercase();
        let is_dropped = low == "nats-msg-id"
            || low.starts_with("nats-schedule")
            || [SNOOZE_ATTEMPTS, SNOOZE_SPAN, SNOOZE_UNTIL].contains(&name.as_ref());
        for value in values.iter().filter(|_| !is_dropped) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

fn is_of_a_queue(subject: &str) -> bool {
    queues::ALL.iter().any(|queue| queue.key(subject).is_some_and(|key| !key.is_empty()))
}

/// The parts of a message, if the broker could deliver it and the client would accept it.
fn delivery(data: &[u8]) -> Option<(String, HeaderMap, Bytes)> {
    let end = data.windows(2).position(|end| end == b"\n\n");
    let (head, body) = end.map_or((data, &data[..0]), |end| (&data[..end], &data[end + 2..]));
    let (subject, lines) = std::str::from_utf8(head).ok()?.split_once('\n').unwrap_or_default();
    // On the wire a space ends the subject, and no token of it is empty.
    if subject.contains(char::is_whitespace) || subject.split('.').any(str::is_empty) {
        return None;
    }
    Some((subject.to_owned(), parse(lines)?, Bytes::copy_from_slice(body)))
}

/// The headers as the client parses these lines, unless it refuses them.
fn parse(lines: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.lines() {
        let (name, value) = line.split_once(':')?;
        let name: HeaderName = name.parse().ok()?;
        headers.append(name, value.trim().parse::<HeaderValue>().ok()?);
    }
    Some(headers)
}

/// The headers as a consumer reads them.
fn received(headers: &HeaderMap) -> HeaderMap {
    parse(&wire(headers)).expect("the client accepts the headers that it has sent")
}

/// The headers as they are sent, without the first and the last line.
fn wire(headers: &HeaderMap) -> String {
    headers
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}\r\n")))
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Checks the bytes as a subject, a key and an id.
pub fn subjects(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for queue in queues::ALL {
        assert_eq!(queue.key(&queue.subject_of(text)), Some(text));
        if let Some(key) = queue.key(text) {
            let lanes = queue.lanes().map(|lane| lane.subject_of(key));
            let without = format!("{}.{key}", queue.root);
            assert!(lanes.chain([without]).any(|subject| subject == text), "{text}");
        }
        assert_eq!(dead_letters::key(&dead_letters::subject(queue.stream, text)), Some(text));
    }
    for bucket in facts::ALL {
        assert_eq!(bucket.key(&bucket.subject_of(text)), Some(text));
        if let Some(key) = bucket.key(text) {
            assert_eq!(bucket.subject_of(key), text);
        }
    }
    // A subject belongs to one queue or one bucket, or is that of a dead letter.
    let queues = queues::ALL.iter().filter_map(|queue| queue.key(text));
    let buckets = facts::ALL.iter().filter_map(|bucket| bucket.key(text));
    assert!(queues.chain(buckets).chain(dead_letters::key(text)).count() <= 1, "{text}");
    if let Ok(id) = text.parse::<JobId>() {
        assert_eq!(id.to_string(), text);
        assert_eq!(REQUESTS.key(&REQUESTS.subject(id)), Some(text));
    }
    // An id in a body is parsed as strictly as one in a subject.
    let in_json = serde_json::Value::from(text);
    assert_eq!(serde_json::from_value::<JobId>(in_json).ok(), text.parse().ok());
}
