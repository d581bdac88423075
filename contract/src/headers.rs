//! The headers that every message carries, and the version of the contract that they name.

use async_nats::header::{IntoHeaderName, NATS_MESSAGE_ID};
use async_nats::{HeaderMap, HeaderValue};

use crate::RequestId;

/// The version of the contract that a message follows. One without it is read as version 1.
pub const MESSAGE_VERSION: &str = "Message-Version";

/// The version that this crate writes, and the newest that it reads.
pub const VERSION: u64 = 1;

pub(crate) const CONTENT_TYPE: &str = "Content-Type";
const JSON: &str = "application/json";

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

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
        Self { parent: headers.get(TRACEPARENT).cloned(), state: headers.get(TRACESTATE).cloned() }
    }
}

/// The headers of the message about this request.
pub(crate) fn of_message(id: RequestId, trace: &Trace) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, id.to_string());
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(MESSAGE_VERSION, VERSION.to_string());
    insert_some(&mut headers, TRACEPARENT, trace.parent.as_ref());
    insert_some(&mut headers, TRACESTATE, trace.state.as_ref());
    headers
}

fn insert_some(headers: &mut HeaderMap, name: impl IntoHeaderName, value: Option<&HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value.clone());
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
    let Some(version) = headers.and_then(|headers| headers.get(MESSAGE_VERSION)) else {
        return Version::Known;
    };
    let text = version.as_str();
    // Stricter than parsing a number, which would take +1 and 01, and give up on a large one.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || text.starts_with('0') {
        Version::None(text.to_owned())
    } else if text == VERSION.to_string() {
        Version::Known
    } else {
        Version::Newer(text.to_owned())
    }
}
