//! Dead letters: messages that cannot be handled, kept with the reason for people to look at.
//!
//! A [`DeadLetter`] is on the broker. An operator can [`list`] all of them or read a [`page`] of a [`Selection`],
//! [`DeadLetter::replay`] those whose cause is fixed, and [`DeadLetter::discard`] those that are not needed any more.
//! An [`Original`] is the message before, and [`replay()`] restores it. A reason begins with the word of a [`Reason`].

mod letter;
mod reason;
mod replay;
mod selection;
#[cfg(test)]
mod tests;

pub use letter::{DeadLetter, NotRemoved, list, of_job};
pub use reason::{InvalidReason, Reason};
pub use replay::{NotReplayable, ReplayError, replay};
pub use selection::{MOST_READ, Page, Selection, count, page};

use async_nats::HeaderMap;
use async_nats::HeaderValue;
use async_nats::header::NATS_MESSAGE_ID;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use jiff::Timestamp;

use crate::job::Publication;
use crate::queue::Queue;

/// The name of the stream.
pub const STREAM: &str = "DEAD_LETTERS";

/// The subjects that the stream takes: `dead_letters.<stream>.<id>`.
pub const SUBJECTS: &str = "dead_letters.>";

/// The reason of the dead letter, for people.
pub const REASON: &str = "Dead-Letter-Reason";
/// The subject that the message had.
pub const SUBJECT: &str = "Dead-Letter-Subject";
/// How many times the message had been delivered, the last one included.
pub const ATTEMPTS: &str = "Dead-Letter-Attempts";
/// When the message became a dead letter.
pub const AT: &str = "Dead-Letter-At";
/// The instance that dead-lettered it.
pub const BY: &str = "Dead-Letter-By";

/// The names of the original headers that were left out for lack of room.
pub const LEFT_OUT: &str = "Dead-Letter-Left-Out";

/// All headers of an original that no client can read, in base64, byte for byte, as far as there is room. Only such a
/// dead letter has it. It is empty if the original had no headers.
pub const HEADER_BLOCK: &str = "Dead-Letter-Header-Block";

/// The prefix for the names of original headers that would instruct the broker.
pub const ORIGINAL: &str = "Dead-Letter-Original-";

/// The most bytes that the broker accepts for all headers of a message together.
const MOST_IN_HEADERS: usize = 65_535;

/// The most bytes of an id, valid or not, in the subject of a dead letter. The broker closes the connection at a
/// command of more than 4096 bytes. The subject of a message may just fit into one, and that of its dead letter is
/// longer.
const LONGEST_ID: usize = 1000;

/// A message that becomes a dead letter, as it was taken from its queue.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// The queue that it was taken from.
    pub queue: Queue,
    /// Its sequence in the stream of that queue.
    pub sequence: u64,
    /// Its subject.
    pub subject: &'a str,
    /// Its headers.
    pub headers: Option<&'a HeaderMap>,
    /// Its body.
    pub body: &'a Bytes,
}

/// Why a message becomes a dead letter, after how many attempts, when, and by which instance.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    /// The reason, for people. It begins with the word of a [`Reason`].
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

/// The reason of a dead letter with these headers.
#[must_use]
pub fn reason(headers: &HeaderMap) -> &str {
    headers.get(REASON).map_or("no reason given", HeaderValue::as_str)
}

/// The id that the subject of a dead letter names.
#[must_use]
pub fn key(subject: &str) -> Option<&str> {
    split(subject).map(|(_stream, id)| id)
}

/// The stream and the id that the subject of a dead letter names.
fn split(subject: &str) -> Option<(&str, &str)> {
    subject.strip_prefix("dead_letters.")?.split_once('.')
}

impl Original<'_> {
    /// The dead letter of this message: its bytes and headers, and the cause.
    ///
    /// Its message id is the place of the message in its queue, because the broker drops a second message with the
    /// same id: with the job's id, a second dead letter of the same job would be lost. The original's `Nats-` headers
    /// get other names, because they would instruct the broker.
    ///
    /// If the id of the job is very long, the subject of the dead letter has only its beginning. [`SUBJECT`] has the
    /// whole subject, so that a replay uses the original one.
    #[must_use]
    pub fn dead_letter(&self, cause: &Cause<'_>) -> Publication {
        self.build(cause, None, None)
    }

    /// As [`Original::dead_letter`], for a job of a bundle: its message id ends with the id of the job.
    pub(crate) fn bundled(&self, cause: &Cause<'_>) -> Publication {
        self.build(cause, None, self.queue.key(self.subject))
    }

    /// As [`Original::dead_letter`], for a message that no client can read. `block` has all of its headers. The
    /// readable ones in [`Original::headers`] are kept as usual.
    #[must_use]
    pub fn unreadable(&self, block: &[u8], cause: &Cause<'_>) -> Publication {
        self.build(cause, Some(block), None)
    }

    fn build(&self, cause: &Cause<'_>, block: Option<&[u8]>, job: Option<&str>) -> Publication {
        let mut headers = HeaderMap::new();
        let place = format!("{}:{}", self.queue.stream, self.sequence);
        let message_id = job.map_or_else(|| place.clone(), |job| format!("{place}:{job}"));
        headers.insert(NATS_MESSAGE_ID, message_id);
        headers.insert(REASON, text(cause.reason));
        headers.insert(SUBJECT, self.subject.parse().unwrap_or_else(|_| text(self.subject)));
        headers.insert(ATTEMPTS, cause.attempts.to_string());
        headers.insert(AT, cause.at.to_string());
        headers.insert(BY, text(cause.by));
        let left_out = block.and_then(|block| keep_block(block, &mut headers));
        self.keep_headers(&mut headers, left_out);
        let id = self.queue.key(self.subject).unwrap_or(self.subject);
        let id = id[..id.floor_char_boundary(LONGEST_ID)].trim_end_matches('.');
        // The client takes any white space for the end of a subject, and then for a broken line; the broker
        // complains of wildcards.
        let id = id.replace(|sign: char| sign.is_whitespace() || "*>".contains(sign), "_");
        Publication { subject: subject(self.queue.stream, &id), headers, body: self.body.clone() }
    }

    /// Adds the original headers, the shortest first, while there is room: the broker would refuse more, and the
    /// message would stay in its queue forever.
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

/// Adds the header block of a message that cannot be read, or only its beginning if there is no room for all. Returns
/// the name of the header that was shortened, if it was.
fn keep_block(block: &[u8], headers: &mut HeaderMap) -> Option<&'static str> {
    let room = room(headers).saturating_sub(length(HEADER_BLOCK, &[HeaderValue::new()]));
    let kept = &block[..block.len().min(room / 4 * 3)];
    headers.insert(HEADER_BLOCK, BASE64_STANDARD.encode(kept));
    (kept.len() < block.len()).then_some(HEADER_BLOCK)
}

/// The number of bytes that the broker accepts besides these headers.
fn room(headers: &HeaderMap) -> usize {
    let taken: usize = headers.iter().map(|(name, values)| length(name.as_ref(), values)).sum();
    // The lines around the headers, and the header that names the omitted ones.
    let around = "NATS/1.0\r\n\r\n".len() + LEFT_OUT.len() + ": \r\n".len() + LONGEST;
    MOST_IN_HEADERS.saturating_sub(taken + around)
}

/// How many bytes a header with these values takes.
fn length(name: &str, values: &[HeaderValue]) -> usize {
    values.iter().map(|value| name.len() + ": \r\n".len() + value.as_str().len()).sum()
}

/// Whether the broker acts on a header of this name. It ignores the case.
pub(crate) fn is_for_the_broker(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
}

/// How many characters a text in a header may have.
const LONGEST: usize = 1000;

/// Converts any text to the value of a header: one short line. An error may quote a whole message, which the dead
/// letter has anyway.
fn text(text: &str) -> HeaderValue {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let line: String = line.take(LONGEST).collect();
    line.trim().parse().unwrap_or_else(|_| HeaderValue::new())
}
