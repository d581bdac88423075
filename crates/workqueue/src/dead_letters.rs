//! Dead letters: messages that cannot be handled, kept with the reason for people to look at.

use async_nats::HeaderMap;
use async_nats::HeaderValue;
use async_nats::header::NATS_MESSAGE_ID;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;

use crate::job::{Publication, Queue};

/// The name of the stream.
pub const STREAM: &str = "DEAD_LETTERS";

/// The subjects that the stream takes: `dead_letters.<stream>.<id>`.
pub const SUBJECTS: &str = "dead_letters.>";

/// Why the message was given up, for people.
pub const REASON: &str = "Dead-Letter-Reason";
/// The subject that the message had.
pub const SUBJECT: &str = "Dead-Letter-Subject";
/// How many times the message had been delivered, the last one included.
pub const ATTEMPTS: &str = "Dead-Letter-Attempts";
/// When the message was given up.
pub const AT: &str = "Dead-Letter-At";
/// The instance that gave it up.
pub const BY: &str = "Dead-Letter-By";

/// The names of the original headers for which there was no room, where there was none for all.
pub const LEFT_OUT: &str = "Dead-Letter-Left-Out";

/// All headers of an original that no client can read, in base64, byte for byte as the broker had
/// them; for as far as there is room, and empty where it had none. No other dead letter has it.
pub const HEADER_BLOCK: &str = "Dead-Letter-Header-Block";

/// The word that a reason begins with, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is not a job of its queue.
    Malformed,
    /// Its version is newer than all replicas know.
    Unsupported,
    /// It is older than the facts that guard it. It is not replayed.
    Expired,
    /// Its handler failed for good, or as often as it may.
    Failed,
    /// It was delivered as often as it may be, and never settled.
    Exhausted,
}

impl Reason {
    /// The word itself.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Exhausted => "exhausted",
        }
    }
}

/// What the names of the original headers begin with that the broker would act on.
pub const ORIGINAL: &str = "Dead-Letter-Original-";

/// The most bytes that the broker takes for all headers of a message together.
const MOST_IN_HEADERS: usize = 65_535;

/// How many bytes of what should be an id stay in the subject of a dead letter. The broker ends the
/// connection over a command of more than 4096 bytes, and a message under a subject that just fits
/// into one would become a dead letter that never does.
const LONGEST_ID: usize = 1000;

/// A message that is given up, as it was taken from its queue.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// The stream that it was taken from.
    pub stream: &'a str,
    /// Its sequence in that stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: &'a str,
    /// Its headers.
    pub headers: Option<&'a HeaderMap>,
    /// Its body.
    pub body: &'a Bytes,
}

/// Why a message is given up, after how many attempts, when, and by which instance.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    /// Why, for people. It begins with the word of a [`Reason`].
    pub reason: &'a str,
    /// How many times the message had been delivered, the last one included.
    pub attempts: u64,
    /// When.
    pub at: Timestamp,
    /// The instance.
    pub by: &'a str,
}

/// The subject of the dead letter about the job with this id, from this stream.
#[must_use]
pub fn subject(stream: &str, id: &str) -> String {
    format!("dead_letters.{stream}.{id}")
}

/// Why a dead letter with these headers was given up.
#[must_use]
pub fn reason(headers: &HeaderMap) -> &str {
    headers.get(REASON).map_or("no reason given", HeaderValue::as_str)
}

/// The id that the subject of a dead letter names.
#[must_use]
pub fn key(subject: &str) -> Option<&str> {
    subject.strip_prefix("dead_letters.")?.split_once('.').map(|(_stream, id)| id)
}

impl Original<'_> {
    /// The dead letter that this message becomes: its own bytes and headers, and the cause.
    ///
    /// The broker tells duplicates apart by the message id within a whole stream, so the id names
    /// the place that the message had in its queue; under the job's own id a second dead letter of the
    /// same job would vanish. For the same reason the original's `Nats-` headers
    /// are kept under other names: live, they would be orders to the broker.
    ///
    /// Where what should be an id is very long, the subject of the dead letter has the beginning of
    /// it. [`SUBJECT`] has all of it, so that a replay comes back to where the message was.
    #[must_use]
    pub fn dead_letter(&self, cause: &Cause<'_>) -> Publication {
        self.build(cause, None)
    }

    /// As [`Original::dead_letter`], for a message that no client can read, whose headers as a whole
    /// are in `block`. Those of its [`Original::headers`] that can be read are kept as usual.
    #[must_use]
    pub fn unreadable(&self, block: &[u8], cause: &Cause<'_>) -> Publication {
        self.build(cause, Some(block))
    }

    fn build(&self, cause: &Cause<'_>, block: Option<&[u8]>) -> Publication {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, format!("{}:{}", self.stream, self.sequence));
        headers.insert(REASON, text(cause.reason));
        headers.insert(SUBJECT, self.subject.parse().unwrap_or_else(|_| text(self.subject)));
        headers.insert(ATTEMPTS, cause.attempts.to_string());
        headers.insert(AT, cause.at.to_string());
        headers.insert(BY, text(cause.by));
        let left_out = block.and_then(|block| keep_block(block, &mut headers));
        self.keep_headers(&mut headers, left_out);
        let id = self.subject.split_once('.').map_or(self.subject, |(_root, id)| id);
        let id = id[..id.floor_char_boundary(LONGEST_ID)].trim_end_matches('.');
        // The client takes any white space for the end of a subject, and then for a broken line; the broker
        // complains of wildcards.
        let id = id.replace(|sign: char| sign.is_whitespace() || "*>".contains(sign), "_");
        Publication { subject: subject(self.stream, &id), headers, body: self.body.clone() }
    }

    /// Adds the original headers, the shortest first, for as long as there is room: the broker would
    /// refuse more, and the message would stay in its queue for ever.
    fn keep_headers(&self, headers: &mut HeaderMap, left_out: Option<&str>) {
        let mut originals: Vec<(String, &[HeaderValue], usize)> = self
            .headers
            .into_iter()
            .flat_map(HeaderMap::iter)
            .map(|(name, values)| {
                let name: &str = name.as_ref();
                let kept = if is_for_the_broker(name) || name.starts_with("Dead-Letter-") {
                    format!("{ORIGINAL}{name}")
                } else {
                    name.to_owned()
                };
                let length = length(&kept, values);
                (kept, values.as_slice(), length)
            })
            .collect();
        originals.sort_by(|a, b| (a.2, &a.0).cmp(&(b.2, &b.0)));
        let mut room = room(headers);
        let mut left_out: Vec<String> = left_out.into_iter().map(str::to_owned).collect();
        for (name, values, length) in originals {
            if length > room {
                left_out.push(name);
                continue;
            }
            room -= length;
            for value in values {
                headers.append(name.as_str(), value.clone());
            }
        }
        if !left_out.is_empty() {
            headers.insert(LEFT_OUT, text(&left_out.join(", ")));
        }
    }
}

/// Adds the header block of a message that cannot be read, or the beginning of it if there is no
/// room for all. Gives the name of what was left out then.
fn keep_block(block: &[u8], headers: &mut HeaderMap) -> Option<&'static str> {
    let room = room(headers).saturating_sub(length(HEADER_BLOCK, &[HeaderValue::new()]));
    let kept = &block[..block.len().min(room / 4 * 3)];
    headers.insert(HEADER_BLOCK, BASE64_STANDARD.encode(kept));
    (kept.len() < block.len()).then_some(HEADER_BLOCK)
}

/// How many bytes the broker takes besides these headers.
fn room(headers: &HeaderMap) -> usize {
    let taken: usize = headers.iter().map(|(name, values)| length(name.as_ref(), values)).sum();
    // The lines around them, and the one that names what is left out.
    let around = "NATS/1.0\r\n\r\n".len() + LEFT_OUT.len() + ": \r\n".len() + LONGEST;
    MOST_IN_HEADERS.saturating_sub(taken + around)
}

/// How many bytes a header with these values takes.
fn length(name: &str, values: &[HeaderValue]) -> usize {
    values.iter().map(|value| name.len() + ": \r\n".len() + value.as_str().len()).sum()
}

/// Why a dead letter cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayable {
    /// The guarantees do not hold for its job any more.
    #[error("it has expired: its facts may be gone, so it could happen a second time")]
    Expired,
    /// It names no subject of these queues.
    #[error("it does not name the subject of a queue, but '{0}'")]
    Subject(String),
    /// No client can read it.
    #[error(
        "no client can read its headers or its subject, so it would only come back; publish what \
         is right about it by hand"
    )]
    Unreadable,
}

/// The message that a dead letter was, to be published to one of `queues` again: its own bytes, headers
/// and subject.
///
/// Only its message id is another, `message_id`. Under the old one the broker would take it for the
/// message that it has seen before, and drop it.
///
/// # Errors
///
/// See [`NotReplayable`].
pub fn replay(
    headers: &HeaderMap,
    body: &Bytes,
    message_id: &str,
    queues: &[Queue],
) -> Result<Publication, NotReplayable> {
    let value = |name| headers.get(name).map_or("", HeaderValue::as_str);
    if value(REASON).starts_with(Reason::Expired.as_str()) {
        return Err(NotReplayable::Expired);
    }
    let subject = value(SUBJECT);
    // A message without headers may have white space in its subject. A replay has headers, and what
    // comes with headers is cut into words wherever there is some.
    if headers.get(HEADER_BLOCK).is_some() || subject.contains(char::is_whitespace) {
        return Err(NotReplayable::Unreadable);
    }
    if !queues.iter().any(|queue| queue.key(subject).is_some_and(|key| !key.is_empty())) {
        return Err(NotReplayable::Subject(subject.to_owned()));
    }
    let mut original = HeaderMap::new();
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        let restored = match name.strip_prefix(ORIGINAL) {
            Some(restored) => restored,
            None if name.starts_with("Dead-Letter-") || is_for_the_broker(name) => continue,
            None => name,
        };
        for value in values {
            original.append(restored, value.clone());
        }
    }
    original.insert(NATS_MESSAGE_ID, message_id);
    Ok(Publication { subject: subject.to_owned(), headers: original, body: body.clone() })
}

/// Whether the broker acts on a header of this name. It looks without regard to case.
pub(crate) fn is_for_the_broker(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
}

/// How many characters a text in a header may have.
const LONGEST: usize = 1000;

/// Any text as the value of a header, which is one line, and short: an error may quote all of what
/// is wrong, and the original is kept anyway.
fn text(text: &str) -> HeaderValue {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let line: String = line.take(LONGEST).collect();
    line.trim().parse().unwrap_or_else(|_| HeaderValue::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_NOON: &str = "2026-01-01T12:00:00Z";
    const QUEUES: [Queue; 1] = [Queue::new("REQUESTS", "requests")];

    fn dead_letter(subject: &str, headers: &HeaderMap, reason: &str) -> Publication {
        let body = Bytes::from_static(b"\xff not JSON");
        let original = Original {
            stream: "REQUESTS",
            sequence: 7,
            subject,
            headers: Some(headers),
            body: &body,
        };
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
    fn headers_for_the_broker_are_kept_but_not_live() {
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
    fn replay_is_the_original_under_another_message_id() {
        let mut headers = HeaderMap::new();
        headers.insert("X-Mine", "kept");
        headers.insert("traceparent", "kept, too");
        headers.insert("Nats-Expected-Stream", "REQUESTS");
        headers.insert("Nats-Msg-Id", "the request's id");
        headers.insert("Dead-Letter-Reason", "of an earlier life");
        let dead = dead_letter("requests.some-id", &headers, "failed: badly");
        let replayed = replay(&dead.headers, &dead.body, "a new id", &QUEUES).unwrap();
        assert_eq!(replayed.subject, "requests.some-id");
        assert_eq!(replayed.body, dead.body);
        headers.insert("Nats-Msg-Id", "a new id");
        assert_eq!(replayed.headers, headers);
    }

    #[test]
    fn expired_and_foreign_messages_are_not_replayed() {
        let expired = dead_letter("requests.some-id", &HeaderMap::new(), "expired: long ago");
        let refused = replay(&expired.headers, &expired.body, "a new id", &QUEUES).unwrap_err();
        assert_eq!(refused, NotReplayable::Expired);
        for subject in ["somewhere.else", "requests.", "requests", ""] {
            let foreign = dead_letter(subject, &HeaderMap::new(), "failed");
            let refused = replay(&foreign.headers, &foreign.body, "a new id", &QUEUES).unwrap_err();
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
        let replayed = replay(&dead.headers, &dead.body, "a new id", &QUEUES).unwrap();
        assert_eq!(replayed.subject, long);
    }

    fn unreadable(subject: &str, block: &[u8]) -> Publication {
        let mut headers = HeaderMap::new();
        headers.insert("X-Mine", "kept");
        let original = Original {
            stream: "REQUESTS",
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
            let refused = replay(&dead.headers, &dead.body, "a new id", &QUEUES).unwrap_err();
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
        let refused = replay(&dead.headers, &dead.body, "a new id", &QUEUES).unwrap_err();
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
}
