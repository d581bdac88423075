//! The headers that every message carries: its version and its [trace](crate::Trace).

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::trace::Trace;

/// The version of its job type that a message follows. A message without it is read as version 1.
pub const MESSAGE_VERSION: &str = "Message-Version";

/// The number of attempts that a job had spent before it was snoozed, on the copy of its message.
pub const SNOOZE_ATTEMPTS: &str = "Snooze-Attempts";

/// The time, in RFC 3339, before which no worker handles that copy. Without it, a worker handles the copy at once.
pub const SNOOZE_UNTIL: &str = "Snooze-Until";

/// The id of the span of the attempt before it, on that copy, if the spans of its trace are recorded.
pub const SNOOZE_SPAN: &str = "Snooze-Span";

const JSON: &str = "application/json";

// Header names, because a lookup by text copies the text.
static VERSION_NAME: HeaderName = HeaderName::from_static(MESSAGE_VERSION);
static CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
static SNOOZE_ATTEMPTS_NAME: HeaderName = HeaderName::from_static(SNOOZE_ATTEMPTS);
static SNOOZE_UNTIL_NAME: HeaderName = HeaderName::from_static(SNOOZE_UNTIL);
static SNOOZE_SPAN_NAME: HeaderName = HeaderName::from_static(SNOOZE_SPAN);

/// The headers of the message of a job, without a message id.
pub(crate) fn of_message(version: u64, trace: &Trace) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE.clone(), JSON);
    headers.insert(VERSION_NAME.clone(), version.to_string());
    trace.add_to(&mut headers);
    headers
}

/// The attempts and the time on the copy of a snoozed message.
pub(crate) fn of_a_snooze(headers: &HeaderMap) -> Option<(&str, Option<&str>)> {
    let value = |name: &HeaderName| headers.get(name.clone()).map(HeaderValue::as_str);
    Some((value(&SNOOZE_ATTEMPTS_NAME)?, value(&SNOOZE_UNTIL_NAME)))
}

/// The span of the attempt before the copy of a snoozed message.
pub(crate) fn span_of_a_snooze(headers: &HeaderMap) -> Option<&str> {
    headers.get(SNOOZE_SPAN_NAME.clone()).map(HeaderValue::as_str)
}

/// Whether the copy of a snoozed message has a header of this name.
pub(crate) fn is_of_a_snooze(name: &str) -> bool {
    [SNOOZE_ATTEMPTS, SNOOZE_UNTIL, SNOOZE_SPAN].contains(&name)
}

/// The version that a message names.
pub(crate) enum Version {
    /// A version that this reader supports.
    Known,
    /// A version that is newer than this reader supports, however large its number.
    Newer(String),
    /// The header is not a whole number from 1.
    Invalid(String),
}

/// The version in these headers, for a reader that supports versions up to `newest`.
pub(crate) fn version(headers: Option<&HeaderMap>, newest: u64) -> Version {
    let Some(version) = headers.and_then(|headers| headers.get(VERSION_NAME.clone())) else {
        return Version::Known;
    };
    let text = version.as_str();
    // Stricter than parsing a number, which would take +1 and 01, and give up on a large one.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || text.starts_with('0') {
        Version::Invalid(text.to_owned())
    } else if text.parse().is_ok_and(|version: u64| version <= newest) {
        Version::Known
    } else {
        Version::Newer(text.to_owned())
    }
}
