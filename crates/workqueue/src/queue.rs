//! A queue on the broker, and the lanes into which priorities divide it.

use std::iter;

use crate::id::JobId;
use crate::priority::Priority;

/// A queue on the broker: a stream, the subjects that it takes, and the durable consumer that empties it.
///
/// A queue is a stream that removes a message once its consumer has acked it. The message of a
/// job is published to `<root>.<id>`; in a queue with priorities to `<root>.<priority>.<id>`, in one with schedules
/// to `<root>.once.<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// The name of the stream.
    pub stream: &'static str,
    /// The first token of every subject of this queue.
    pub root: &'static str,
    /// The durable consumer, which all replicas of the consuming service share. With priorities, it is the consumer of
    /// the normal lane, and the names of the others derive from it.
    pub consumer: &'static str,
    priorities: bool,
    schedules: Option<&'static str>,
    message_ids: bool,
}

impl Queue {
    /// A queue that is kept in `stream`, takes the subjects below `root`, and is emptied by a durable
    /// consumer of the name `root`.
    #[must_use]
    pub const fn new(stream: &'static str, root: &'static str) -> Self {
        Self { stream, root, consumer: root, priorities: false, schedules: None, message_ids: true }
    }

    /// The same queue, emptied by a consumer of this name.
    #[must_use]
    pub const fn consumer(self, consumer: &'static str) -> Self {
        Self { consumer, ..self }
    }

    /// The same queue with a lane for each [`Priority`]: a service takes the most urgent jobs first, and each
    /// tenth time the one that waits longest, so that none starves.
    ///
    /// # Panics
    ///
    /// If it has schedules.
    #[must_use]
    pub const fn with_priorities(self) -> Self {
        assert!(self.schedules.is_none(), "a queue has either priorities or schedules");
        Self { priorities: true, ..self }
    }

    /// The same queue for jobs that are due later. Until a job is due, it waits in the same stream below the root
    /// `schedules`, which no consumer reads. See [`Producer::submit_later`](crate::Producer::submit_later) and
    /// [`Producer::schedule`](crate::Producer::schedule).
    ///
    /// The stream of such a queue has no limit of its own, because at that limit the broker would remove the oldest
    /// messages. Producers enforce `QUEUE_LIMIT` instead: each asks the broker before it publishes a job, so concurrent
    /// producers may exceed it together. It does not hold up the copies of snoozed jobs, replays of dead letters, and
    /// jobs of recurring schedules. Jobs that are not due yet count, so a handler that publishes to its own queue may
    /// wait for room as long as all others do.
    ///
    /// # Panics
    ///
    /// If it has priorities.
    #[must_use]
    pub const fn with_schedules(self, schedules: &'static str) -> Self {
        assert!(!self.priorities, "a queue has either priorities or schedules");
        Self { schedules: Some(schedules), ..self }
    }

    /// The same queue for jobs whose every effect is a [fact](crate::Fact): their messages have no message id.
    ///
    /// By default a message has the id of its job, unless jobs share it in a bundle, and the broker drops a second
    /// message with the same id within two minutes, unless it restarted meanwhile. That saves the work of most jobs
    /// that are published again, because a confirmation was lost, or because a handler that had published them is
    /// retried. Without the id, a write costs the broker a quarter less.
    #[must_use]
    pub const fn without_message_ids(self) -> Self {
        Self { message_ids: false, ..self }
    }

    /// Whether the messages of its jobs have a message id.
    #[must_use]
    pub const fn has_message_ids(self) -> bool {
        self.message_ids
    }

    /// The first token of the subjects of jobs that are not due yet, in a queue with schedules.
    #[must_use]
    pub const fn schedules(self) -> Option<&'static str> {
        self.schedules
    }

    /// Whether it has a lane for each priority.
    #[must_use]
    pub const fn has_priorities(self) -> bool {
        self.priorities
    }

    /// The lanes, the most urgent first. A queue without priorities has one, of normal priority.
    pub fn lanes(self) -> impl Iterator<Item = Lane> {
        let priorities = Priority::ALL.into_iter();
        let there = move |priority: &Priority| self.priorities || priority.is_normal();
        priorities.filter(there).map(move |priority| Lane { queue: self, priority })
    }

    /// The lane of the jobs of this priority.
    #[must_use]
    pub const fn lane(self, priority: Priority) -> Lane {
        Lane { queue: self, priority: if self.priorities { priority } else { Priority::Normal } }
    }

    /// The subject of the job with this id, with normal priority.
    #[must_use]
    pub fn subject(self, id: JobId) -> String {
        self.lane(Priority::Normal).subject(id)
    }

    /// The subject with this key, which need not be an id, with normal priority.
    #[must_use]
    pub fn subject_of(self, key: &str) -> String {
        self.lane(Priority::Normal).subject_of(key)
    }

    /// All subjects with this key: of each priority, and of jobs that are not due yet.
    #[must_use]
    pub fn subjects_of(self, key: &str) -> Vec<String> {
        let plain = [self.root, ".", key].concat();
        let lanes = self.priorities.then(|| [self.root, ".*.", key].concat());
        let roots = self.schedules.into_iter().flat_map(|schedules| [schedules, self.root]);
        let once = roots.map(|root| [root, ".", ONCE, ".", key].concat());
        iter::once(plain).chain(lanes).chain(once).collect()
    }

    /// The subjects that the stream takes. With priorities these are only the subjects that a consumer reads, because a
    /// job of an unknown priority would wait forever.
    #[must_use]
    pub fn subjects(self) -> Vec<String> {
        if self.priorities {
            self.lanes().flat_map(Lane::filters).collect()
        } else {
            let roots = self.schedules.into_iter().chain([self.root]);
            roots.map(|root| format!("{root}.>")).collect()
        }
    }

    /// The name of the recurring schedule whose subject this is.
    pub(crate) fn schedule_key(self, subject: &str) -> Option<&str> {
        let name = subject.strip_prefix(self.schedules?)?.strip_prefix('.')?;
        name.strip_prefix(EVERY)?.strip_prefix('.')
    }

    /// The part of a subject of this queue that names the job, valid or not. For a recurring schedule it is the name
    /// of the schedule.
    #[must_use]
    pub fn key(self, subject: &str) -> Option<&str> {
        let key = subject.strip_prefix(self.root)?.strip_prefix('.')?;
        match key.split_once('.') {
            Some((priority, key)) if self.priorities && priority.parse::<Priority>().is_ok() => {
                Some(key)
            }
            Some((ONCE | EVERY, key)) if self.schedules.is_some() => Some(key),
            _ => Some(key),
        }
    }
}

/// The second token of the subjects of a queue with schedules: of a job that is due once, and of one that recurs.
pub(crate) const ONCE: &str = "once";
pub(crate) const EVERY: &str = "every";

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
    /// The name of the durable consumer, which all replicas of the consuming service share. The
    /// normal lane uses the name that a queue without priorities uses.
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

    /// The subject with this key, which need not be an id.
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

    /// The subjects that the consumer asks for: those that may name a job of this lane. The normal lane
    /// also has the subjects without a priority.
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

    /// The description for logs and messages, such as "consumer generator of stream REQUESTS".
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
}
