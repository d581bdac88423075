//! The facts: records of events, each created once and never changed. The key is the id of the request, except
//! in the first bucket.
//!
//! | bucket | owner | content |
//! | --- | --- | --- |
//! | [`IDEMPOTENCY`] | gateway | the request of an `Idempotency-Key` ([`Asked`]) |
//! | [`REQUESTED`] | requestor, gateway, operator | the queue has confirmed this [`Request`] |
//! | [`STORED`] | requestor, gateway, operator | these strings were stored, or it was cancelled ([`Stored`]) |
//! | [`RECEIVED`] | generator | these strings were marked as received ([`Received`]) |
//!
//! An operator submits and cancels requests by `decoupled requests`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use workqueue::dead_letters::Reason;
use workqueue::{Bucket, Fact, JobId, Rejection, from_json};

use crate::key::IdempotencyKey;
use crate::queues::{Acknowledgment, Request};
use crate::state::Decision;
use crate::strings::Strings;

/// Idempotency keys and their requests: written before anything is published.
pub const IDEMPOTENCY: Bucket = Bucket { name: "idempotency", stream: "KV_idempotency" };

/// Accepted requests: written once the queue has confirmed the request.
pub const REQUESTED: Bucket = Bucket { name: "requested", stream: "KV_requested" };

/// The decision about each request: stored strings, or a cancellation, whichever was created first.
pub const STORED: Bucket = Bucket { name: "stored", stream: "KV_stored" };

/// Strings marked as received.
pub const RECEIVED: Bucket = Bucket { name: "received", stream: "KV_received" };

/// All buckets, in the order in which a request leaves its facts in them.
pub const ALL: [Bucket; 4] = [IDEMPOTENCY, REQUESTED, STORED, RECEIVED];

/// The most by which the clock of the requesting instance may be ahead of ours. The broker keeps the facts for that
/// much longer than the guarantees hold. A request with a later time would outlive its facts.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// The request of an `Idempotency-Key`: the same key means the same request.
///
/// It only reserves the id: the request counts as accepted once its fact is in [`REQUESTED`]. If a gateway
/// dies in between, or finds the queue full, this fact remains. The next gateway that gets the key publishes
/// the same request under the same id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The key, as the client sent it.
    pub key: IdempotencyKey,
    /// The request that each call with this key publishes.
    #[serde(flatten)]
    pub request: Request,
    /// When it is due, if the client set a time. The request is submitted then, with this time as its `requested_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The delay until it is due, in milliseconds, if the client set a delay and not a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
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

/// The decision about a request. The bucket keeps the first one, so a request never has both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stored {
    /// These strings are stored.
    Strings(Acknowledgment),
    /// The request was cancelled before strings were stored.
    Cancelled(Cancellation),
}

/// A request was cancelled. A response to it is not stored any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancellation {
    /// The request.
    pub id: JobId,
    /// The instance, or the person, that cancelled it.
    pub cancelled_by: String,
    /// When.
    pub cancelled_at: Timestamp,
}

impl Stored {
    /// The stored strings, unless the request was cancelled.
    #[must_use]
    pub fn acknowledgment(self) -> Option<Acknowledgment> {
        match self {
            Self::Strings(acknowledgment) => Some(acknowledgment),
            Self::Cancelled(_) => None,
        }
    }

    /// The decision alone.
    #[must_use]
    pub fn decision(&self) -> Decision<&Strings> {
        match self {
            Self::Strings(acknowledgment) => Decision::Strings(&acknowledgment.values),
            Self::Cancelled(_) => Decision::Cancelled,
        }
    }
}

impl Fact for Stored {
    const BUCKET: Bucket = STORED;

    fn key(&self) -> String {
        match self {
            Self::Strings(acknowledgment) => acknowledgment.id.to_string(),
            Self::Cancelled(cancellation) => cancellation.id.to_string(),
        }
    }

    fn from_body(body: &[u8]) -> Result<Self, serde_json::Error> {
        // Not by serde's untagged enum, which copies everything first, and whose error does not name the fault.
        match from_json(body) {
            Ok(acknowledgment) => Ok(Self::Strings(acknowledgment)),
            Err(error) => from_json(body).map(Self::Cancelled).map_err(|_| error),
        }
    }
}

/// A generator has marked these strings as received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The request, which has come to its end.
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

/// Rejects a message whose request is too old, or too far in the future. The facts that prevent a second effect are
/// kept for `facts_max_age` after the request was made, so no worker handles it after that.
///
/// # Errors
///
/// If the request is older than `facts_max_age`, or from more than an hour ahead.
pub fn check_age(
    requested_at: Timestamp,
    now: Timestamp,
    facts_max_age: Duration,
) -> Result<(), Rejection> {
    let age = now.duration_since(requested_at);
    let rejected = |reason, detail| Err(Rejection { reason, detail });
    if age > SignedDuration::try_from(facts_max_age).unwrap_or(SignedDuration::MAX) {
        let detail =
            format!("asked at {requested_at}, and requests expire after {facts_max_age:?}");
        return rejected(Reason::Expired, detail);
    }
    if age < -CLOCK_TOLERANCE {
        let detail = format!("asked at {requested_at}, which is more than an hour ahead of {now}");
        return rejected(Reason::Malformed, detail);
    }
    Ok(())
}

/// Rejects a request that has an `expires_at`, from that time on.
///
/// # Errors
///
/// If the request has expired.
pub fn check_expiry(expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), Rejection> {
    match expires_at {
        Some(at) if at <= now => {
            let detail = format!("it expired at {at}");
            Err(Rejection { reason: Reason::Expired, detail })
        }
        _ => Ok(()),
    }
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
    fn request_is_rejected_from_its_expiry_on() {
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let noon = at("2026-01-02T12:00:00Z");
        let check = |expires_at| check_expiry(expires_at, noon).err().map(|it| it.reason);
        assert_eq!(check(None), None);
        assert_eq!(check(Some(at("2026-01-02T12:00:00.001Z"))), None);
        assert_eq!(check(Some(noon)), Some(Reason::Expired));
    }

    #[test]
    fn stored_fact_is_strings_or_a_cancellation() {
        let id = JobId::new();
        let read = |body: &str| Stored::from_body(body.as_bytes());
        let cancelled =
            format!(r#"{{"id":"{id}","cancelled_by":"me","cancelled_at":"2026-01-02T12:00:00Z"}}"#);
        let stored = read(&cancelled).unwrap();
        assert_eq!(serde_json::to_string(&stored).unwrap(), cancelled);
        assert_eq!((stored.key(), stored.decision()), (id.to_string(), Decision::Cancelled));
        let error = read(&format!(r#"{{"id":"{id}"}}"#)).unwrap_err().to_string();
        assert!(error.contains("missing field `requested_at`"), "{error}");
    }

    #[test]
    fn request_from_more_than_an_hour_ahead_is_malformed() {
        assert_eq!(check("2026-01-02T13:00:00Z"), None);
        assert_eq!(check("2026-01-02T13:00:01Z"), Some(Reason::Malformed));
    }
}
