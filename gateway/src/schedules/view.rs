//! The JSON of schedules.

use std::time::Duration;

use contract::queues::DueRequest;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use workqueue::{Priority, Recurrence, Schedule};

use crate::input::{named, object};
use crate::problem::{Problem, ProblemKind};
use crate::requests::input::{amount, whole};
use crate::requests::time;
use crate::requests::view::PrioritySchema;

/// A schedule: an interval (`every`), or the times of a `cron` expression, in UTC or in a `time_zone`; and the strings
/// to ask for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NewSchedule {
    /// The interval: whole seconds, at least one, and at most 30 days.
    #[serde(deserialize_with = "time::read_duration")]
    #[schema(value_type = Option<String>, nullable = false, example = "1h")]
    every: Option<Duration>,
    /// Six fields: second, minute, hour, day of the month, month, day of the week.
    #[serde(deserialize_with = "text::<_, 200>")]
    #[schema(
        value_type = Option<String>, nullable = false, max_length = 200, example = "0 30 3 * * *",
        pattern = "^ *[!-?A-~][!-~]*( +[!-~]+){5} *$"
    )]
    cron: Option<String>,
    /// The name of a time zone in the IANA database. Only with `cron`.
    #[serde(deserialize_with = "text::<_, 64>")]
    #[schema(
        value_type = Option<String>, nullable = false, max_length = 64, example = "Europe/Berlin",
        pattern = "^[A-Za-z0-9/_+-]+$"
    )]
    time_zone: Option<String>,
    /// The number of strings of each request.
    #[serde(deserialize_with = "whole")]
    #[schema(default = 1, minimum = 1, maximum = 1000)]
    count: u32,
    /// The number of characters in each, from A-Z, a-z and 0-9.
    #[serde(deserialize_with = "whole")]
    #[schema(default = 64, minimum = 1, maximum = 1024)]
    length: u32,
    /// The priority of the requests.
    #[serde(deserialize_with = "named")]
    #[schema(value_type = PrioritySchema)]
    priority: Priority,
}

impl Default for NewSchedule {
    fn default() -> Self {
        let (every, cron, time_zone) = (None, None, None);
        Self { every, cron, time_zone, count: 1, length: 64, priority: Priority::Normal }
    }
}

/// A text of at most `MOST` characters, but not `null`.
fn text<'de, D, const MOST: usize>(deserializer: D) -> Result<Option<String>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    if text.chars().count() > MOST {
        return Err(D::Error::custom(format_args!("it has more than {MOST} characters")));
    }
    Ok(Some(text))
}

impl NewSchedule {
    /// The recurrence and the request of the schedule with this name.
    pub(super) fn read(body: &[u8], name: &str) -> Result<(Recurrence, DueRequest), Problem> {
        let Self { every, cron, time_zone, count, length, priority } = object(body)?;
        let invalid = |detail: &str| ProblemKind::Invalid.because(detail);
        let recurrence = match (every, cron) {
            (Some(_), None) if time_zone.is_some() => {
                return Err(invalid("time_zone needs a cron expression"));
            }
            (Some(interval), None) => Recurrence::Every(interval),
            (None, Some(expression)) => Recurrence::Cron { expression, time_zone },
            _ => {
                let detail =
                    "write either every, such as \"1h\", or cron, such as \"0 30 3 * * *\"";
                return Err(invalid(detail));
            }
        };
        recurrence.check().map_err(|error| ProblemKind::Invalid.because(error))?;
        let due = DueRequest::of_schedule(name, amount(count, length)?);
        Ok((recurrence, DueRequest { priority, ..due }))
    }
}

/// A schedule, and the strings that it asks for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(super) struct ScheduleView {
    /// Its name.
    name: String,
    /// The interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    every: Option<String>,
    /// A cron expression of six fields, seconds first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cron: Option<String>,
    /// The time zone of the expression. UTC without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    time_zone: Option<String>,
    /// The number of strings.
    count: u32,
    /// The number of characters in each.
    length: u32,
    #[schema(value_type = PrioritySchema)]
    priority: Priority,
}

/// All schedules.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScheduleList {
    /// In the order of their names.
    pub(super) schedules: Vec<ScheduleView>,
}

impl From<Schedule<DueRequest>> for ScheduleView {
    fn from(schedule: Schedule<DueRequest>) -> Self {
        let Schedule { name, recurrence, job } = schedule;
        let (every, cron, time_zone) = match recurrence {
            Recurrence::Every(interval) => (Some(format!("{}s", interval.as_secs())), None, None),
            Recurrence::Cron { expression, time_zone } => (None, Some(expression), time_zone),
        };
        let DueRequest { amount, priority, .. } = job;
        let (count, length) = (amount.count(), amount.length());
        Self { name, every, cron, time_zone, count, length, priority }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schedule_is_read_strictly() {
        let read = |body: &str| NewSchedule::read(body.as_bytes(), "gateway-1").map(|read| read.0);
        let hourly = Recurrence::Every(Duration::from_hours(1));
        assert_eq!(read(r#"{"every": "1h", "count": 2}"#).unwrap(), hourly);
        assert_eq!(read(r#"{"every": "3600000ms", "count": 2}"#).unwrap(), hourly);
        assert!(read(r#"{"cron": "0 30 3 * * *", "time_zone": "Europe/Berlin"}"#).is_ok());
        assert!(read(r#"{"cron": " 0 30  3 * * * "}"#).is_ok());
        let long = json!({ "cron": format!("0 30 3 * * {}", "*".repeat(190)) });
        assert!(read(&long.to_string()).unwrap_err().json().contains("more than 200 characters"));
        let long = json!({ "cron": "0 30 3 * * *", "time_zone": "a".repeat(65) });
        assert!(read(&long.to_string()).unwrap_err().json().contains("more than 64 characters"));
        for (wrong, words) in [
            ("{}", "either every"),
            ("[]", "not a JSON object"),
            (r#"{"every": "1h", "cron": "0 30 3 * * *"}"#, "either every"),
            (r#"{"every": "1h", "time_zone": "UTC"}"#, "needs a cron expression"),
            (r#"{"every": "-1s"}"#, "such as 250ms"),
            (r#"{"every": "31d"}"#, "not a time from 0s to 30d"),
            (r#"{"every": "1500ms"}"#, "whole seconds"),
            (r#"{"every": "0s"}"#, "whole seconds"),
            (r#"{"cron": "30 3 * * *"}"#, "has 5 fields, and a cron expression has six"),
            (r#"{"cron": "@daily"}"#, "has 1 fields"),
            (r#"{"cron": null}"#, "invalid type: null"),
            (r#"{"every": "1h", "count": 0}"#, "0 strings"),
            (r#"{"every": "1h", "delay": "1s"}"#, "unknown field"),
        ] {
            let problem = read(wrong).unwrap_err().json();
            assert!(problem.contains(words), "{wrong}: {problem}");
        }
    }
}
