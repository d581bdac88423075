//! How urgent a job is, and the lanes into which that divides a queue.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::JobId;
use crate::job::{ONCE, Queue};

/// How urgent a job is. Only a queue [with priorities](Queue::with_priorities) heeds it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before all others.
    High,
    /// After those of high priority. The default.
    #[default]
    Normal,
    /// After all others.
    Low,
}

impl Priority {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Its name, as subjects and messages have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// Whether it is the default.
    #[must_use]
    pub fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The text names no priority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no priority; there are high, normal and low")]
pub struct InvalidPriority(String);

impl FromStr for Priority {
    type Err = InvalidPriority;

    fn from_str(text: &str) -> Result<Self, InvalidPriority> {
        let found = Self::ALL.into_iter().find(|priority| priority.as_str() == text);
        found.ok_or_else(|| InvalidPriority(text.chars().take(64).collect()))
    }
}

/// A part of a queue that has a durable consumer of its own: the jobs of one priority, or all of them where
/// the queue has no priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    /// The queue.
    pub queue: Queue,
    /// How urgent its jobs are.
    pub priority: Priority,
}

impl Lane {
    /// The name of the durable consumer, which all replicas of the consuming service share. That of the
    /// normal lane is called as that of a queue without priorities.
    #[must_use]
    pub fn consumer(self) -> String {
        let Self { queue, priority } = self;
        match priority {
            Priority::Normal => queue.consumer.to_owned(),
            Priority::High | Priority::Low => [queue.consumer, "-", priority.as_str()].concat(),
        }
    }

    /// The subject of the job with this id.
    #[must_use]
    pub fn subject(self, id: JobId) -> String {
        id.with_text(|key| self.subject_of(key))
    }

    /// The subject that names this key, which need not be an id.
    #[must_use]
    pub fn subject_of(self, key: &str) -> String {
        let Self { queue, priority } = self;
        if queue.has_priorities() {
            [queue.root, ".", priority.as_str(), ".", key].concat()
        } else if queue.schedules().is_some() {
            [queue.root, ".", ONCE, ".", key].concat()
        } else {
            [queue.root, ".", key].concat()
        }
    }

    /// The subjects that the consumer asks for: those that may name a job of this lane. In the normal lane is
    /// also what names no priority.
    #[must_use]
    pub fn filters(self) -> Vec<String> {
        let Self { queue, priority } = self;
        if queue.schedules().is_some() {
            return vec![format!("{}.>", queue.root)];
        }
        let without = priority.is_normal().then(|| format!("{}.*", queue.root));
        let with = queue.has_priorities().then(|| format!("{}.{priority}.*", queue.root));
        without.into_iter().chain(with).collect()
    }

    /// What it is called in logs and messages, such as "consumer generator of stream REQUESTS".
    pub(crate) fn described(self) -> String {
        format!("consumer {} of stream {}", self.consumer(), self.queue.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Queue = Queue::new("THUMBNAILS", "thumbnails").consumer("thumbnailer");

    #[test]
    fn queue_without_priorities_has_one_lane() {
        let lanes: Vec<Lane> = PLAIN.lanes().collect();
        assert_eq!(lanes, [Lane { queue: PLAIN, priority: Priority::Normal }]);
        assert_eq!(lanes[0].consumer(), "thumbnailer");
        assert_eq!(lanes[0].filters(), ["thumbnails.*"]);
    }

    #[test]
    fn queue_with_priorities_has_a_lane_for_each() {
        let lanes = PLAIN.with_priorities().lanes();
        let lanes: Vec<_> = lanes.map(|lane| (lane.consumer(), lane.filters())).collect();
        let lane = |consumer: &str, filters: &[&str]| {
            (consumer.to_owned(), filters.iter().map(|&filter| filter.to_owned()).collect())
        };
        assert_eq!(
            lanes,
            [
                lane("thumbnailer-high", &["thumbnails.high.*"]),
                lane("thumbnailer", &["thumbnails.*", "thumbnails.normal.*"]),
                lane("thumbnailer-low", &["thumbnails.low.*"]),
            ]
        );
    }

    #[test]
    fn unknown_priority_is_told_with_those_that_are_known() {
        for priority in Priority::ALL {
            assert_eq!(priority.as_str().parse(), Ok(priority));
        }
        let error = "urgent".parse::<Priority>().unwrap_err().to_string();
        assert_eq!(error, "'urgent' is no priority; there are high, normal and low");
    }
}
