//! Facts: records of events, each created once under its key and never changed.
//!
//! A bucket is a key-value bucket of NATS, which is a stream whose subjects are the keys. A fact is
//! created by a publish that succeeds only if the key has never been written. So a message that is
//! delivered twice has its effect once: the broker refuses the second creation.

use std::fmt::Display;
use std::pin::pin;

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::Connection;
use crate::id::JobId;
use crate::job::{Publication, from_json, to_json};
use crate::last_message::last_message;
use crate::trace::Trace;

/// A key-value bucket on the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// The name of the bucket.
    pub name: &'static str,
    /// The name of the stream that keeps it: `KV_` and the name.
    pub stream: &'static str,
}

impl Bucket {
    /// The subject of the fact about the job with this id.
    #[must_use]
    pub fn subject(self, id: JobId) -> String {
        id.with_text(|key| self.subject_of(key))
    }

    /// The subject of this key.
    #[must_use]
    pub fn subject_of(self, key: &str) -> String {
        ["$KV.", self.name, ".", key].concat()
    }

    /// The subjects of all keys.
    #[must_use]
    pub fn subjects(self) -> String {
        format!("$KV.{}.>", self.name)
    }

    /// The key that a subject of this bucket names.
    #[must_use]
    pub fn key(self, subject: &str) -> Option<&str> {
        subject.strip_prefix("$KV.")?.strip_prefix(self.name)?.strip_prefix('.')
    }
}

/// A kind of fact: a type that serializes to a JSON object, and the bucket that keeps it.
pub trait Fact: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The bucket that keeps such facts.
    const BUCKET: Bucket;

    /// The key of this fact in its bucket: a token of a subject, such as the id of a job.
    fn key(&self) -> String;

    /// The publish that creates this fact as part of this trace. The broker refuses it if the key has been written.
    ///
    /// It has no message id: with one, a broker with several replicas would report the second creation as a duplicate,
    /// even if its value differs.
    ///
    /// # Errors
    ///
    /// If it does not serialize to a JSON object.
    fn creation(&self, trace: &Trace) -> Result<Publication, serde_json::Error> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        trace.add_to(&mut headers);
        let subject = Self::BUCKET.subject_of(&self.key());
        Ok(Publication { subject, headers, body: to_json(self)? })
    }

    /// The fact that was written with this body.
    ///
    /// # Errors
    ///
    /// If the body is not such a fact: another program has written into the bucket.
    fn from_body(body: &[u8]) -> Result<Self, serde_json::Error> {
        from_json(body)
    }
}

/// The result of creating a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation<F> {
    /// This call created the fact.
    Created,
    /// The key was written before, and the existing fact wins: another replica may have created it, or an
    /// earlier try of our own whose ack was lost.
    AlreadyExists(F),
}

/// Reads the fact under this key, if there is one. It asks the nearest broker first, because facts never
/// change; if that broker has none, it asks the stream's leader, which is never behind.
///
/// # Errors
///
/// See [`ReadError`].
pub async fn read_fact<F: Fact>(
    connection: &Connection,
    key: &str,
) -> Result<Option<F>, ReadError> {
    let (context, stream) = (connection.context(), F::BUCKET.stream);
    let subject = F::BUCKET.subject_of(key);
    let nearest = context.get_stream_no_info(stream).await.map_err(|_| ReadError::Unknown)?;
    let nearest = nearest.direct_get_last_for_subject(subject.as_str());
    let mut found = connection.ask(pin!(nearest)).await.ok_or(ReadError::Unknown)?.ok();
    if found.is_none() {
        let last = connection.ask(pin!(last_message(context, stream, &subject))).await;
        found = last.ok_or(ReadError::Unknown)?.map_err(|_| ReadError::Unknown)?;
    }
    let Some(message) = found else { return Ok(None) };
    let wrong = |why: &dyn Display| {
        ReadError::NoFact(format!("bucket {}, key {key}: {why}", F::BUCKET.name))
    };
    let fact = F::from_body(&message.payload).map_err(|error| wrong(&error))?;
    if fact.key() == key { Ok(Some(fact)) } else { Err(wrong(&"it belongs under another")) }
}

/// Why a fact could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is unknown whether the fact exists. Try again.
    #[error("the broker did not say")]
    Unknown,
    /// The value under the key is not a fact: another program has written into the bucket.
    #[error("the value is not a fact: {0}")]
    NoFact(String),
}
