//! The facts: records of what has happened, each created once and never changed; all but the first under the id
//! of its request.
//!
//! | bucket | owner | says |
//! | --- | --- | --- |
//! | [`IDEMPOTENCY`] | gateway | the request of an `Idempotency-Key` ([`Asked`]) |
//! | [`REQUESTED`] | requestor, gateway | the queue has confirmed this [`Request`] |
//! | [`STORED`] | requestor | these strings were stored ([`Acknowledgment`]) |
//! | [`RECEIVED`] | generator | these strings were marked as received ([`Received`]) |

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use workqueue::dead_letters::Reason;
use workqueue::{Bucket, Fact, JobId, Rejection};

use crate::key::IdempotencyKey;
use crate::queues::{Acknowledgment, Request};
use crate::strings::Strings;

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

/// How far the clock that a request was asked by may be ahead of ours. Facts are kept that much longer than
/// the guarantees hold; a request from a later time would outlive them.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// The request of an `Idempotency-Key`: the same key means the same request.
///
/// It reserves the id, and no more: the request counts as accepted once its fact is in [`REQUESTED`]. A
/// gateway that dies in between, or finds the queue full, leaves this behind, and the next one that is
/// asked under the key publishes the same request under the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The key, as it was given.
    pub key: IdempotencyKey,
    /// The request that is published under it, however often.
    #[serde(flatten)]
    pub request: Request,
}

impl Fact for Asked {
    const BUCKET: Bucket = IDEMPOTENCY;

    fn key(&self) -> String {
        self.key.token()
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

/// Rejects a message of this age. The facts that guard a request are kept for `facts_max_age` from the
/// moment of asking, so nothing may happen to it after that.
///
/// # Errors
///
/// Where the request is older than its facts, or from later than they can guard.
pub fn check_age(
    requested_at: Timestamp,
    now: Timestamp,
    facts_max_age: Duration,
) -> Result<(), Rejection> {
    let age = now.duration_since(requested_at);
    let rejected = |reason, detail| Err(Rejection { reason, detail });
    if age > SignedDuration::try_from(facts_max_age).unwrap_or(SignedDuration::MAX) {
        let detail = format!(
            "asked at {requested_at}, and nothing older than {facts_max_age:?} is worked on"
        );
        return rejected(Reason::Expired, detail);
    }
    if age < -CLOCK_TOLERANCE {
        let detail = format!("asked at {requested_at}, which is more than an hour ahead of {now}");
        return rejected(Reason::Malformed, detail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn check(requested_at: &str) -> Option<Reason> {
        let noon = "2026-01-02T12:00:00Z".parse().unwrap();
        check_age(requested_at.parse().unwrap(), noon, DAY).err().map(|rejection| rejection.reason)
    }

    #[test]
    fn request_older_than_its_facts_is_expired() {
        assert_eq!(check("2026-01-01T12:00:00Z"), None);
        assert_eq!(check("2026-01-01T11:59:59Z"), Some(Reason::Expired));
        let noon = "2026-01-02T12:00:00Z".parse().unwrap();
        assert_eq!(check_age(Timestamp::MIN, noon, Duration::MAX), Ok(()));
    }

    #[test]
    fn request_from_later_than_its_facts_guard_is_malformed() {
        assert_eq!(check("2026-01-02T13:00:00Z"), None);
        assert_eq!(check("2026-01-02T13:00:01Z"), Some(Reason::Malformed));
    }
}
