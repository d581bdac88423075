//! The dead letters on the broker.

use std::fmt;

use async_nats::jetstream::Context;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use serde::Serialize;

use super::{
    AT, ATTEMPTS, BY, LEFT_OUT, REASON, Reason, STREAM, SUBJECT, SUBJECTS, Selection, page, split,
    subject,
};
use crate::batch::{self, StoredMessage};
use crate::connection::Connection;
use crate::error_chain::Source;
use crate::id::JobId;
use crate::job::Job;
use crate::reading::{self, ReadStreamError};

/// A dead letter on the broker.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeadLetter {
    /// Its sequence among the dead letters, which identifies it.
    pub sequence: u64,
    /// The id of the job, from the subject. A job may have several dead letters.
    pub id: String,
    /// The subject of its message.
    pub subject: String,
    /// The reason.
    pub reason: String,
    /// How many times its message was delivered, if known.
    pub attempts: Option<u64>,
    /// When it became a dead letter.
    pub at: String,
    /// The instance that dead-lettered it.
    pub by: String,
    /// The stream of the queue that it was in.
    #[serde(skip)]
    pub stream: String,
    #[serde(skip)]
    pub(super) headers: HeaderMap,
    #[serde(skip)]
    pub(super) body: Bytes,
}

/// A dead letter could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("the dead letter could not be removed")]
pub struct NotRemoved(#[source] Source);

/// All dead letters, or the one with this sequence, or, if `name` is no number, those of this job: the oldest first.
///
/// # Errors
///
/// If the broker does not answer, or has no dead letters' stream.
pub async fn list(nats: &Context, name: Option<&str>) -> Result<Vec<DeadLetter>, ReadStreamError> {
    let mut letters = Vec::new();
    if let Some(Ok(sequence)) = name.map(str::parse) {
        letters = page(nats, &Selection::default(), sequence, 1).await?.letters;
        letters.retain(|letter| letter.sequence == sequence);
        return Ok(letters);
    }
    // The id of a message that is no job may have any signs, and is no filter.
    let of_job = name.filter(|name| name.parse::<JobId>().is_ok());
    let subjects = of_job.map_or_else(|| SUBJECTS.to_owned(), |id| subject("*", id));
    reading::each(nats, STREAM, &subjects, |sequence, message| {
        let headers = message.headers.clone().unwrap_or_default();
        let letter = DeadLetter::of(sequence, &message.subject, headers, message.payload.clone());
        if name.is_none_or(|name| name == letter.id) {
            letters.push(letter);
        }
    })
    .await?;
    Ok(letters)
}

/// The dead letters of one job, the last one from each queue.
///
/// # Errors
///
/// As [`list`].
pub async fn of_job(nats: &Context, id: JobId) -> Result<Vec<DeadLetter>, ReadStreamError> {
    let subjects = [subject("*", &id.to_string())];
    let (letters, _) = batch::last_under_each(nats, STREAM, &subjects).await?;
    Ok(letters.into_iter().map(DeadLetter::from).collect())
}

impl From<StoredMessage> for DeadLetter {
    fn from(stored: StoredMessage) -> Self {
        let StoredMessage { sequence, subject, headers, body } = stored;
        Self::of(sequence, &subject, headers, body)
    }
}

impl DeadLetter {
    fn of(sequence: u64, subject: &str, headers: HeaderMap, body: Bytes) -> Self {
        let value = |name| headers.get(name).map_or("", HeaderValue::as_str).to_owned();
        let (stream, id) = split(subject).unwrap_or_default();
        Self {
            sequence,
            id: id.to_owned(),
            stream: stream.to_owned(),
            subject: value(SUBJECT),
            reason: value(REASON),
            attempts: value(ATTEMPTS).parse().ok(),
            at: value(AT),
            by: value(BY),
            headers,
            body,
        }
    }

    /// The word that its reason begins with.
    #[must_use]
    pub fn kind(&self) -> Reason {
        Reason::of(&self.reason)
    }

    /// Removes it for good, with its message. The broker may not store another job under its id for
    /// [two minutes](crate::Producer::submit).
    ///
    /// # Errors
    ///
    /// If it is still there, or may be, or was gone before.
    pub async fn discard(&self, connection: &Connection) -> Result<(), NotRemoved> {
        let removing = async {
            let stream = connection.context().get_stream_no_info(STREAM).await?;
            Ok(stream.delete_message(self.sequence).await?)
        };
        removing.await.map(|_| ()).map_err(NotRemoved)
    }

    /// Its job, if its message can be decoded as a job of this type.
    #[must_use]
    pub fn decode<J: Job>(&self) -> Option<J> {
        if self.stream != J::QUEUE.stream {
            return None;
        }
        J::decode(&J::QUEUE.subject_of(&self.id), Some(&self.headers), &self.body)
            .ok()
            .map(|(_, job)| job)
    }

    /// The bytes that the message had.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its headers, in the order of their names.
    #[must_use]
    pub fn headers(&self) -> Vec<(&str, &str)> {
        let each = self.headers.iter();
        let each = each.flat_map(|(name, values)| {
            values.iter().map(|value| (AsRef::<str>::as_ref(name), value.as_str()))
        });
        let mut headers: Vec<_> = each.collect();
        headers.sort_unstable();
        headers
    }

    /// The names of the headers that a replay cannot restore, because there was no room for them.
    #[must_use]
    pub fn left_out(&self) -> Option<&str> {
        self.headers.get(LEFT_OUT).map(HeaderValue::as_str)
    }

    /// The whole dead letter, for people: the reason, and the headers and bytes of the original.
    #[must_use]
    pub fn full(&self) -> String {
        let headers = self.headers();
        let line = |(name, value): &(&str, &str)| format!("\n  {name}: {}", value.escape_debug());
        let headers: String = headers.iter().map(line).collect();
        // A dead letter may contain anything, so it is escaped before it reaches the terminal.
        format!("{self}{headers}\n\n  {}\n", self.body.escape_ascii())
    }
}

impl fmt::Display for DeadLetter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, subject, reason, attempts, at, .. } = self;
        let (subject, reason, at) =
            (subject.escape_debug(), reason.escape_debug(), at.escape_debug());
        let attempts = attempts.map_or_else(|| "?".to_owned(), |attempts| attempts.to_string());
        write!(formatter, "{sequence:>6}  {at}  {subject}  attempt {attempts}  {reason}")
    }
}
