//! Reads several messages of a stream with one request, from the nearest broker.
//!
//! The size of the answer is bounded, so that a read costs the same however long the stream is.

use std::time::Duration;

use async_nats::header::{NATS_SEQUENCE, NATS_SUBJECT};
use async_nats::jetstream::Context;
use async_nats::{HeaderMap, Message, Request};
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::error_chain::Source;
use crate::reading::ReadStreamError;

/// The longest pause between two messages of the broker.
const SILENCE: Duration = Duration::from_secs(5);

/// The most bytes of messages in one answer. The last message may go beyond it.
const MOST_BYTES: usize = 512 * 1024;

/// The most subjects in one request.
const MOST_SUBJECTS: usize = 1000;

/// The statuses by which the broker reports the end of the messages, and that there are none.
const END_OF_BATCH: u16 = 204;
const NOT_FOUND: u16 = 404;

/// The header of the last status, with the number of further messages.
const LEFT: &str = "Nats-Num-Pending";

/// The headers with the place of a message in its stream.
const WHERE: [&str; 7] = [
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
    "Nats-UpTo-Sequence",
];

/// A message in its stream.
#[derive(Clone, Debug)]
pub struct StoredMessage {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// At most `count` messages under these subjects, from this sequence on, and the number of further ones. If the
/// messages are large, it returns fewer.
///
/// # Errors
///
/// If the broker does not answer, or refuses.
pub async fn from_sequence(
    nats: &Context,
    stream: &str,
    subjects: &str,
    sequence: u64,
    count: usize,
) -> Result<(Vec<StoredMessage>, u64), ReadStreamError> {
    let question = json!({ "seq": sequence.max(1), "next_by_subj": subjects, "batch": count });
    ask(nats, stream, question).await
}

/// The number of messages under these subjects that are no older than this time.
///
/// # Errors
///
/// As [`from_sequence`].
pub async fn count_since(
    nats: &Context,
    stream: &str,
    subjects: &str,
    time: Timestamp,
) -> Result<u64, ReadStreamError> {
    let start_time = time.to_string();
    let question = json!({ "start_time": start_time, "next_by_subj": subjects, "batch": 1 });
    let (first, left) = ask(nats, stream, question).await?;
    Ok(first.len() as u64 + left)
}

/// The last message under each of these subjects, at most 1000, if there is one; and the number of messages for which
/// the answer had no room. Those are the newest.
///
/// # Errors
///
/// As [`from_sequence`].
pub async fn last_under_each(
    nats: &Context,
    stream: &str,
    subjects: &[String],
) -> Result<(Vec<StoredMessage>, u64), ReadStreamError> {
    if subjects.is_empty() {
        return Ok((Vec::new(), 0));
    }
    ask(nats, stream, json!({ "multi_last": subjects, "batch": MOST_SUBJECTS })).await
}

/// The messages, and the number of further ones.
async fn ask(
    nats: &Context,
    stream: &str,
    question: Value,
) -> Result<(Vec<StoredMessage>, u64), ReadStreamError> {
    answers(nats, stream, question).await.map_err(ReadStreamError::of(stream))
}

async fn answers(
    nats: &Context,
    stream: &str,
    mut question: Value,
) -> Result<(Vec<StoredMessage>, u64), Source> {
    question["max_bytes"] = MOST_BYTES.into();
    let inbox = nats.client().new_inbox();
    let mut answers = nats.client().subscribe(inbox.clone()).await?;
    let request = Request::new().inbox(inbox).payload(question.to_string().into());
    nats.send_request(format!("DIRECT.GET.{stream}"), request).await?;
    let mut messages = Vec::new();
    loop {
        let next = timeout(SILENCE, answers.next()).await;
        let next = next.map_err(|_too_long| "the broker went silent")?;
        let answer = next.ok_or("the connection is gone")?;
        match status_of(&answer) {
            None => messages.push(stored(answer)?),
            Some(END_OF_BATCH | NOT_FOUND) => {
                let left = answer.headers.and_then(|headers| {
                    headers.get(LEFT).and_then(|left| left.as_str().parse().ok())
                });
                return Ok((messages, left.unwrap_or(0)));
            }
            Some(status) => {
                let words = answer.description.unwrap_or_default();
                return Err(format!("the broker answers {status} {words}").into());
            }
        }
    }
}

/// The status of an answer without a message. One with a message has a sequence, and perhaps a status as well: brokers
/// before 2.12.6 keep it in the headers.
fn status_of(answer: &Message) -> Option<u16> {
    let is_message = answer.headers.as_ref().is_some_and(|it| it.get(NATS_SEQUENCE).is_some());
    answer.status.filter(|_| !is_message).map(|status| status.as_u16())
}

fn stored(answer: Message) -> Result<StoredMessage, &'static str> {
    let headers = answer.headers.unwrap_or_default();
    let sequence = headers.get(NATS_SEQUENCE).and_then(|value| value.as_str().parse().ok());
    let subject = headers.get(NATS_SUBJECT).map(|value| value.as_str().to_owned());
    // Its place in the stream is in the headers.
    let mut own = HeaderMap::new();
    for (name, values) in headers.iter() {
        if !WHERE.contains(&AsRef::<str>::as_ref(name)) {
            for value in values {
                own.append(name.clone(), value.clone());
            }
        }
    }
    Ok(StoredMessage {
        sequence: sequence.ok_or("an answer does not say its sequence")?,
        subject: subject.ok_or("an answer does not say its subject")?,
        body: answer.payload,
        headers: own,
    })
}

#[cfg(test)]
mod tests {
    use async_nats::StatusCode;

    use super::*;

    #[test]
    fn message_with_a_status_is_no_end() {
        let answer = |header: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header, "7");
            Message {
                subject: "_INBOX.batch".into(),
                reply: None,
                payload: "".into(),
                headers: Some(headers),
                status: Some(StatusCode::NOT_FOUND),
                description: None,
                length: 0,
            }
        };
        assert_eq!(status_of(&answer(LEFT)), Some(NOT_FOUND));
        assert_eq!(status_of(&answer("Nats-Sequence")), None);
    }
}
