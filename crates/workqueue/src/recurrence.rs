//! The recurrence of a job, and the headers that describe it to the broker.

use std::fmt;
use std::time::Duration;

use async_nats::header::{
    NATS_SCHEDULE, NATS_SCHEDULE_NEXT, NATS_SCHEDULE_TARGET, NATS_SCHEDULE_TIME_ZONE,
    NATS_SCHEDULER,
};
use async_nats::{HeaderMap, HeaderValue};
use jiff::SignedDuration;

/// The most characters of a schedule's name.
const LONGEST_NAME: usize = 64;

/// The longest time between two jobs of a schedule.
const LONGEST_INTERVAL: Duration = Duration::from_hours(30 * 24);

/// How many fields a cron expression has here.
const FIELDS: usize = 6;

const AN_EXPRESSION: &str = "second, minute, hour, day of the month, month and day of the week, such as \
                             '0 30 3 * * *' for half past three each night";

/// When a recurring job is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recurrence {
    /// At this interval: whole seconds, at least one, and at most 30 days. The job is first due one interval after the
    /// schedule is set.
    Every(Duration),
    /// At the times that a cron expression describes.
    Cron {
        /// Six fields: second, minute, hour, day of the month, month, day of the week.
        expression: String,
        /// The name of a time zone in the IANA database, such as `Europe/Berlin`. UTC without one.
        time_zone: Option<String>,
    },
}

/// The schedule is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    /// The name is not a token of a subject.
    #[error(
        "'{0}' is not a name for a schedule: write 1 to {LONGEST_NAME} characters of A-Z, a-z, 0-9, '-' and '_'"
    )]
    Name(String),
    /// The interval has no whole seconds, or is too short or too long.
    #[error("an interval of {0:?}: write whole seconds, at least one, and at most 30 days")]
    Interval(Duration),
    /// The expression has too few fields, or too many.
    #[error("'{expression}' has {fields} fields, and a cron expression has six: {AN_EXPRESSION}")]
    Fields {
        /// The expression.
        expression: String,
        /// How many fields it has.
        fields: usize,
    },
    /// The broker cannot read the expression.
    #[error(
        "'{0}' is not a cron expression that the broker accepts; the six fields are {AN_EXPRESSION}"
    )]
    Expression(String),
    /// The broker does not know the time zone.
    #[error(
        "the broker knows no time zone '{0}'; write a name of the IANA database, such as Europe/Berlin, or \
         leave it out for UTC"
    )]
    TimeZone(String),
    /// A job with an id of its own would be the same job each time.
    #[error("a job with an id of its own cannot recur: it would be the same job each time")]
    HasId,
}

/// Whether a schedule can have this name, which is one token of a subject.
///
/// # Errors
///
/// [`InvalidSchedule::Name`].
pub fn check_name(name: &str) -> Result<(), InvalidSchedule> {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_known) {
        Ok(())
    } else {
        Err(InvalidSchedule::Name(name.chars().take(LONGEST_NAME).collect()))
    }
}

impl Recurrence {
    /// Checks the recurrence, as far as that is possible without the broker.
    ///
    /// # Errors
    ///
    /// See [`InvalidSchedule`].
    pub fn check(&self) -> Result<(), InvalidSchedule> {
        match self {
            Self::Every(interval) => {
                let is_possible = (Duration::from_secs(1)..=LONGEST_INTERVAL).contains(interval);
                if is_possible && interval.subsec_nanos() == 0 {
                    Ok(())
                } else {
                    Err(InvalidSchedule::Interval(*interval))
                }
            }
            Self::Cron { expression, time_zone } => {
                let fields = expression.split_ascii_whitespace().count();
                let short = || expression.chars().take(100).collect();
                if fields != FIELDS {
                    return Err(InvalidSchedule::Fields { expression: short(), fields });
                }
                // For the broker, an expression with @ is another kind of schedule.
                if expression.starts_with('@')
                    || !expression.bytes().all(|it| (b' '..=b'~').contains(&it))
                {
                    return Err(InvalidSchedule::Expression(short()));
                }
                match time_zone.as_deref() {
                    // In Go these mean UTC, and the zone of the broker's machine.
                    Some(zone) if ["", "Local"].contains(&zone) || !is_zone(zone) => {
                        Err(InvalidSchedule::TimeZone(zone.chars().take(100).collect()))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Adds the headers of a schedule that fires into this subject.
    pub(crate) fn insert_into(&self, headers: &mut HeaderMap, target: &str) {
        let pattern = match self {
            Self::Every(interval) => format!("@every {}s", interval.as_secs()),
            Self::Cron { expression, .. } => expression.clone(),
        };
        headers.insert(NATS_SCHEDULE, pattern);
        headers.insert(NATS_SCHEDULE_TARGET, target);
        if let Self::Cron { time_zone: Some(zone), .. } = self {
            headers.insert(NATS_SCHEDULE_TIME_ZONE, zone.as_str());
        }
    }

    /// The recurrence of a schedule with these headers.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let pattern = headers.get(NATS_SCHEDULE)?.as_str();
        if let Some(interval) = pattern.strip_prefix("@every ") {
            let interval = interval.parse::<SignedDuration>().ok()?;
            return Some(Self::Every(interval.try_into().ok()?));
        }
        let time_zone = headers.get(NATS_SCHEDULE_TIME_ZONE).map(|zone| zone.as_str().to_owned());
        Some(Self::Cron { expression: pattern.to_owned(), time_zone })
    }
}

fn is_zone(zone: &str) -> bool {
    zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte))
}

impl fmt::Display for Recurrence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(interval) => {
                let interval = SignedDuration::try_from(*interval).unwrap_or(SignedDuration::MAX);
                write!(formatter, "every {interval:#}")
            }
            Self::Cron { expression, time_zone: None } => write!(formatter, "{expression} (UTC)"),
            Self::Cron { expression, time_zone: Some(zone) } => {
                write!(formatter, "{expression} ({zone})")
            }
        }
    }
}

/// Whether a header of this name belongs to a schedule. The broker ignores the case.
pub(crate) fn is_of_a_schedule(name: &str) -> bool {
    const PREFIX: &str = "Nats-Schedule";
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// The schedule that has fired a message, and the next time by the broker's header: together they identify the firing.
pub(crate) fn firing(headers: &HeaderMap) -> Option<[&str; 2]> {
    let value = |name| headers.get(name).map(HeaderValue::as_str);
    Some([value(NATS_SCHEDULER)?, value(NATS_SCHEDULE_NEXT)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(expression: &str, time_zone: Option<&str>) -> Recurrence {
        let time_zone = time_zone.map(str::to_owned);
        Recurrence::Cron { expression: expression.to_owned(), time_zone }
    }

    #[test]
    fn recurrence_is_read_from_its_headers() {
        for recurrence in [
            Recurrence::Every(Duration::from_secs(90)),
            cron("0 30 3 * * *", None),
            cron("0 30 3 * * MON", Some("Europe/Berlin")),
        ] {
            assert_eq!(recurrence.check(), Ok(()));
            let mut headers = HeaderMap::new();
            recurrence.insert_into(&mut headers, "due.every.nightly");
            assert_eq!(Recurrence::of(&headers), Some(recurrence));
        }
        let mut headers = HeaderMap::new();
        headers.insert(NATS_SCHEDULE, "@every 1m30s");
        assert_eq!(Recurrence::of(&headers), Some(Recurrence::Every(Duration::from_secs(90))));
    }

    #[test]
    fn impossible_recurrence_is_refused_with_a_hint() {
        for (recurrence, words) in [
            (Recurrence::Every(Duration::ZERO), "whole seconds, at least one"),
            (Recurrence::Every(Duration::from_millis(1500)), "whole seconds, at least one"),
            (Recurrence::Every(Duration::from_hours(721)), "at most 30 days"),
            (
                cron("0 3 * * *", None),
                "has 5 fields, and a cron expression has six: second, minute",
            ),
            (cron("@every 1s 0 0 0 0", None), "not a cron expression"),
            (cron("0 0 3 * * *", Some("Local")), "such as Europe/Berlin"),
            (cron("0 0 3 * * *", Some("UTC\r\nNats-TTL: 1s")), "such as Europe/Berlin"),
        ] {
            let error = recurrence.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn name_of_a_schedule_is_one_token() {
        assert_eq!(check_name("nightly-2_b"), Ok(()));
        for name in ["", "a.b", "*", "a b", "ä", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
