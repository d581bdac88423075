//! Decides how a delivery is settled: a total, pure function, tested alone.

use std::fmt;
use std::time::Duration;

use crate::backoff;
use crate::dead_letters::Reason;
use crate::handler::{Attempt, Failure, Rejection, RetryPolicy};
use crate::job::DecodeError;

/// The delay after which a message of a newer version is redelivered, so that a newer replica can take it.
const NEWER_VERSION_DELAY: Duration = Duration::from_secs(30);

/// The longest delay in a nak. The broker cannot parse much longer ones.
const LONGEST_DELAY: Duration = Duration::from_hours(24 * 365 * 100);

/// The delay for a job that a stopping service gives back: another replica may take it at once.
pub(crate) const GIVE_BACK: Delay = Delay::Between(Duration::ZERO, Duration::from_millis(100));

/// The result of handling a delivery.
#[derive(Debug)]
pub enum Outcome {
    /// Its effect is durable.
    Done,
    /// The handler failed, timed out or panicked.
    Failed(Failure),
    /// The handler rejected it before the work (`Handler::admit`).
    Rejected(Rejection),
    /// The message cannot be decoded as a job of this queue.
    Undecodable(DecodeError),
    /// It was not handled, because the broker has delivered it too often without a settlement: it may crash
    /// every process that handles it.
    Exhausted,
    /// The service stopped before the handler was done.
    Interrupted,
}

impl Outcome {
    /// The name of this kind of failure. `None` if it is not a failure.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        match self {
            Self::Done => None,
            Self::Failed(_) => Some(Reason::Failed.as_str()),
            Self::Rejected(Rejection { reason, .. }) => Some(reason.as_str()),
            Self::Undecodable(DecodeError::NewerVersion { .. }) => {
                Some(Reason::Unsupported.as_str())
            }
            Self::Undecodable(_) => Some(Reason::Malformed.as_str()),
            Self::Exhausted => Some(Reason::Exhausted.as_str()),
            Self::Interrupted => Some("interrupted"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => formatter.write_str("done"),
            Self::Failed(failure) => write!(formatter, "failed: {failure}"),
            Self::Rejected(Rejection { reason, detail }) => {
                write!(formatter, "{}: {detail}", reason.as_str())
            }
            Self::Undecodable(error) => error.fmt(formatter),
            Self::Exhausted => formatter.write_str("exhausted"),
            Self::Interrupted => formatter.write_str("the service stops"),
        }
    }
}

/// How a delivery is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is done: the broker may forget the message.
    Ack,
    /// The broker redelivers the message after a delay.
    Nak {
        /// The delay.
        delay: Delay,
    },
    /// A copy of the message replaces it, and waits. This spends no attempt.
    Snooze {
        /// The time that it waits.
        delay: Duration,
    },
    /// The message goes to the dead letters.
    DeadLetter {
        /// The reason, for people. It begins with the word of a [`Reason`].
        reason: String,
    },
}

/// How long the broker waits before it redelivers a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Exactly this time.
    Exactly(Duration),
    /// A random time between these two, above zero.
    Between(Duration, Duration),
}

impl Delay {
    /// The time, drawn at random if it is a range.
    pub(crate) fn draw(self) -> Duration {
        match self {
            Self::Exactly(delay) => delay.min(LONGEST_DELAY),
            Self::Between(least, most) => backoff::drawn(least, most).min(LONGEST_DELAY),
        }
    }
}

/// The settlement of a delivery with this outcome. A policy without a limit of attempts has no last attempt.
#[must_use]
pub fn settle(outcome: &Outcome, attempt: Attempt, policy: &RetryPolicy) -> Settlement {
    let number = attempt.number();
    let is_last = policy.max_attempts.is_some_and(|most| number >= most);
    match outcome {
        Outcome::Done => Settlement::Ack,
        Outcome::Rejected(Rejection { reason, detail }) => dead_letter(*reason, detail),
        Outcome::Undecodable(error @ DecodeError::NewerVersion { .. }) if is_last => {
            dead_letter(Reason::Unsupported, &error.to_string())
        }
        Outcome::Undecodable(DecodeError::NewerVersion { .. }) => {
            Settlement::Nak { delay: Delay::Exactly(NEWER_VERSION_DELAY) }
        }
        Outcome::Undecodable(error) => dead_letter(Reason::Malformed, &error.to_string()),
        Outcome::Exhausted => dead_letter(
            Reason::Exhausted,
            &format!(
                "delivered {number} times and never settled; perhaps it stops every process that \
                 handles it, or its dead letter could not be stored"
            ),
        ),
        Outcome::Failed(failure @ Failure::Reject(_)) => {
            dead_letter(Reason::Failed, &failure.to_string())
        }
        Outcome::Failed(Failure::RetryAfter(delay, _)) if !policy.snoozes_count => {
            Settlement::Snooze { delay: *delay }
        }
        Outcome::Failed(failure) if is_last => {
            dead_letter(Reason::Failed, &format!("{failure} (attempt {number})"))
        }
        Outcome::Failed(Failure::RetryAfter(delay, _)) => {
            Settlement::Nak { delay: Delay::Exactly(*delay) }
        }
        Outcome::Failed(Failure::Retry(_)) => {
            Settlement::Nak { delay: retry_delay(attempt, policy) }
        }
        Outcome::Interrupted => Settlement::Nak { delay: GIVE_BACK },
    }
}

/// How long to wait after this attempt.
pub(crate) fn retry_delay(attempt: Attempt, policy: &RetryPolicy) -> Delay {
    let doublings = u32::try_from(attempt.number() - 1).unwrap_or(u32::MAX);
    let ceiling = backoff::ceiling(policy.first_delay, policy.max_delay, doublings);
    // An invalid share, such as NaN, counts as full jitter.
    let jitter = if (0.0..=1.0).contains(&policy.jitter) { policy.jitter } else { 1.0 };
    Delay::Between(ceiling.mul_f64(1.0 - jitter), ceiling)
}

fn dead_letter(reason: Reason, detail: &str) -> Settlement {
    Settlement::DeadLetter { reason: format!("{}: {detail}", reason.as_str()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = 10;

    fn newer_version() -> Outcome {
        Outcome::Undecodable(DecodeError::NewerVersion { version: "2".to_owned(), newest: 1 })
    }

    fn settle_by_default(outcome: &Outcome, attempt: u64, max_attempts: u64) -> Settlement {
        let policy = RetryPolicy { max_attempts: Some(max_attempts), ..RetryPolicy::default() };
        settle(outcome, Attempt::new(attempt), &policy)
    }

    fn rejected(reason: Reason) -> Outcome {
        Outcome::Rejected(Rejection { reason, detail: "too old".to_owned() })
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(()).prop_map(|()| Outcome::Done),
            Just(()).prop_map(|()| Outcome::Exhausted),
            Just(()).prop_map(|()| Outcome::Interrupted),
            Just(()).prop_map(|()| newer_version()),
            Just(()).prop_map(|()| Outcome::Undecodable(DecodeError::Version("x".to_owned()))),
            Just(()).prop_map(|()| rejected(Reason::Expired)),
            "[a-z ]{0,20}".prop_map(|why| Outcome::Failed(Failure::retry(why))),
            "[a-z ]{0,20}".prop_map(|why| Outcome::Failed(Failure::reject(why))),
            (0..30_000_u64).prop_map(|millis| {
                let delay = Duration::from_millis(millis);
                Outcome::Failed(Failure::RetryAfter(delay, "later".into()))
            }),
        ]
    }

    fn ceiling_after(attempt: u64) -> Duration {
        let failed = Outcome::Failed(Failure::retry("it is away"));
        match settle_by_default(&failed, attempt, u64::MAX) {
            Settlement::Nak { delay: Delay::Between(Duration::ZERO, ceiling) } => ceiling,
            other => panic!("attempt {attempt} is settled by {other:?}"),
        }
    }

    #[test]
    fn failures_are_retried_with_growing_delays() {
        let seconds: Vec<f32> =
            (1..=11).map(|attempt| ceiling_after(attempt).as_secs_f32()).collect();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]);
    }

    #[test]
    fn delays_and_attempts_are_those_of_the_policy() {
        let policy = RetryPolicy {
            max_attempts: Some(2),
            first_delay: Duration::from_secs(5),
            max_delay: Duration::from_secs(7),
            ..RetryPolicy::default()
        };
        let failed = Outcome::Failed(Failure::retry("it is away"));
        let settled = |attempt| settle(&failed, Attempt::new(attempt), &policy);
        assert_eq!(
            settled(1),
            Settlement::Nak { delay: Delay::Between(Duration::ZERO, policy.first_delay) }
        );
        let reason = "failed: it is away (attempt 2)".to_owned();
        assert_eq!(settled(2), Settlement::DeadLetter { reason });
        let later = Outcome::Failed(Failure::RetryAfter(Duration::from_secs(9), "later".into()));
        let delay = Delay::Exactly(Duration::from_secs(9));
        assert_eq!(settle(&later, Attempt::new(1), &policy), Settlement::Nak { delay });
    }

    #[test]
    fn snooze_that_does_not_count_has_no_last_attempt() {
        let delay = Duration::from_secs(9);
        let later = Outcome::Failed(Failure::RetryAfter(delay, "later".into()));
        let policy = RetryPolicy { max_attempts: Some(2), ..RetryPolicy::default() };
        let uncounted = RetryPolicy { snoozes_count: false, ..policy };
        for attempt in [1, 2, 3, u64::MAX] {
            let settled = settle(&later, Attempt::new(attempt), &uncounted);
            assert_eq!(settled, Settlement::Snooze { delay });
        }
        let reason = "failed: later (attempt 2)".to_owned();
        let settled = settle(&later, Attempt::new(2), &policy);
        assert_eq!(settled, Settlement::DeadLetter { reason: reason.clone() });
        // Any other failure counts as an attempt.
        let failed = Outcome::Failed(Failure::retry("later"));
        let settled = settle(&failed, Attempt::new(2), &uncounted);
        assert_eq!(settled, Settlement::DeadLetter { reason });
    }

    #[test]
    fn jitter_is_the_share_of_the_ceiling_that_is_drawn_from() {
        let ceiling = RetryPolicy::default().first_delay;
        for (jitter, least) in [(0.0, 100), (0.25, 75), (1.0, 0), (-1.0, 0), (f64::NAN, 0)] {
            let policy = RetryPolicy { jitter, ..RetryPolicy::default() };
            let delay = Delay::Between(Duration::from_millis(least), ceiling);
            assert_eq!(retry_delay(Attempt::new(1), &policy), delay, "{jitter}");
            let drawn = delay.draw().as_millis();
            assert!((u128::from(least)..=100).contains(&drawn), "{drawn}");
        }
        let forever = Delay::Exactly(Duration::MAX).draw();
        assert!(i64::try_from(forever.as_nanos()).is_ok(), "the broker reads nanoseconds");
    }

    #[test]
    fn failure_is_reported_with_all_its_causes() {
        let source = std::io::Error::other("the disk is full");
        let error = crate::PublishError::Full(source.into());
        let failed = Outcome::Failed(Failure::reject(error));
        let reason = "failed: no room: the disk is full".to_owned();
        assert_eq!(settle_by_default(&failed, 1, MAX), Settlement::DeadLetter { reason });
    }

    #[test]
    fn permanent_failures_are_not_retried() {
        for (outcome, word) in [
            (Outcome::Undecodable(DecodeError::Version("x".to_owned())), "malformed: "),
            (rejected(Reason::Expired), "expired: too old"),
            (Outcome::Failed(Failure::reject("too large")), "failed: too large"),
            (Outcome::Exhausted, "exhausted: "),
        ] {
            let settlement = settle_by_default(&outcome, 1, MAX);
            let Settlement::DeadLetter { reason } = settlement else { panic!("{settlement:?}") };
            assert!(reason.starts_with(word), "{reason}");
        }
    }

    #[test]
    fn newer_version_is_left_to_newer_replicas_for_a_while() {
        let delay = Delay::Exactly(NEWER_VERSION_DELAY);
        let settled = |attempt| settle_by_default(&newer_version(), attempt, MAX);
        assert_eq!(settled(MAX - 1), Settlement::Nak { delay });
        let reason = "unsupported: its version is 2, and 1 is the newest that this service reads";
        assert_eq!(settled(MAX), Settlement::DeadLetter { reason: reason.to_owned() });
    }

    #[test]
    fn interrupted_job_is_never_a_dead_letter() {
        for attempt in [1, MAX, MAX + 1, u64::MAX] {
            let settlement = settle_by_default(&Outcome::Interrupted, attempt, MAX);
            assert_eq!(settlement, Settlement::Nak { delay: GIVE_BACK });
        }
    }

    proptest! {
        #[test]
        fn only_a_done_job_is_acked(outcome in outcomes(), attempt: u64, max in 1_u64..) {
            let settlement = settle_by_default(&outcome, attempt, max);
            prop_assert_eq!(settlement == Settlement::Ack, matches!(outcome, Outcome::Done));
        }

        #[test]
        fn no_failure_is_retried_past_the_limit(
            outcome in outcomes(),
            max in 1_u64..,
            beyond: u64,
        ) {
            prop_assume!(!matches!(outcome, Outcome::Interrupted));
            let settlement = settle_by_default(&outcome, max.saturating_add(beyond), max);
            let again = matches!(settlement, Settlement::Nak { .. });
            prop_assert!(!again, "{settlement:?}");
        }

        #[test]
        fn drawn_delay_is_above_zero_and_not_above_its_limit(attempt: u64) {
            let delay = Delay::Between(Duration::ZERO, ceiling_after(attempt));
            let drawn = delay.draw();
            let limit = RetryPolicy::default().max_delay;
            prop_assert!(!drawn.is_zero() && drawn <= limit, "{drawn:?}");
        }
    }
}
