//! What becomes of a delivery: a total function without input or output, tested alone.

use std::time::Duration;

use contract::dead_letters::EXPIRED;

use crate::backoff;

/// The ceiling of the delay after the first failure. It doubles from one attempt to the next.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The highest ceiling.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// How long a message of a newer version is given back for, so that a newer replica can take it.
const NEWER_VERSION_DELAY: Duration = Duration::from_secs(30);

/// Which delivery of a message this is, from 1. The broker counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(u64);

impl Attempt {
    /// The attempt with this number. The first is 1, and so is what the broker cannot say.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(number.max(1))
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What came of handling a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its effect is durable.
    Done,
    /// It was not handled, because it has been delivered too often without coming to an end:
    /// perhaps it ends whoever handles it.
    Exhausted,
    /// It is not a message of the contract, and never will be.
    Malformed(String),
    /// It is a message of a newer version of the contract.
    NewerVersion(String),
    /// Its request is older than the facts that would stand guard over it.
    Expired(String),
    /// Handling it failed, and may succeed another time.
    Failed(String),
    /// Handling it failed, and always will.
    Impossible(String),
    /// Handling it was broken off, because this service stops.
    Interrupted,
}

/// How a delivery is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is done: the broker may forget the message.
    Ack,
    /// The broker delivers the message again, after a delay.
    Nak {
        /// The delay.
        delay: Delay,
    },
    /// The message goes to the dead letters.
    DeadLetter {
        /// Why, for people. It begins with one word for programs: `malformed`, `unsupported`,
        /// `expired`, `failed` or `exhausted`.
        reason: String,
    },
}

/// How long the broker waits before it delivers a message again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Just that long.
    Exactly(Duration),
    /// A time to be drawn below this ceiling, and above zero.
    Below(Duration),
}

impl Delay {
    /// The time itself, drawn where it is to be.
    pub(crate) fn draw(self) -> Duration {
        match self {
            Self::Exactly(delay) => delay,
            Self::Below(ceiling) => backoff::jittered(ceiling),
        }
    }
}

/// How to settle a delivery with this outcome, where no message is to have more than
/// `max_attempts` attempts.
#[must_use]
pub fn settle(outcome: &Outcome, attempt: Attempt, max_attempts: u64) -> Settlement {
    let number = attempt.number();
    let last = number >= max_attempts;
    let dead = |reason: String| Settlement::DeadLetter { reason };
    match outcome {
        Outcome::Done => Settlement::Ack,
        Outcome::Malformed(why) => dead(format!("malformed: {why}")),
        Outcome::Expired(why) => dead(format!("{EXPIRED}: {why}")),
        Outcome::Impossible(why) => dead(format!("failed: {why}")),
        Outcome::Exhausted => dead(format!(
            "exhausted: delivered {number} times and never settled; perhaps it stops whoever \
             handles it"
        )),
        Outcome::NewerVersion(why) if last => dead(format!("unsupported: {why}")),
        Outcome::NewerVersion(_) => Settlement::Nak { delay: Delay::Exactly(NEWER_VERSION_DELAY) },
        Outcome::Failed(why) if last => dead(format!("failed: {why} (attempt {number})")),
        Outcome::Failed(_) => {
            let doublings = u32::try_from(number - 1).unwrap_or(u32::MAX);
            let ceiling = backoff::ceiling(FIRST_DELAY, LONGEST_DELAY, doublings);
            Settlement::Nak { delay: Delay::Below(ceiling) }
        }
        // Somebody else may take it at once.
        Outcome::Interrupted => Settlement::Nak { delay: Delay::Below(FIRST_DELAY) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = 10;

    fn outcomes() -> impl Strategy<Value = Outcome> {
        let why = || "[a-z ]{0,20}";
        prop_oneof![
            Just(Outcome::Done),
            Just(Outcome::Exhausted),
            Just(Outcome::Interrupted),
            why().prop_map(Outcome::Malformed),
            why().prop_map(Outcome::NewerVersion),
            why().prop_map(Outcome::Expired),
            why().prop_map(Outcome::Failed),
            why().prop_map(Outcome::Impossible),
        ]
    }

    fn ceiling_after(attempt: u64) -> Duration {
        let failed = Outcome::Failed(String::new());
        match settle(&failed, Attempt::new(attempt), u64::MAX) {
            Settlement::Nak { delay: Delay::Below(ceiling) } => ceiling,
            other => panic!("attempt {attempt} is settled by {other:?}"),
        }
    }

    #[test]
    fn failures_are_tried_again_ever_later() {
        let seconds: Vec<f32> =
            (1..=11).map(|attempt| ceiling_after(attempt).as_secs_f32()).collect();
        assert_eq!(seconds, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]);
    }

    #[test]
    fn what_can_never_be_handled_is_not_tried_again() {
        for outcome in [
            Outcome::Malformed("no JSON".to_owned()),
            Outcome::Expired("too old".to_owned()),
            Outcome::Impossible("too large".to_owned()),
            Outcome::Exhausted,
        ] {
            let settlement = settle(&outcome, Attempt::new(1), MAX);
            assert!(matches!(settlement, Settlement::DeadLetter { .. }), "{settlement:?}");
        }
    }

    #[test]
    fn a_newer_version_is_left_to_newer_replicas_for_a_while() {
        let newer = Outcome::NewerVersion("version 2".to_owned());
        let delay = Delay::Exactly(NEWER_VERSION_DELAY);
        assert_eq!(settle(&newer, Attempt::new(MAX - 1), MAX), Settlement::Nak { delay });
        assert_eq!(
            settle(&newer, Attempt::new(MAX), MAX),
            Settlement::DeadLetter { reason: "unsupported: version 2".to_owned() }
        );
    }

    #[test]
    fn what_a_stopping_service_gives_back_is_never_a_dead_letter() {
        for attempt in [1, MAX, MAX + 1, u64::MAX] {
            let settlement = settle(&Outcome::Interrupted, Attempt::new(attempt), MAX);
            assert_eq!(settlement, Settlement::Nak { delay: Delay::Below(FIRST_DELAY) });
        }
    }

    proptest! {
        #[test]
        fn only_what_is_done_is_acked(outcome in outcomes(), attempt: u64, max in 1_u64..) {
            let settlement = settle(&outcome, Attempt::new(attempt), max);
            prop_assert_eq!(settlement == Settlement::Ack, outcome == Outcome::Done);
        }

        #[test]
        fn no_failure_is_tried_past_the_limit(
            outcome in outcomes(),
            max in 1_u64..,
            beyond: u64,
        ) {
            prop_assume!(outcome != Outcome::Interrupted);
            let attempt = Attempt::new(max.saturating_add(beyond));
            let settlement = settle(&outcome, attempt, max);
            let again = matches!(settlement, Settlement::Nak { .. });
            prop_assert!(!again, "{settlement:?}");
        }

        #[test]
        fn a_delay_is_above_zero_and_not_above_its_limit(outcome in outcomes(), attempt: u64) {
            if let Settlement::Nak { delay } = settle(&outcome, Attempt::new(attempt), u64::MAX) {
                let drawn = delay.draw();
                prop_assert!(!drawn.is_zero() && drawn <= LONGEST_DELAY, "{drawn:?}");
            }
        }
    }
}
