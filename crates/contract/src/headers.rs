//! The headers that every message carries, and the version of the contract that they name.

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::RequestId;

/// The version of the contract that a message follows. One without it is read as version 1.
pub const MESSAGE_VERSION: &str = "Message-Version";

/// The version that this crate writes, and the newest that it reads.
pub const VERSION: u64 = 1;

const JSON: &str = "application/json";

// As names, because the library copies a text whenever a header is looked for under it.
static VERSION_NAME: HeaderName = HeaderName::from_static(MESSAGE_VERSION);
static CONTENT_TYPE: HeaderName = HeaderName::from_static("Content-Type");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a message belongs to, as [W3C Trace Context] has it. It is carried from what is
/// consumed to what is published, as it came: who traces can follow a request through all queues.
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

    /// The trace that somebody outside names, from whom only what is valid is taken: none where the
    /// parent is not, and one without a state where only the state is not.
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

/// Whether this can be a state: nobody but those who have written it knows more of it.
fn is_tracestate(text: &str) -> bool {
    (1..=512).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// The headers of the message about this request.
pub(crate) fn of_message(id: RequestId, trace: &Trace) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, id.to_string());
    headers.insert(CONTENT_TYPE.clone(), JSON);
    headers.insert(VERSION_NAME.clone(), VERSION.to_string());
    insert_some(&mut headers, &TRACEPARENT, trace.parent.as_ref());
    insert_some(&mut headers, &TRACESTATE, trace.state.as_ref());
    headers
}

fn insert_some(headers: &mut HeaderMap, name: &HeaderName, value: Option<&HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name.clone(), value.clone());
    }
}

/// The version that a message says it follows.
pub(crate) enum Version {
    /// One that is read here.
    Known,
    /// A newer one than is known here, however large its number.
    Newer(String),
    /// What stands there is not a whole number from 1.
    None(String),
}

pub(crate) fn version(headers: Option<&HeaderMap>) -> Version {
    let Some(version) = headers.and_then(|headers| headers.get(VERSION_NAME.clone())) else {
        return Version::Known;
    };
    let text = version.as_str();
    // Stricter than parsing a number, which would take +1 and 01, and give up on a large one.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || text.starts_with('0') {
        Version::None(text.to_owned())
    } else if text.parse() == Ok(VERSION) {
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
    fn of_a_trace_from_outside_only_what_is_valid_is_taken() {
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
