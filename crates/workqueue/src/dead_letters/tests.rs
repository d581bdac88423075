use super::*;

use crate::queue::Queue;

const AT_NOON: &str = "2026-01-01T12:00:00Z";
const QUEUES: [Queue; 1] = [Queue::new("REQUESTS", "requests")];

fn dead_letter(subject: &str, headers: &HeaderMap, reason: &str) -> Publication {
    let body = Bytes::from_static(b"\xff not JSON");
    let original =
        Original { queue: QUEUES[0], sequence: 7, subject, headers: Some(headers), body: &body };
    let at = AT_NOON.parse().unwrap();
    let dead = original.dead_letter(&Cause { reason, attempts: 3, at, by: "generator-1" });
    assert_eq!(dead.body, body);
    dead
}

#[test]
fn dead_letter_keeps_the_original_and_its_cause() {
    let mut headers = HeaderMap::new();
    headers.insert("X-Mine", "kept");
    let dead = dead_letter("requests.some-id", &headers, "malformed: no JSON");
    assert_eq!(dead.subject, "dead_letters.REQUESTS.some-id");
    for (name, value) in [
        ("X-Mine", "kept"),
        ("Nats-Msg-Id", "REQUESTS:7"),
        (REASON, "malformed: no JSON"),
        (SUBJECT, "requests.some-id"),
        (ATTEMPTS, "3"),
        (AT, AT_NOON),
        (BY, "generator-1"),
    ] {
        assert_eq!(dead.headers.get(name).map(HeaderValue::as_str), Some(value), "{name}");
    }
}

#[test]
fn headers_for_the_broker_are_kept_without_effect() {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Stream", "OTHER");
    headers.insert("nats-rollup", "all");
    headers.insert("Nats-Msg-Id", "the request's id");
    let dead = dead_letter("requests.some-id", &headers, "malformed");
    let live: Vec<&str> = dead
        .headers
        .iter()
        .map(|(name, _)| name.as_ref())
        .filter(|name| is_for_the_broker(name))
        .collect();
    assert_eq!(live, ["Nats-Msg-Id"]);
    for (name, value) in [
        ("Dead-Letter-Original-Nats-Expected-Stream", "OTHER"),
        ("Dead-Letter-Original-nats-rollup", "all"),
        ("Dead-Letter-Original-Nats-Msg-Id", "the request's id"),
    ] {
        assert_eq!(dead.headers.get(name).map(HeaderValue::as_str), Some(value), "{name}");
    }
}

#[test]
fn replay_is_the_original_without_its_message_id() {
    let mut headers = HeaderMap::new();
    headers.insert("X-Mine", "kept");
    headers.insert("traceparent", "kept, too");
    headers.insert("Nats-Expected-Stream", "REQUESTS");
    headers.insert("Dead-Letter-Reason", "of an earlier life");
    let mut with_id = headers.clone();
    with_id.insert("Nats-Msg-Id", "the request's id");
    with_id.insert("nats-msg-id", "is as good to the broker");
    let dead = dead_letter("requests.some-id", &with_id, "failed: badly");
    let replayed = replay(&dead.headers, &dead.body, &QUEUES).unwrap();
    assert_eq!(replayed.subject, "requests.some-id");
    assert_eq!(replayed.body, dead.body);
    assert_eq!(replayed.headers, headers);
}

#[test]
fn expired_and_foreign_messages_are_not_replayed() {
    let expired = dead_letter("requests.some-id", &HeaderMap::new(), "expired: long ago");
    let refused = replay(&expired.headers, &expired.body, &QUEUES).unwrap_err();
    assert_eq!(refused, NotReplayable::Expired);
    for subject in ["somewhere.else", "requests.", "requests", ""] {
        let foreign = dead_letter(subject, &HeaderMap::new(), "failed");
        let refused = replay(&foreign.headers, &foreign.body, &QUEUES).unwrap_err();
        assert_eq!(refused, NotReplayable::Subject(subject.to_owned()));
    }
}

#[test]
fn headers_without_room_are_named_instead() {
    let whole = |headers: &HeaderMap| -> usize {
        headers.iter().map(|(name, values)| length(name.as_ref(), values)).sum()
    };
    for large in [1_000, 60_000, 63_000, 65_000] {
        let mut headers = HeaderMap::new();
        headers.insert("X-Large", "x".repeat(large));
        headers.insert("X-Small", "kept");
        let dead = dead_letter("requests.some-id", &headers, &"é".repeat(1000));
        assert_eq!(dead.headers.get("X-Small").map(HeaderValue::as_str), Some("kept"));
        let left_out = dead.headers.get(LEFT_OUT).map(HeaderValue::as_str);
        assert_eq!(left_out, dead.headers.get("X-Large").is_none().then_some("X-Large"));
        assert_eq!(left_out.is_some(), large > 60_000, "{large}");
    }
    let mut many = HeaderMap::new();
    for number in 0..10_000 {
        many.insert(format!("nats-{number}").as_str(), "");
    }
    let dead = dead_letter("requests.some-id", &many, "malformed");
    let length = whole(&dead.headers) + "NATS/1.0\r\n\r\n".len();
    assert!((60_000..=MOST_IN_HEADERS).contains(&length), "{length}");
}

#[test]
fn long_subject_is_replayed_whole() {
    let long = format!("requests.{}", "é".repeat(2000));
    let dead = dead_letter(&long, &HeaderMap::new(), "malformed");
    assert_eq!(key(&dead.subject), Some("é".repeat(500).as_str()));
    let replayed = replay(&dead.headers, &dead.body, &QUEUES).unwrap();
    assert_eq!(replayed.subject, long);
}

fn unreadable(subject: &str, block: &[u8]) -> Publication {
    let mut headers = HeaderMap::new();
    headers.insert("X-Mine", "kept");
    let original = Original {
        queue: QUEUES[0],
        sequence: 7,
        subject,
        headers: Some(&headers),
        body: &Bytes::from_static(b"\xff"),
    };
    let at = AT_NOON.parse().unwrap();
    let reason = "malformed: no client can read it";
    original.unreadable(block, &Cause { reason, attempts: 1, at, by: "generator-1" })
}

#[test]
fn unreadable_headers_are_kept_byte_for_byte() {
    for block in [b"NATS/1.0\r\nno\xffthing\r\n\r\n".as_slice(), b""] {
        let dead = unreadable("requests.some-id", block);
        let kept = dead.headers.get(HEADER_BLOCK).unwrap();
        assert_eq!(BASE64_STANDARD.decode(kept).unwrap(), block);
        assert_eq!(dead.headers.get("X-Mine").map(HeaderValue::as_str), Some("kept"));
        assert_eq!(dead.headers.get(LEFT_OUT), None);
        let refused = replay(&dead.headers, &dead.body, &QUEUES).unwrap_err();
        assert_eq!(refused, NotReplayable::Unreadable);
    }
}

#[test]
fn unreadable_headers_without_room_are_cut_short() {
    let block: Vec<u8> = (0..=255).cycle().take(65_535).collect();
    let dead = unreadable("requests.some-id", &block);
    let kept = BASE64_STANDARD.decode(dead.headers.get(HEADER_BLOCK).unwrap()).unwrap();
    assert!(kept.len() > 45_000 && block.starts_with(&kept), "{} bytes", kept.len());
    let left_out = dead.headers.get(LEFT_OUT).map(HeaderValue::as_str);
    assert_eq!(left_out, Some("Dead-Letter-Header-Block, X-Mine"));
    let whole: usize =
        dead.headers.iter().map(|(name, values)| length(name.as_ref(), values)).sum();
    assert!(whole + "NATS/1.0\r\n\r\n".len() <= MOST_IN_HEADERS, "{whole}");
}

#[test]
fn dead_letter_of_any_subject_can_be_read() {
    let spaced = "requests.a\u{2003}b\u{85}c";
    let dead = dead_letter(spaced, &HeaderMap::new(), "malformed");
    assert_eq!(dead.subject, "dead_letters.REQUESTS.a_b_c");
    assert_eq!(dead.headers.get(SUBJECT).map(HeaderValue::as_str), Some(spaced));
    let refused = replay(&dead.headers, &dead.body, &QUEUES).unwrap_err();
    assert_eq!(refused, NotReplayable::Unreadable);
}

#[test]
fn long_reason_is_cut_short() {
    let dead = dead_letter("requests.some-id", &HeaderMap::new(), &"é".repeat(100_000));
    assert_eq!(dead.headers.get(REASON).unwrap().as_str(), "é".repeat(1000));
}

#[test]
fn reason_of_many_lines_becomes_one() {
    let dead = dead_letter("requests.some-id", &HeaderMap::new(), "first\r\nsecond\0");
    assert_eq!(dead.headers.get(REASON).map(HeaderValue::as_str), Some("first  second"));
}

#[test]
fn dead_letter_is_named_by_its_job_whatever_its_priority() {
    let body = Bytes::new();
    let queue = QUEUES[0].with_priorities();
    for subject in ["requests.some-id", "requests.high.some-id", "requests.normal.some-id"] {
        let original = Original { queue, sequence: 7, subject, headers: None, body: &body };
        let at = AT_NOON.parse().unwrap();
        let cause = Cause { reason: "failed", attempts: 1, at, by: "generator-1" };
        let dead = original.dead_letter(&cause);
        assert_eq!(dead.subject, "dead_letters.REQUESTS.some-id");
        let replayed = replay(&dead.headers, &dead.body, &[queue]).unwrap();
        assert_eq!(replayed.subject, subject);
    }
}

#[test]
fn reason_is_the_first_word_or_other() {
    for reason in Reason::ALL {
        assert_eq!(reason.as_str().parse(), Ok(reason));
        assert_eq!(Reason::of(&format!("{reason}: why")), reason);
        assert_eq!(Reason::of(reason.as_str()), reason);
    }
    for text in ["", ": ", "failedly: ", "Failed: ", "cursed by the moon", "käse"] {
        assert_eq!(Reason::of(text), Reason::Other, "{text}");
    }
    let error = "odd".parse::<Reason>().unwrap_err().to_string();
    let all = "malformed, unsupported, expired, failed, exhausted and other";
    assert_eq!(error, format!("'odd' is not a reason; the reasons are {all}"));
}
