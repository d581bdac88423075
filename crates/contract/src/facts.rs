//! The facts: records of what has happened, each created once and never changed; all but the first under the id
//! of its request.
//!
//! | bucket | owner | says |
//! | --- | --- | --- |
//! | [`IDEMPOTENCY`] | gateway | the request of an `Idempotency-Key` ([`Asked`]) |
//! | [`REQUESTED`] | requestor, gateway | the queue has confirmed this [`Request`] |
//! | [`STORED`] | requestor | these strings were stored ([`Acknowledgment`]) |
//! | [`RECEIVED`] | generator | these strings were marked as received ([`Received`]) |

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use workqueue::{Bucket, Fact, JobId};

use crate::queues::{Acknowledgment, Request};
use crate::{Amount, IdempotencyKey, InvalidStrings, Strings};

/// Idempotency keys and their requests: written before anything is published.
pub const IDEMPOTENCY: Bucket = Bucket { name: "idempotency", stream: "KV_idempotency" };

/// Accepted requests: written once the queue has confirmed the request.
pub const REQUESTED: Bucket = Bucket { name: "requested", stream: "KV_requested" };

/// Stored acknowledgments.
pub const STORED: Bucket = Bucket { name: "stored", stream: "KV_stored" };

/// Strings marked as received.
pub const RECEIVED: Bucket = Bucket { name: "received", stream: "KV_received" };

/// All buckets, in the order in which a request leaves its facts in them.
pub const ALL: [Bucket; 4] = [IDEMPOTENCY, REQUESTED, STORED, RECEIVED];

/// The request of an `Idempotency-Key`: the same key means the same request.
///
/// It reserves the id, and no more: the request counts as accepted once its fact is in [`REQUESTED`]. A
/// gateway that dies in between, or finds the queue full, leaves this behind, and the next one that is
/// asked under the key publishes the same request under the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AskedFields", into = "AskedFields")]
pub struct Asked {
    /// The key, as it was given.
    pub key: IdempotencyKey,
    /// The request that is published under it, however often.
    pub request: Request,
}

impl Fact for Asked {
    const BUCKET: Bucket = IDEMPOTENCY;

    fn key(&self) -> String {
        self.key.token()
    }
}

/// The JSON form of [`Asked`], where the amount is not validated yet.
#[derive(Serialize, Deserialize)]
struct AskedFields {
    key: IdempotencyKey,
    id: JobId,
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

    fn key(&self) -> String {
        self.id.to_string()
    }
}

impl Fact for Acknowledgment {
    const BUCKET: Bucket = STORED;

    fn key(&self) -> String {
        self.id.to_string()
    }
}

/// A generator has marked these strings as received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The request that came to its end.
    pub id: JobId,
    /// The strings, as they were acknowledged.
    pub values: Strings,
    /// The instance that marked them.
    pub marked_by: String,
    /// When it marked them.
    pub received_at: Timestamp,
}

impl Fact for Received {
    const BUCKET: Bucket = RECEIVED;

    fn key(&self) -> String {
        self.id.to_string()
    }
}
