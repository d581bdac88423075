//! The facts: what has happened, each created once and never changed; all but the first under the id
//! of its request.
//!
//! | bucket | owner | says |
//! | --- | --- | --- |
//! | [`IDEMPOTENCY`] | requestor | this is what was asked under an `Idempotency-Key` ([`Asked`]) |
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
use crate::{Amount, IdempotencyKey, InvalidStrings, Publication, RequestId, Strings};

/// What was asked under which `Idempotency-Key`: written before anything is published.
pub const IDEMPOTENCY: Bucket = Bucket { name: "idempotency", stream: "KV_idempotency" };

/// What was accepted: written once the queue has confirmed the request.
pub const REQUESTED: Bucket = Bucket { name: "requested", stream: "KV_requested" };

/// What was stored.
pub const STORED: Bucket = Bucket { name: "stored", stream: "KV_stored" };

/// What was marked as received.
pub const RECEIVED: Bucket = Bucket { name: "received", stream: "KV_received" };

/// All buckets, in the order in which a request leaves its facts in them.
pub const ALL: [Bucket; 4] = [IDEMPOTENCY, REQUESTED, STORED, RECEIVED];

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
        id.with_text(|key| self.subject_of(key))
    }

    /// The subject of this key, which need not be an id.
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

/// Something that has happened to a request.
pub trait Fact: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where such facts are kept.
    const BUCKET: Bucket;

    /// The request that this is about.
    fn id(&self) -> RequestId;

    /// What it is kept under in its bucket.
    fn key(&self) -> String {
        self.id().to_string()
    }

    /// The publish that creates this fact, and is refused where one stands already.
    ///
    /// It has no message id: a broker with several replicas would call the second creation a
    /// duplicate, which it is not if its value differs.
    fn creation(&self) -> Publication {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        Publication {
            subject: Self::BUCKET.subject_of(&self.key()),
            headers,
            body: crate::json(self),
        }
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

/// Somebody asks for this under an `Idempotency-Key`, and whoever asks under the same key again means
/// the same request.
///
/// It reserves the id, and no more: the request counts as accepted once its fact stands in
/// [`REQUESTED`]. Whoever died in between, or found the queue full, leaves this behind, and the next
/// who comes with the key publishes the same request under the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AskedFields", into = "AskedFields")]
pub struct Asked {
    /// The key, as it was given.
    pub key: IdempotencyKey,
    /// What is published under it, however often.
    pub request: Request,
}

impl Fact for Asked {
    const BUCKET: Bucket = IDEMPOTENCY;

    fn id(&self) -> RequestId {
        self.request.id
    }

    fn key(&self) -> String {
        self.key.token()
    }
}

/// What was asked under a key as it stands in JSON, where the amount may be anything.
#[derive(Serialize, Deserialize)]
struct AskedFields {
    key: IdempotencyKey,
    id: RequestId,
    count: u32,
    length: u32,
    requestor: String,
    requested_at: Timestamp,
}

impl TryFrom<AskedFields> for Asked {
    type Error = InvalidStrings;

    fn try_from(fields: AskedFields) -> Result<Self, InvalidStrings> {
        let AskedFields { key, id, count, length, requestor, requested_at } = fields;
        let amount = Amount::new(count, length)?;
        Ok(Self { key, request: Request { id, amount, requestor, requested_at } })
    }
}

impl From<Asked> for AskedFields {
    fn from(Asked { key, request }: Asked) -> Self {
        let Request { id, amount, requestor, requested_at } = request;
        let (count, length) = (amount.count(), amount.length());
        Self { key, id, count, length, requestor, requested_at }
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
