//! The facts: what has happened, each created once under the id of its request and never changed.
//!
//! | bucket | owner | says |
//! | --- | --- | --- |
//! | [`REQUESTED`] | requestor | the queue has confirmed this [`Request`] |
//! | [`STORED`] | requestor | these strings were stored ([`Acknowledgment`]) |
//! | [`RECEIVED`] | generator | these strings were marked as received ([`Received`]) |
//!
//! A bucket is a key-value bucket of NATS, which is a stream whose subjects are the keys. A fact
//! is created by a publish that is to succeed only where the key has never been written. So a
//! message that is delivered twice has its effect once: the broker refuses the second.

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::queues::{Acknowledgment, Request};
use crate::{Publication, RequestId, Strings};

/// What was accepted: written once the queue has confirmed the request.
pub const REQUESTED: Bucket = Bucket { name: "requested", stream: "KV_requested" };

/// What was stored.
pub const STORED: Bucket = Bucket { name: "stored", stream: "KV_stored" };

/// What was marked as received.
pub const RECEIVED: Bucket = Bucket { name: "received", stream: "KV_received" };

/// All buckets, in the order in which a request leaves its facts in them.
pub const ALL: [Bucket; 3] = [REQUESTED, STORED, RECEIVED];

/// A key-value bucket on the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// The name of the bucket.
    pub name: &'static str,
    /// The name of the stream that keeps it.
    pub stream: &'static str,
}

impl Bucket {
    /// The subject of the fact about this request.
    #[must_use]
    pub fn subject(self, id: RequestId) -> String {
        self.subject_of(&id.to_string())
    }

    /// The subject of this key, which need not be an id.
    #[must_use]
    pub fn subject_of(self, key: &str) -> String {
        format!("$KV.{}.{key}", self.name)
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

/// Something that has happened to a request.
pub trait Fact: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where such facts are kept.
    const BUCKET: Bucket;

    /// The request that this is about.
    fn id(&self) -> RequestId;

    /// The publish that creates this fact, and is refused where one stands already.
    ///
    /// It has no message id: a broker with several replicas would call the second creation a
    /// duplicate, which it is not if its value differs.
    fn creation(&self) -> Publication {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        Publication { subject: Self::BUCKET.subject(self.id()), headers, body: crate::json(self) }
    }

    /// The fact that was written with this body.
    ///
    /// # Errors
    ///
    /// Where the body is no such fact: somebody else has written into the bucket.
    fn decode(body: &[u8]) -> Result<Self, serde_json::Error> {
        crate::from_json(body)
    }
}

impl Fact for Request {
    const BUCKET: Bucket = REQUESTED;

    fn id(&self) -> RequestId {
        self.id
    }
}

impl Fact for Acknowledgment {
    const BUCKET: Bucket = STORED;

    fn id(&self) -> RequestId {
        self.id
    }
}

/// A generator has marked these strings as received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The request that came to its end.
    pub id: RequestId,
    /// The strings, as they were acknowledged.
    pub values: Strings,
    /// The instance that marked them.
    pub marked_by: String,
    /// When it marked them.
    pub received_at: Timestamp,
}

impl Fact for Received {
    const BUCKET: Bucket = RECEIVED;

    fn id(&self) -> RequestId {
        self.id
    }
}
