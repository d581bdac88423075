//! The trace that a message belongs to.

use async_nats::{HeaderMap, HeaderName, HeaderValue};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a message belongs to, in the format of [W3C Trace Context]. It is copied unchanged from a consumed
/// message to the messages published for it, so a trace leads through all queues.
///
/// [W3C Trace Context]: https://www.w3.org/TR/trace-context/
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    parent: Option<HeaderValue>,
    state: Option<HeaderValue>,
}

impl Trace {
    /// The trace in these headers, if any.
    #[must_use]
    pub fn of(headers: Option<&HeaderMap>) -> Self {
        let Some(headers) = headers else {
            return Self::default();
        };
        let value = |name: &HeaderName| headers.get(name.clone()).cloned();
        Self { parent: value(&TRACEPARENT), state: value(&TRACESTATE) }
    }

    /// The trace in an HTTP request, as [`Trace::from_outside`]. A repeated parent counts as none.
    #[must_use]
    pub fn of_request(headers: &hyper::HeaderMap) -> Self {
        let texts = |name| headers.get_all(name).iter().map(|value| value.to_str().ok());
        let parents: Option<Vec<&str>> = texts("traceparent").collect();
        // This header may be repeated; its values form one list.
        let states: Option<Vec<&str>> = texts("tracestate").collect();
        let state = states.filter(|states| !states.is_empty()).map(|states| states.join(","));
        match parents.as_deref() {
            Some([parent]) => Self::from_outside(parent, state.as_deref()),
            _ => Self::default(),
        }
    }

    /// Adds this trace to these headers.
    pub(crate) fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in [(&TRACEPARENT, &self.parent), (&TRACESTATE, &self.state)] {
            if let Some(value) = value {
                headers.insert(name.clone(), value.clone());
            }
        }
    }

    /// The id of the trace in these headers, 32 hexadecimal digits.
    #[must_use]
    pub fn id_of(headers: &HeaderMap) -> Option<&str> {
        let parent = headers.get(TRACEPARENT.clone())?.as_str();
        if is_traceparent(parent) { parent.split('-').nth(1) } else { None }
    }

    /// Its `traceparent`, in the format of W3C Trace Context.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.parent.as_ref().map(HeaderValue::as_str)
    }

    /// Sets the part with this name, if its value is valid for a header.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let value = value.parse().ok().filter(|_| !value.is_empty());
        match name {
            "traceparent" => self.parent = value,
            "tracestate" => self.state = value,
            _ => {}
        }
    }

    /// Its `tracestate`.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        self.state.as_ref().map(HeaderValue::as_str)
    }

    /// The trace of a client outside of the system. Only valid parts are used: no trace if the parent is invalid, and
    /// a trace without a state if only the state is invalid.
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

/// Whether this is a parent of version 00, or of a later version, which may have further fields.
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

/// Whether this is a valid state, whose meaning only its writers define.
fn is_tracestate(text: &str) -> bool {
    (1..=512).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn trace_accepts_only_valid_parts() {
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
