//! A snapshot of the flow: the queues, the replicas, the totals, and the last
//! requests. The page and `lab up` show the same.

use std::collections::BTreeMap;

use contract::facts::{Received, Stored};
use contract::queues::Request;
use jiff::Timestamp;
use serde::Serialize;
use workqueue::Priority;

/// How many characters of a string, or of a name that a client has chosen, are shown.
pub(crate) const SHOWN_CHARACTERS: usize = 48;

/// The whole system at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// The queues, in the order in which a request passes through them once it is made.
    pub queues: Vec<QueueSnapshot>,
    /// The queue of the requests that are to be made later.
    pub schedules: QueueSnapshot,
    /// The replicas of both sides.
    #[serde(flatten)]
    pub replicas: ReplicasSnapshot,
    /// How many there are in all.
    pub numbers: Totals,
    /// The brokers that keep the queue of the requests, if it is a cluster.
    pub brokers: Vec<BrokerSnapshot>,
    /// How long a request takes to come to its end.
    pub latency: Latency,
    /// The last requests, the newest first.
    pub last: Vec<LastRequest>,
}

/// One queue.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QueueSnapshot {
    /// The name of its stream.
    pub name: &'static str,
    /// Messages that are not delivered yet.
    pub waiting: u64,
    /// Messages that were delivered and are not settled yet.
    pub in_flight: u64,
    /// Messages that are not due yet. None, if it has no schedules.
    pub scheduled: u64,
    /// The most that it holds, if there is a limit.
    pub limit: Option<u64>,
    /// Bytes that it holds.
    pub bytes: u64,
    /// The most bytes that it holds, if there is a limit.
    pub max_bytes: Option<u64>,
    /// Whether its publishers wait: it has no room for another message, by number or by bytes.
    pub full: bool,
    /// Messages a second that come in.
    pub come: f64,
    /// Messages a second that go out.
    pub go: f64,
    /// Deliveries that were not the first of their message, as far as the broker remembers.
    pub redelivered: u64,
    /// When the oldest message came in, delivered or not, if there is one.
    pub oldest_at: Option<Timestamp>,
    /// Until when it is paused, if it is: nothing is delivered until then.
    pub paused_until: Option<Timestamp>,
    /// Its lanes, the most urgent first. None, if it has no priorities.
    pub lanes: Vec<LaneSnapshot>,
}

/// A broker of a cluster, as far as the queue of the requests is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokerSnapshot {
    /// Its name.
    pub name: String,
    /// leader, follower, behind where it has not all yet, or offline.
    pub state: &'static str,
}

/// The messages of one priority in a queue.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LaneSnapshot {
    /// Their priority.
    pub priority: Priority,
    /// Messages that are not delivered yet.
    pub waiting: u64,
    /// Messages that were delivered and are not settled yet.
    pub in_flight: u64,
}

/// The replicas that have announced themselves.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReplicasSnapshot {
    /// Some of each side, by their names.
    pub replicas: Vec<ReplicaSnapshot>,
    /// Requestors besides.
    pub more_requestors: usize,
    /// Generators besides.
    pub more_generators: usize,
    /// Requestors that work.
    pub requestors: usize,
    /// Generators that work.
    pub generators: usize,
}

/// One replica.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaSnapshot {
    /// requestor or generator.
    pub side: &'static str,
    /// Its id, which differs from another one's of the same name.
    pub id: String,
    /// Its name.
    pub instance: String,
    /// The version of its program.
    pub version: String,
    /// starting, ready, stopping, or silent where it does not answer any more.
    pub state: &'static str,
    /// The queues that it takes from, and how many deliveries of each it settles in a second.
    pub settles: BTreeMap<String, f64>,
    /// Deliveries that it has in flight.
    pub in_flight: u64,
    /// The queues of which it has some in flight, and how many of each.
    pub holds: BTreeMap<String, u64>,
    /// Requests a second that it asks for.
    pub asks: f64,
    /// The streams that had no room for what it publishes since the last look.
    pub waits_for: Vec<String>,
}

/// How many there are in all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Requests that were accepted.
    pub requested: u64,
    /// Requests whose strings are stored.
    pub stored: u64,
    /// Requests whose strings are marked as received.
    pub received: u64,
    /// Messages that were given up.
    pub dead_letters: u64,
    /// Messages in the queues.
    pub pending: u64,
    /// Deliveries that were not the first of their message.
    pub redelivered: u64,
    /// Of the requests that are remembered: neither stored, nor in a queue, nor among the dead letters, as far as
    /// the counts of several snapshots say.
    pub missing: u64,
    /// Facts that were written a second time.
    pub twice: u64,
}

/// How long a request takes from asking to marking, of a sample of the last ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub round_trips: usize,
    /// Those that ended before they began, by clocks that differ.
    pub backwards: usize,
    /// How long the whole took.
    #[serde(flatten)]
    pub whole: Percentiles,
    /// From asking until a generator started to make its strings.
    pub waited: Percentiles,
    /// From then until they were made.
    pub made: Percentiles,
    /// From then until they were stored.
    pub stored: Percentiles,
    /// From then until they were marked as received.
    pub marked: Percentiles,
}

/// How long something took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them took no longer.
    pub median_ms: f64,
    /// All but one in a hundred took no longer.
    pub p99_ms: f64,
}

/// One of the last requests, and how far it has come.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LastRequest {
    pub id: String,
    pub count: u32,
    pub requested_at: Timestamp,
    pub requestor: String,
    pub string: Option<String>,
    /// Its strings are too large to be read once a second.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unread: bool,
    pub generator: Option<String>,
    pub generated_at: Option<Timestamp>,
    pub stored_by: Option<String>,
    pub stored_at: Option<Timestamp>,
    pub marked_by: Option<String>,
    pub received_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancelled_at: Option<Timestamp>,
}

impl LastRequest {
    pub(crate) fn new(
        request: &Request,
        stored: Option<&Stored>,
        received: Option<&Received>,
        unread: bool,
    ) -> Self {
        let name = |text: &str| shortened(text, SHOWN_CHARACTERS);
        let (stored, cancelled) = match stored {
            Some(Stored::Strings(stored)) => (Some(stored), None),
            Some(Stored::Cancelled(cancellation)) => (None, Some(cancellation)),
            None => (None, None),
        };
        let string = stored.and_then(|stored| stored.values.as_slice().first());
        Self {
            id: request.id.to_string(),
            count: request.amount.count(),
            requested_at: request.requested_at,
            requestor: name(&request.requestor),
            unread,
            string: string.map(|string| name(string)),
            generator: stored.map(|stored| name(&stored.generator)),
            generated_at: stored.map(|stored| stored.generated_at),
            stored_by: stored.map(|stored| name(&stored.requestor)),
            stored_at: stored.map(|stored| stored.stored_at),
            marked_by: received.map(|received| name(&received.marked_by)),
            received_at: received.map(|received| received.received_at),
            cancelled_by: cancelled.map(|cancelled| name(&cancelled.cancelled_by)),
            cancelled_at: cancelled.map(|cancelled| cancelled.cancelled_at),
        }
    }
}

/// The beginning of a text that may be long: at most this many characters of it.
#[must_use]
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// How many a second, to one digit behind the point.
#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
pub(crate) fn rate(now: u64, then: u64, seconds: f64) -> f64 {
    (now.saturating_sub(then) as f64 / seconds.max(0.001) * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_shortened() {
        assert_eq!(shortened("short", 5), "short");
        assert_eq!(shortened(&"ü".repeat(100), 48).chars().count(), 48 + 1);
    }

    #[test]
    fn a_rate_has_one_digit_behind_the_point() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(rate(103, 100, 2.0), 1.5));
        assert!(close(rate(0, 100, 1.0), 0.0));
    }
}
