//! Snoozing a job: postponing it without spending an attempt.
//!
//! The broker counts deliveries, and no settlement changes its count. So a copy of the message replaces the message.
//! The copy has a message id of its own, so that a retry of the publish stores it only once, and headers: the number of
//! attempts spent so far, the time until which it waits, and the span of the attempt before it. The broker delivers the
//! copy at once, and the service gives it back until that time, which spends no attempt. If the broker delivers it early
//! once more, as after a restart, another copy replaces it.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use jiff::Timestamp;

use crate::dead_letters::is_for_the_broker;
use crate::handler::Attempt;
use crate::headers::{SNOOZE_ATTEMPTS, SNOOZE_SPAN, SNOOZE_UNTIL, is_of_a_snooze, of_a_snooze};
use crate::job::Publication;

/// The longest time that a job is snoozed for.
pub(crate) const LONGEST: Duration = Duration::from_hours(24 * 30);

/// The longest time that a message may still have to wait, with a margin for clocks. A message that names a later time
/// was not snoozed by this engine, and does not wait.
const LONGEST_REMAINING: Duration = Duration::from_hours(24 * 31);

/// The time that is added to the delay, because the clock of the broker and that of the service differ slightly.
const MARGIN: Duration = Duration::from_millis(50);

/// The headers of a snoozed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snooze {
    /// The number of attempts spent before.
    spent: u64,
    /// The time until which it waits. `None` if it does not wait.
    until: Option<Timestamp>,
}

impl Snooze {
    /// Reads these headers. `None` if they are missing or invalid.
    pub(crate) fn of(headers: Option<&HeaderMap>) -> Option<Self> {
        let (spent, until) = of_a_snooze(headers?)?;
        let until = until.map(str::parse).transpose().ok()?;
        Some(Self { spent: spent.parse().ok()?, until })
    }

    /// Whether its first delivery only waits.
    pub(crate) fn waits_first(self) -> bool {
        self.until.is_some()
    }

    /// The delay for giving the message back. `None` if its time has come.
    pub(crate) fn remaining(self, now: Timestamp) -> Option<Duration> {
        let remaining = Duration::try_from(self.until?.duration_since(now)).ok();
        let may_be = |time: &Duration| !time.is_zero() && *time <= LONGEST_REMAINING;
        remaining.filter(may_be).map(|time| time + MARGIN)
    }
}

/// The attempt of a delivery with this number: it counts the attempts before the snooze, and not the one delivery that
/// only waited. A message that is first delivered after its time has one attempt more, because nothing records that.
pub(crate) fn attempt(snooze: Option<Snooze>, deliveries: u64) -> Attempt {
    let number = match snooze {
        None => deliveries,
        Some(Snooze { spent, until: None }) => spent.saturating_add(deliveries),
        Some(Snooze { spent, .. }) => spent.saturating_add(deliveries.saturating_sub(1).max(1)),
    };
    Attempt::new(number)
}

/// The copy of a message that is snoozed until this time, if it has to wait, without spending this attempt. Its span is
/// that of the attempt before it.
pub(crate) fn copy(
    message_id: &str,
    subject: &str,
    headers: Option<&HeaderMap>,
    body: &Bytes,
    attempt: Attempt,
    until: Option<Timestamp>,
    span: Option<String>,
) -> Publication {
    let mut copied = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        if is_for_the_broker(name.as_ref()) || is_of_a_snooze(name.as_ref()) {
            continue;
        }
        for value in values {
            copied.append(name.clone(), value.clone());
        }
    }
    copied.insert(NATS_MESSAGE_ID, message_id);
    copied.insert(SNOOZE_ATTEMPTS, (attempt.number() - 1).to_string());
    if let Some(until) = until {
        copied.insert(SNOOZE_UNTIL, until.to_string());
    }
    if let Some(span) = span {
        copied.insert(SNOOZE_SPAN, span);
    }
    Publication { subject: subject.to_owned(), headers: copied, body: body.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snooze(attempts: &str, until: &str) -> Option<Snooze> {
        let mut headers = HeaderMap::new();
        headers.insert(SNOOZE_ATTEMPTS, attempts);
        headers.insert(SNOOZE_UNTIL, until);
        Snooze::of(Some(&headers))
    }

    const UNTIL: &str = "2026-11-28T05:00:00Z";

    #[test]
    fn attempts_exclude_the_delivery_that_waited() {
        let attempts = |snooze| [1, 2, 3].map(|deliveries| attempt(snooze, deliveries).number());
        assert_eq!(attempts(None), [1, 2, 3]);
        assert_eq!(attempts(snooze("0", UNTIL)), [1, 1, 2]);
        assert_eq!(attempts(snooze("4", UNTIL)), [5, 5, 6]);
        assert_eq!(attempt(snooze(&u64::MAX.to_string(), UNTIL), 9).number(), u64::MAX);
        assert_eq!(attempt(None, 0).number(), 1);
    }

    #[test]
    fn invalid_headers_count_as_missing() {
        assert!(snooze("3", UNTIL).is_some());
        for (attempts, until) in [
            ("", UNTIL),
            ("-1", UNTIL),
            ("some", UNTIL),
            ("99999999999999999999", UNTIL),
            ("3", ""),
            ("3", "tomorrow"),
            ("3", "2026-13-01T00:00:00Z"),
        ] {
            assert_eq!(snooze(attempts, until), None, "{attempts} {until}");
        }
        let mut one = HeaderMap::new();
        one.insert(SNOOZE_UNTIL, UNTIL);
        assert_eq!((Snooze::of(Some(&one)), Snooze::of(None)), (None, None));
    }

    #[test]
    fn copy_that_need_not_wait_has_no_delivery_that_waited() {
        let mut headers = HeaderMap::new();
        headers.insert(SNOOZE_ATTEMPTS, "4");
        let snooze = Snooze::of(Some(&headers));
        assert_eq!(snooze, Some(Snooze { spent: 4, until: None }));
        assert_eq!(snooze.unwrap().remaining(Timestamp::MIN), None);
        assert_eq!([1, 2, 3].map(|deliveries| attempt(snooze, deliveries).number()), [5, 6, 7]);
    }

    #[test]
    fn message_waits_until_its_time() {
        let snooze = snooze("0", UNTIL).unwrap();
        let at = |text: &str| snooze.remaining(text.parse().unwrap());
        assert_eq!(at("2026-11-28T04:59:59Z"), Some(Duration::from_secs(1) + MARGIN));
        assert_eq!((at(UNTIL), at("2027-01-01T00:00:00Z")), (None, None));
        let month = UNTIL.parse::<Timestamp>().unwrap() - LONGEST;
        assert_eq!(snooze.remaining(month), Some(LONGEST + MARGIN));
        assert_eq!(at("2026-10-27T00:00:00Z"), None, "the engine snoozes no job for so long");
        let never = Snooze { until: Some(Timestamp::MAX), ..snooze };
        assert_eq!(never.remaining(Timestamp::MIN), None);
    }

    #[test]
    fn copy_has_all_headers_except_those_for_the_broker() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", "a trace");
        headers.insert(NATS_MESSAGE_ID, "the old id");
        headers.insert("Nats-Expected-Stream", "IMAGES");
        headers.insert(SNOOZE_ATTEMPTS, "7");
        headers.insert(SNOOZE_SPAN, "the old span");
        let body = Bytes::from_static(b"{}");
        let until = UNTIL.parse().ok();
        let id = "IMAGES:4:snooze";
        let span = Some("a span".to_owned());
        let copy = copy(id, "images.1", Some(&headers), &body, Attempt::new(3), until, span);
        assert_eq!((copy.subject.as_str(), &copy.body), ("images.1", &body));
        let mut names: Vec<_> = copy.headers.iter().map(|(name, _)| name.to_string()).collect();
        names.sort_unstable();
        let all = ["Nats-Msg-Id", SNOOZE_ATTEMPTS, SNOOZE_SPAN, SNOOZE_UNTIL, "traceparent"];
        assert_eq!(names, all);
        assert_eq!(copy.headers.get(SNOOZE_SPAN).unwrap().as_str(), "a span");
        assert_eq!(copy.headers.get(NATS_MESSAGE_ID).unwrap().as_str(), id);
        assert_eq!(Snooze::of(Some(&copy.headers)), Some(Snooze { spent: 2, until }));
    }
}
