//! A snapshot of the flow: the queues, the replicas, the totals, and the last requests. The page and `cargo lab up` show
//! it.

use std::collections::BTreeMap;

use contract::facts::{Received, Stored};
use contract::queues::Request;
use jiff::Timestamp;
use serde::Serialize;
use workqueue::Priority;

/// The most characters of a string, or of a name that a client has chosen.
pub(crate) const SHOWN_CHARACTERS: usize = 48;

/// The whole system at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// The queues other than SCHEDULES, in the order in which a request passes through them.
    pub queues: Vec<QueueSnapshot>,
    /// The queue SCHEDULES.
    pub schedules: QueueSnapshot,
    /// The replicas of both services.
    #[serde(flatten)]
    pub replicas: ReplicasSnapshot,
    /// The totals.
    pub totals: Totals,
    /// The brokers that keep the queue REQUESTS, if they are a cluster.
    pub brokers: Vec<BrokerSnapshot>,
    /// The times of the last round trips.
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
    /// Messages that are not due yet. 0 if it has no schedules.
    pub scheduled: u64,
    /// The most messages that it holds, if there is a limit.
    pub limit: Option<u64>,
    /// Bytes that it holds.
    pub bytes: u64,
    /// The most bytes that it holds, if there is a limit.
    pub max_bytes: Option<u64>,
    /// Whether its publishers wait: it has no room for another message, by number or by bytes.
    pub full: bool,
    /// Messages a second that come in.
    pub arrival_rate: f64,
    /// Messages a second that go out.
    pub departure_rate: f64,
    /// Redeliveries, as [`QueueState::redelivered`](workqueue::topology::QueueState::redelivered) counts them.
    pub redelivered: i64,
    /// When the oldest message came in, delivered or not, if there is one.
    pub oldest_at: Option<Timestamp>,
    /// The end of its pause, if it is paused. Until then the broker delivers no message.
    pub paused_until: Option<Timestamp>,
    /// Its lanes, the most urgent first. Empty if it has no priorities.
    pub lanes: Vec<LaneSnapshot>,
}

/// A broker of a cluster, and its copy of the queue REQUESTS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokerSnapshot {
    /// Its name.
    pub name: String,
    /// `leader`, `follower`, `behind` if its copy is not complete yet, or `offline`.
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
    /// The first of each service, by name.
    pub replicas: Vec<ReplicaSnapshot>,
    /// The number of other requestors.
    pub more_requestors: usize,
    /// The number of other generators.
    pub more_generators: usize,
    /// Requestors that work.
    pub requestors: usize,
    /// Generators that work.
    pub generators: usize,
}

/// One replica.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaSnapshot {
    /// `requestor` or `generator`.
    pub service: &'static str,
    /// Its id. Two replicas of the same name have different ids.
    pub id: String,
    /// Its name.
    pub instance: String,
    /// The version of its program.
    pub version: String,
    /// `starting`, `ready`, `stopping`, or `silent` if it does not answer any more.
    pub state: &'static str,
    /// The queues that it consumes, and the deliveries of each that it settles in a second.
    pub settle_rates: BTreeMap<String, f64>,
    /// Deliveries that it has in flight.
    pub in_flight: u64,
    /// Its deliveries in flight by queue.
    pub in_flight_by_queue: BTreeMap<String, u64>,
    /// Requests a second that it publishes.
    pub request_rate: f64,
    /// The streams that had no room for its publishes since the last snapshot.
    pub full_streams: Vec<String>,
}

/// The totals.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Requests that were accepted.
    pub requested: u64,
    /// Requests whose strings are stored, or that were cancelled.
    pub stored: u64,
    /// Requests whose strings are marked as received.
    pub received: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Messages in the queues.
    pub pending: u64,
    /// Redeliveries of all queues, as far as the broker remembers. May be negative.
    pub redelivered: i64,
    /// Accepted requests that are neither stored, nor in a queue, nor dead letters, by the counts of several snapshots.
    pub missing: u64,
    /// Facts that were written a second time.
    pub written_twice: u64,
}

/// The times of a sample of the last round trips.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// The number of measured round trips.
    pub round_trips: usize,
    /// The number of those with a negative time, because clocks differ.
    pub negative: usize,
    /// From the request until the mark.
    #[serde(flatten)]
    pub whole: Percentiles,
    /// From the request until a generator started to make its strings.
    pub waited: Percentiles,
    /// From then until they were made.
    pub made: Percentiles,
    /// From then until they were stored.
    pub stored: Percentiles,
    /// From then until they were marked as received.
    pub marked: Percentiles,
}

/// A time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them took no longer.
    pub median_ms: f64,
    /// All but one in a hundred took no longer.
    pub p99_ms: f64,
}

/// One of the last requests, with its state.
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

/// The text, cut after this many characters.
#[must_use]
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A rate in numbers a second, rounded to one decimal.
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
    fn rate_has_one_decimal() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(rate(103, 100, 2.0), 1.5));
        assert!(close(rate(0, 100, 1.0), 0.0));
    }
}
