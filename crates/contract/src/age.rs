use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use workqueue::Rejection;
use workqueue::dead_letters::Reason;

/// How far the clock that a request was asked by may be ahead of ours. Facts are kept that much longer than
/// the guarantees hold; a request from a later time would outlive them.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

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
