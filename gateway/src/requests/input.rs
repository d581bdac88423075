//! The input of the requests' API.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Uri};
use contract::queues::LONGEST_DELAY;
use contract::{Amount, IdempotencyKey, MAX_COUNT, MAX_LENGTH, RequestStatus};
use jiff::Timestamp;
use observe::requests::Filter;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use workqueue::{JobId, Priority, Trace, now};

use super::time::{self, Time};
use super::view::PrioritySchema;
use crate::input::{
    NoQuery, limit_within_bounds, named, named_if, object, one, query, read_body, whole_number,
};
use crate::problem::{Problem, ProblemKind};

/// The longest `wait` of a client, in milliseconds.
const MAX_WAIT: u64 = 60_000;

/// The end of the path to the events of a request.
const EVENTS: &str = "/events";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The strings to ask for: up to 1000 of up to 1024 characters each, and up to 65536 characters in all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NewRequest {
    /// The number of strings.
    #[serde(deserialize_with = "whole")]
    #[schema(default = 1, minimum = 1, maximum = 1000)]
    count: u32,
    /// The number of characters in each, from A-Z, a-z and 0-9.
    #[serde(deserialize_with = "whole")]
    #[schema(default = 64, minimum = 1, maximum = 1024)]
    length: u32,
    /// Its priority.
    #[serde(deserialize_with = "named")]
    #[schema(value_type = PrioritySchema)]
    priority: Priority,
    /// When it expires. From then on no worker handles it, and it becomes a dead letter, `expired`.
    #[serde(deserialize_with = "some_time")]
    #[schema(nullable = false)]
    expires_at: Option<Timestamp>,
    /// The delay until it is due: at most 30 days. Not together with `not_before`.
    #[serde(deserialize_with = "time::read_duration")]
    #[schema(value_type = Option<String>, nullable = false, example = "10s")]
    delay: Option<Duration>,
    /// When it is due: at most 30 days from now. With a time in the past it is due at once.
    #[serde(deserialize_with = "some_time")]
    #[schema(value_type = Option<Timestamp>, nullable = false)]
    not_before: Option<Timestamp>,
}

impl Default for NewRequest {
    fn default() -> Self {
        let (expires_at, delay, not_before) = (None, None, None);
        let (count, length, priority) = (1, 64, Priority::Normal);
        Self { count, length, priority, expires_at, delay, not_before }
    }
}

/// An optional time, which may not be `null`.
fn some_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let shown: String = text.chars().take(64).collect();
    let help = "no time with its offset, such as 2026-11-21T07:00:00Z or 2026-11-21T08:00:00+01:00";
    text.parse().map(Some).map_err(|_| D::Error::custom(format_args!("'{shown}' is {help}")))
}

/// A whole number, which in JSON may also be written as `1.0`.
pub(crate) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole = number.as_u64().and_then(|number| u32::try_from(number).ok());
    let pointed = || {
        let number = number.as_f64().filter(|number| number.fract() == 0.0)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is checked"
        )]
        (0.0..=f64::from(u32::MAX)).contains(&number).then_some(number as u32)
    };
    whole
        .or_else(pointed)
        .ok_or_else(|| D::Error::custom(format_args!("{number} is not such a whole number")))
}

/// The content of a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) amount: Amount,
    pub(super) priority: Priority,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) time: Time,
}

/// A request for strings, as a client submits it.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(super) wanted: Wanted,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) trace: Trace,
}

impl Submission {
    pub(super) async fn read(request: Request) -> Result<Self, Problem> {
        let NoQuery {} = query(request.uri())?;
        let headers = request.headers().clone();
        let key = key(&headers)?;
        let body = read_body(request).await?;
        Ok(Self { wanted: wanted(&body, now())?, key, trace: Trace::of_request(&headers) })
    }
}

fn wanted(body: &[u8], now: Timestamp) -> Result<Wanted, Problem> {
    let new = if body.is_empty() { NewRequest::default() } else { object(body)? };
    let NewRequest { count, length, priority, expires_at, delay, not_before } = new;
    let amount = amount(count, length)?;
    let time = match (delay, not_before) {
        (Some(_), Some(_)) => {
            return Err(ProblemKind::Invalid.because("write either delay or not_before, not both"));
        }
        (Some(delay), None) => Time::After(delay),
        (None, Some(time)) => Time::At(time),
        (None, None) => Time::Now,
    };
    let latest = now.saturating_add(LONGEST_DELAY).unwrap_or(Timestamp::MAX);
    match time {
        Time::At(time) if time > latest => Err(ProblemKind::Impossible.because(format_args!(
            "not_before is more than 30 days away: write one of up to {latest:.0}"
        ))),
        _ => Ok(Wanted { amount, priority, expires_at, time }),
    }
}

pub(crate) fn amount(count: u32, length: u32) -> Result<Amount, Problem> {
    Amount::new(count, length).map_err(|error| ProblemKind::Invalid.because(error))
}

fn key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(value) = one(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    // A header of HTTP is bytes. Most clients send UTF-8. Other bytes come from older clients, which send Latin-1.
    let text = match str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|byte| char::from(*byte)).collect(),
    };
    let key = text.try_into();
    key.map(Some)
        .map_err(|error| ProblemKind::Invalid.because(format_args!("Idempotency-Key: {error}")))
}

/// The id at the end of a path, or before `/events`. It is not unescaped, because an id has one spelling.
pub(crate) fn id(uri: &Uri) -> Result<JobId, Problem> {
    let path = uri.path().strip_suffix(EVENTS).unwrap_or(uri.path());
    let id = path.rsplit('/').next().unwrap_or_default();
    id.parse().map_err(|error| ProblemKind::Invalid.because(error))
}

/// The parameters of a list.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(deserialize_with = "named_if")]
    status: Option<RequestStatus>,
    #[serde(deserialize_with = "named_if")]
    priority: Option<Priority>,
    requested_by: Option<String>,
    /// The `next` of the previous page.
    pub(super) cursor: Option<String>,
    /// The length of a page.
    #[serde(deserialize_with = "limit_within_bounds")]
    pub(super) limit: usize,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self { status: None, priority: None, requested_by: None, cursor: None, limit: 50 }
    }
}

impl ListQuery {
    /// The filter of the list.
    pub(super) fn filter(&self) -> Filter {
        let &Self { status, priority, ref requested_by, .. } = self;
        Filter { status, priority, requested_by: requested_by.clone() }
    }
}

/// The parameters of one request.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WaitQuery {
    /// The longest wait for the strings.
    #[serde(deserialize_with = "time_within_bounds")]
    pub(super) wait: Option<Duration>,
}

fn time_within_bounds<'de, D>(deserializer: D) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    let seconds = || whole_number(text.strip_suffix('s')?)?.checked_mul(1000);
    let millis = text.strip_suffix("ms").map_or_else(seconds, whole_number);
    match millis {
        Some(millis @ 0..=MAX_WAIT) => Ok(Some(Duration::from_millis(millis))),
        _ => Err(D::Error::custom("write a time from 0s to 60s, or in ms")),
    }
}

const _: () = assert!(MAX_COUNT == 1000 && MAX_LENGTH == 1024, "the schema has other limits");

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn limit(text: &str) -> Option<usize> {
        query(&format!("/requests?{text}").parse().unwrap()).map(|it: ListQuery| it.limit).ok()
    }

    fn wait(text: &str) -> Option<WaitQuery> {
        query(&format!("/requests?{text}").parse().unwrap()).ok()
    }

    #[test]
    fn body_is_read_strictly() {
        let read = |body: &str| {
            let wanted = wanted(body.as_bytes(), now()).ok()?;
            Some((wanted.amount.count(), wanted.amount.length()))
        };
        assert_eq!(read(""), Some((1, 64)));
        assert_eq!(read("{}"), Some((1, 64)));
        assert_eq!(read(r#" {"length": 3, "count": 2.0} "#), Some((2, 3)));
        for wrong in [
            "null",
            "[1, 64]",
            "1",
            " ",
            "{",
            "{}{}",
            r#"{"count": null}"#,
            r#"{"count": "1"}"#,
            r#"{"count": 1.5}"#,
            r#"{"count": -1}"#,
            r#"{"count": 0}"#,
            r#"{"count": 1001}"#,
            r#"{"count": 1e400}"#,
            r#"{"length": 1025}"#,
            r#"{"count": 65, "length": 1024}"#,
            r#"{"count": 1, "count": 1}"#,
            r#"{"counts": 1}"#,
            r#"{"priority": "urgent"}"#,
            r#"{"priority": "High"}"#,
            r#"{"priority": null}"#,
            r#"{"expires_at": null}"#,
            r#"{"expires_at": "tomorrow"}"#,
            r#"{"expires_at": "2026-11-21"}"#,
            r#"{"expires_at": 1795245438}"#,
            r#"{"delay": null}"#,
            r#"{"delay": 10}"#,
            r#"{"delay": "-1s"}"#,
            r#"{"delay": "31d"}"#,
            r#"{"delay": "1s", "not_before": "2026-01-02T12:00:00Z"}"#,
            r#"{"not_before": "2026-01-02T12:00:00"}"#,
            r#"{"not_before": "tomorrow"}"#,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        let priority = |body: &[u8]| wanted(body, now()).map(|wanted| wanted.priority).ok();
        assert_eq!(priority(b"{}"), Some(Priority::Normal));
        assert_eq!(priority(br#"{"priority": "high"}"#), Some(Priority::High));
    }

    #[test]
    fn request_is_due_in_at_most_30_days() {
        let noon: Timestamp = "2026-01-02T12:00:00Z".parse().unwrap();
        let time = |body: &str| wanted(body.as_bytes(), noon).map(|wanted| wanted.time);
        assert_eq!(time("{}").unwrap(), Time::Now);
        let delay = Duration::from_secs(10);
        assert_eq!(time(r#"{"delay": "10s"}"#).unwrap(), Time::After(delay));
        for at in ["2020-01-01T00:00:00Z", "2026-02-01T12:00:00Z", "2026-02-01T13:00:00+01:00"] {
            let expected = Time::At(at.parse().unwrap());
            assert_eq!(time(&format!(r#"{{"not_before": "{at}"}}"#)).unwrap(), expected);
        }
        let problem = time(r#"{"not_before": "2026-02-01T12:00:01Z"}"#).unwrap_err();
        assert!(problem.json().contains("up to 2026-02-01T12:00:00Z"), "{}", problem.json());
    }

    #[test]
    fn query_is_read_strictly() {
        assert_eq!(limit(""), Some(50));
        assert_eq!(limit("limit=1000"), Some(1000));
        for wrong in ["limit=0", "limit=1001", "limit=", "limit=01", "limit=%2B1", "limit=1.0"] {
            assert_eq!(limit(wrong), None, "{wrong}");
        }
        for wrong in ["limits=1", "limit=1&limit=1", "=", "Limit=1", "wait=1s"] {
            assert_eq!(limit(wrong), None, "{wrong}");
        }
        assert_eq!(wait(""), Some(WaitQuery { wait: None }));
        for (text, millis) in [("0s", 0), ("10s", 10_000), ("60s", 60_000), ("250ms", 250)] {
            let time = Some(Duration::from_millis(millis));
            assert_eq!(wait(&format!("wait={text}")), Some(WaitQuery { wait: time }), "{text}");
        }
        for wrong in ["", "10", "61s", "60001ms", "-1s", "1m", "soon", "1.5s", "99999999999999999s"]
        {
            assert_eq!(wait(&format!("wait={wrong}")), None, "{wrong}");
        }
        let nothing = |uri: &str| query(&uri.parse().unwrap()).map(|NoQuery {}| ()).is_ok();
        assert!(nothing("/openapi.json") && nothing("/openapi.json?"));
        assert!(!nothing("/openapi.json?pretty"));
    }

    #[test]
    fn key_is_any_text_of_up_to_255_characters() {
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
            }
            key(&headers).map(|key| key.map(|key| key.to_string())).ok()
        };
        assert_eq!(read(&[]), Some(None));
        assert_eq!(read(&["ä".repeat(255).as_bytes()]), Some(Some("ä".repeat(255))));
        assert_eq!(read(&["ä".repeat(256).as_bytes()]), None);
        assert_eq!(read(&[b"\xe4"]), Some(Some("ä".to_owned())));
        assert_eq!(read(&[b""]), None);
        assert_eq!(read(&[b"one", b"two"]), None);
    }
}
