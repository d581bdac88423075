//! The headers that every message carries: its id, its version, its trace.

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::id::JobId;

/// The version of its job type that a message follows. A message without it is read as version 1.
pub const MESSAGE_VERSION: &str = "Message-Version";

/// How many attempts a job had spent before it was put off without spending one. It is on the copy of its message.
pub const SNOOZE_ATTEMPTS: &str = "Snooze-Attempts";

/// The time before which that copy is not worked on, in RFC 3339.
pub const SNOOZE_UNTIL: &str = "Snooze-Until";

const JSON: &str = "application/json";

// As names, because the library copies a text whenever a header is looked for under it.
static VERSION_NAME: HeaderName = HeaderName::from_static(MESSAGE_VERSION);
static CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
static SNOOZE_ATTEMPTS_NAME: HeaderName = HeaderName::from_static(SNOOZE_ATTEMPTS);
static SNOOZE_UNTIL_NAME: HeaderName = HeaderName::from_static(SNOOZE_UNTIL);
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a message belongs to, as [W3C Trace Context] has it. It is carried from what is
/// consumed to what is published, as it came, so that a trace leads through all queues.
///
/// [W3C Trace Context]: https://www.w3.org/TR/trace-context/
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    parent: Option<HeaderValue>,
    state: Option<HeaderValue>,
}

impl Trace {
    /// The trace that these headers name, if any.
    #[must_use]
    pub fn of(headers: Option<&HeaderMap>) -> Self {
        let Some(headers) = headers else {
            return Self::default();
        };
        let value = |name: &HeaderName| headers.get(name.clone()).cloned();
        Self { parent: value(&TRACEPARENT), state: value(&TRACESTATE) }
    }

    /// The trace that a client outside of the system names. Only valid parts of it are taken: no trace
    /// where the parent is invalid, a trace without a state where only the state is invalid.
    #[must_use]
    pub fn from_outside(parent: &str, state: Option<&str>) -> Self {
        if !is_traceparent(parent) {
            return Self::default();
        }
        let state = state.filter(|state| is_tracestate(state));
        let header = |text: &str| text.parse().ok();
        Self { parent: header(parent), state: state.and_then(header) }
    }
}

/// Whether this is a parent of version 00, or of a later one, which may have more behind it.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|byte| byte != b'0');
    let mut parts = text.splitn(5, '-');
    let (version, trace, parent) = (parts.next(), parts.next(), parts.next());
    let (Some(version), Some(trace), Some(parent), Some(flags), more) =
        (version, trace, parent, parts.next(), parts.next())
    else {
        return false;
    };
    let known = hex(version, 2) && version != "ff" && (version != "00" || more.is_none());
    known && id(trace, 32) && id(parent, 16) && hex(flags, 2) && is_tracestate(text)
}

/// Whether this can be a state, whose meaning only its writers know.
fn is_tracestate(text: &str) -> bool {
    (1..=512).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// The headers of the message of a job, which the broker takes for a duplicate of one under the same id.
pub(crate) fn of_message(id: JobId, version: u64, trace: &Trace) -> HeaderMap {
    let mut headers = without_id(version, trace);
    headers.insert(NATS_MESSAGE_ID, id.to_string());
    headers
}

/// The headers of a message that is never a duplicate.
pub(crate) fn without_id(version: u64, trace: &Trace) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE.clone(), JSON);
    headers.insert(VERSION_NAME.clone(), version.to_string());
    insert_some(&mut headers, &TRACEPARENT, trace.parent.as_ref());
    insert_some(&mut headers, &TRACESTATE, trace.state.as_ref());
    headers
}

fn insert_some(headers: &mut HeaderMap, name: &HeaderName, value: Option<&HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name.clone(), value.clone());
    }
}

/// The attempts and the time on the copy of a message that was put off.
pub(crate) fn of_a_snooze(headers: &HeaderMap) -> Option<(&str, &str)> {
    let value = |name: &HeaderName| headers.get(name.clone()).map(HeaderValue::as_str);
    Some((value(&SNOOZE_ATTEMPTS_NAME)?, value(&SNOOZE_UNTIL_NAME)?))
}

/// Whether a header of this name is of the copy of a message that was put off.
pub(crate) fn is_of_a_snooze(name: &str) -> bool {
    [SNOOZE_ATTEMPTS, SNOOZE_UNTIL].contains(&name)
}

/// The version that a message names.
pub(crate) enum Version {
    /// This reader knows it.
    Known,
    /// It is newer than this reader knows, however large its number.
    Newer(String),
    /// The header is not a whole number from 1.
    Invalid(String),
}

/// The version that these headers name, for a reader that knows versions up to `newest`.
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

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn from_outside_takes_only_valid_parts() {
        let trace = Trace::from_outside(PARENT, Some("vendor=value"));
        assert_eq!(trace.parent.unwrap().as_str(), PARENT);
        assert_eq!(trace.state.unwrap().as_str(), "vendor=value");
        for state in ["", "a=\u{7f}", "a=\tb", &"a".repeat(513)] {
            let trace = Trace::from_outside(PARENT, Some(state));
            assert!(trace.parent.is_some() && trace.state.is_none(), "{state}");
        }
        let later = PARENT.replacen("00", "cc", 1) + "-what-later-versions-add";
        assert!(Trace::from_outside(&later, None).parent.is_some());
        for wrong in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            &format!("{PARENT}-more"),
            &format!("{PARENT} "),
        ] {
            assert_eq!(Trace::from_outside(wrong, Some("a=b")), Trace::default(), "{wrong}");
        }
    }
}
