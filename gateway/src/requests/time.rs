//! The time at which a request is due, and durations as clients write them.

use std::time::Duration;

use contract::facts::Asked;
use contract::queues::LONGEST_DELAY;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::input::whole_number;

/// The pattern of a duration up to [`LONGEST_DELAY`].
pub(crate) const PATTERN: &str = "^(0|[1-9][0-9]{0,8})ms$\
    |^(0|[1-9][0-9]{0,5}|1[0-9]{6}|2[0-4][0-9]{5}|25[0-8][0-9]{4}|259[01][0-9]{3}|2592000)s$\
    |^(0|[1-9][0-9]{0,3}|[1-3][0-9]{4}|4[0-2][0-9]{3}|43[01][0-9]{2}|43200)m$\
    |^(0|[1-9][0-9]?|[1-6][0-9]{2}|7[01][0-9]|720)h$\
    |^(0|[1-9]|[12][0-9]|30)d$";

/// The time at which a request is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Time {
    /// At once.
    #[default]
    Now,
    /// This long after it was made.
    After(Duration),
    /// At this time, or at once if it has passed.
    At(Timestamp),
}

impl Time {
    /// The time for a request that is made now.
    pub(super) fn from(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Now => None,
            Self::After(delay) => now.checked_add(delay).ok(),
            Self::At(time) => Some(time),
        }
    }

    /// The delay in milliseconds, if there is one.
    pub(super) fn delay_ms(self) -> Option<u64> {
        match self {
            Self::After(delay) => u64::try_from(delay.as_millis()).ok(),
            Self::Now | Self::At(_) => None,
        }
    }

    /// The time for the request of a key.
    pub(super) fn of(asked: &Asked) -> Self {
        match (asked.delay_ms, asked.not_before) {
            (Some(delay), _) => Self::After(Duration::from_millis(delay)),
            (None, Some(time)) => Self::At(time),
            (None, None) => Self::Now,
        }
    }
}

/// A duration: a whole number and its unit.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|sign: char| sign.is_ascii_lowercase());
    let number = whole_number(digits)?;
    let duration = match &text[digits.len()..] {
        "ms" if digits.len() <= 9 => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        "d" => Duration::from_secs(number.checked_mul(86_400)?),
        _ => return None,
    };
    (duration <= LONGEST_DELAY).then_some(duration)
}

/// A duration. The error for any other text shows how to write one.
pub(crate) fn read_duration<'de, D>(deserializer: D) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    let help = "not a time from 0s to 30d: write a whole number with a unit, such as 250ms, 10s, 5m, 24h or 30d";
    let shown: String = text.chars().take(64).collect();
    duration(&text).map(Some).ok_or_else(|| D::Error::custom(format_args!("'{shown}' is {help}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_a_whole_number_with_a_unit() {
        for (text, seconds) in [
            ("0s", 0),
            ("10s", 10),
            ("5m", 300),
            ("720h", 2_592_000),
            ("30d", 2_592_000),
            ("2592000s", 2_592_000),
            ("3000ms", 3),
        ] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in [
            "",
            "s",
            "10",
            "-1s",
            "+1s",
            "01s",
            "1.5s",
            "31d",
            "2592001s",
            "43201m",
            "721h",
            "1 s",
            "1S",
            "1s1s",
            "1w",
            "9999999999ms",
            "99999999999999999999d",
        ] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
