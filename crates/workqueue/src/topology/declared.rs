//! The result of declaring, and the lines that report it.

use std::time::Duration;

use tracing::{info, warn};

use super::difference::Difference;
use crate::log_once::LogOnce;

/// The topology on the broker after declaring.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// Each part that was missing and has been created, such as "stream REQUESTS".
    pub created: Vec<String>,
    /// Each limit that was changed in place. Only [`adjust`](super::adjust) changes anything.
    pub adjusted: Vec<Difference>,
    /// The limits that differ from the wanted ones. The limits on the broker apply. After [`adjust`](super::adjust)
    /// only the one of bytes of a queue with schedules, where the broker would drop messages to get below it.
    pub differences: Vec<Difference>,
    /// Consumers that are paused, and until when, such as "consumer generator of stream REQUESTS is paused
    /// until 2026-11-27T12:00:00Z". They deliver nothing until then.
    pub paused: Vec<String>,
    pub(super) facts_max_age: Option<Duration>,
}

impl Declared {
    /// The time for which the guarantees hold after a job is made, by the settings of the buckets on the broker:
    /// the shortest of their times, [`Duration::MAX`] without an age limit.
    #[must_use]
    pub fn facts_max_age(&self) -> Duration {
        self.facts_max_age.unwrap_or(Duration::MAX)
    }

    /// A line for people about each object that was created, each limit that was changed or could not be, and each
    /// consumer that is paused.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let created = self.created.iter().map(|object| format!("created {object}"));
        let adjusted = self.adjusted.iter().map(|change| {
            let Difference { object, setting, is, should_be } = change;
            format!("changed {object}: {setting} from {is} to {should_be}")
        });
        let kept = self.differences.iter().map(|kept| {
            let Difference { object, setting, is, should_be } = kept;
            format!("{object} holds more than a {setting} of {should_be} allows: kept it at {is}")
        });
        created.chain(adjusted).chain(kept).chain(self.paused.iter().cloned()).collect()
    }

    /// Logs all of it, but only those kept limits and paused consumers that are not in `logged` yet.
    pub(crate) fn log(&self, logged: &mut LogOnce) {
        for object in &self.created {
            info!(object, "created");
        }
        for Difference { object, setting, is, should_be } in &self.adjusted {
            info!(object, setting, from = is, to = should_be, "changed");
        }
        if self.differences.is_empty() && self.paused.is_empty() {
            logged.forget();
        }
        for difference in self.differences.iter().filter(|it| logged.is_first(it)) {
            warn!(%difference, "running on with the broker's limit");
        }
        for consumer in self.paused.iter().filter(|consumer| logged.is_first(consumer)) {
            warn!("{consumer}; nothing is delivered until then");
        }
    }
}
