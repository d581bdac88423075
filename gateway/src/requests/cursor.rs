//! The position in a list of requests: opaque to clients, and valid for one list alone.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use observe::requests::Filter;
use serde::{Deserialize, Serialize};

use crate::problem::{Problem, ProblemKind};

/// The position at which a list continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// The filter of the list.
    status: Option<String>,
    priority: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requested_by: Option<String>,
    /// When the stream of the list was created.
    store: Timestamp,
    /// The next request comes before the one with this sequence.
    before: u64,
}

impl Cursor {
    pub(super) fn new(filter: &Filter, store: Timestamp, before: u64) -> Self {
        Self {
            status: filter.status.map(|status| status.to_string()),
            priority: filter.priority.map(|priority| priority.to_string()),
            requested_by: filter.requested_by.clone(),
            store,
            before,
        }
    }

    /// The sequence in a client's cursor.
    ///
    /// # Errors
    ///
    /// If it is no cursor, or that of another list. The problem names a correct use.
    pub(super) fn read(text: &str, filter: &Filter, store: Timestamp) -> Result<u64, Problem> {
        let wrong = |detail: &dyn fmt::Display| Err(ProblemKind::Cursor.because(detail));
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let cursor = decoded.and_then(|json| serde_json::from_slice::<Self>(&json).ok());
        let Some(cursor) = cursor else {
            return wrong(
                &"this is no cursor: write the `next` of the page before, or none to begin",
            );
        };
        if cursor == Self::new(filter, store, cursor.before) {
            return Ok(cursor.before);
        }
        if cursor.store != store {
            return wrong(&"the store that this cursor belongs to is gone; begin without a cursor");
        }
        wrong(&format_args!(
            "this cursor belongs to the list of {}: ask for that one, or begin without a cursor",
            cursor.list()
        ))
    }

    /// The parameters of its list.
    fn list(&self) -> String {
        let Self { status, priority, requested_by, .. } = self;
        let parameters =
            [("status", status), ("priority", priority), ("requested_by", requested_by)];
        let parameters = parameters
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
        let parameters: Vec<String> = parameters.collect();
        if parameters.is_empty() { "all requests".to_owned() } else { parameters.join("&") }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).expect("a cursor can always become JSON");
        formatter.write_str(&BASE64_URL_SAFE_NO_PAD.encode(json))
    }
}

#[cfg(test)]
mod tests {
    use contract::RequestStatus;
    use workqueue::Priority;

    use super::*;

    #[test]
    fn cursor_is_valid_for_one_list_alone() {
        let store: Timestamp = "2026-11-21T07:17:18.75925Z".parse().unwrap();
        let all = Filter::default();
        let dead = Filter { status: Some(RequestStatus::DeadLettered), ..all.clone() };
        let low = Filter { priority: Some(Priority::Low), ..dead.clone() };
        let by = Filter { requested_by: Some("gateway".to_owned()), ..low.clone() };
        for filter in [&all, &dead, &low, &by] {
            let cursor = Cursor::new(filter, store, 7).to_string();
            assert!(
                cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            );
            assert_eq!(Cursor::read(&cursor, filter, store), Ok(7));
        }
        let wrong = |text: &str, store, what: &str| {
            let problem = Cursor::read(text, &all, store).unwrap_err().json();
            assert!(problem.contains(what), "{problem}");
        };
        for garbage in ["", "7", "e30", "käse", "AA=="] {
            wrong(garbage, store, "write the `next` of the page before");
        }
        let cursor = Cursor::new(&by, store, 7).to_string();
        wrong(&cursor, store, "the list of status=dead-lettered&priority=low&requested_by=gateway");
        wrong(&cursor, Timestamp::UNIX_EPOCH, "is gone");
    }
}
