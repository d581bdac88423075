//! What a service counts of itself, in the form that Prometheus reads.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use contract::queues::Queue;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    queue: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    stream: &'static str,
    outcome: &'static str,
}

/// The metrics of one service. Their names begin with the service's.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    settlements: Family<OutcomeLabels, Counter>,
    handle_duration: Family<QueueLabels, Histogram, fn() -> Histogram>,
    handled_nanoseconds: Family<QueueLabels, Counter>,
    in_flight: Family<QueueLabels, Gauge>,
    publishes: Family<TargetLabels, Counter>,
    connected: Gauge,
}

impl Metrics {
    pub(crate) fn new(service: &'static str) -> Arc<Self> {
        let mut registry = Registry::with_prefix(service);
        let settlements = Family::default();
        registry.register(
            "settlements",
            "Deliveries by how they were settled: ack, nak or dead_letter",
            settlements.clone(),
        );
        let handle_duration = Family::new_with_constructor(
            // From a quarter of a millisecond to more than four minutes.
            (|| Histogram::new(exponential_buckets(0.000_25, 4.0, 11))) as fn() -> Histogram,
        );
        registry.register_with_unit(
            "handle_duration",
            "Time from taking up a delivery to its settlement",
            Unit::Seconds,
            handle_duration.clone(),
        );
        let in_flight = Family::default();
        registry.register("in_flight", "Deliveries that are being handled", in_flight.clone());
        let publishes = Family::default();
        registry.register(
            "publishes",
            "Publishes by what came of them: confirmed, duplicate, exists, full, unconfirmed or \
             refused; all but the first three are repeated or given up",
            publishes.clone(),
        );
        let connected = Gauge::default();
        registry.register("connected", "1 while connected to the broker", connected.clone());
        Arc::new(Self {
            registry: Mutex::new(registry),
            settlements,
            handle_duration,
            // The histogram's sum, which cannot be read back from it.
            handled_nanoseconds: Family::default(),
            in_flight,
            publishes,
            connected,
        })
    }

    /// Counts the deliveries that are being handled.
    pub(crate) fn in_flight(&self, queue: Queue, change: i64) {
        self.in_flight.get_or_create(&QueueLabels { queue: queue.stream }).inc_by(change);
    }

    pub(crate) fn settled(&self, queue: Queue, outcome: &'static str, duration: Duration) {
        let queue = queue.stream;
        self.settlements.get_or_create(&OutcomeLabels { queue, outcome }).inc();
        self.handle_duration.get_or_create(&QueueLabels { queue }).observe(duration.as_secs_f64());
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.handled_nanoseconds.get_or_create(&QueueLabels { queue }).inc_by(nanoseconds);
    }

    /// How many deliveries from this queue have been settled in one way or another.
    pub(crate) fn settled_so_far(&self, queue: Queue) -> u64 {
        self.settled_as(queue, &["ack", "nak", "dead_letter"])
    }

    /// How many of them were given back, or given up.
    pub(crate) fn failed_so_far(&self, queue: Queue) -> u64 {
        self.settled_as(queue, &["nak", "dead_letter"])
    }

    fn settled_as(&self, queue: Queue, outcomes: &[&'static str]) -> u64 {
        let queue = queue.stream;
        let settled = |outcome: &&'static str| {
            self.settlements.get_or_create(&OutcomeLabels { queue, outcome }).get()
        };
        outcomes.iter().map(settled).sum()
    }

    /// The time from taking up a delivery to its settlement, of all deliveries together.
    pub(crate) fn handled_nanoseconds(&self, queue: Queue) -> u64 {
        self.handled_nanoseconds.get_or_create(&QueueLabels { queue: queue.stream }).get()
    }

    /// How many deliveries are being handled.
    pub(crate) fn in_flight_now(&self, queue: Queue) -> i64 {
        self.in_flight.get_or_create(&QueueLabels { queue: queue.stream }).get()
    }

    pub(crate) fn published(&self, stream: &'static str, outcome: &'static str) {
        self.publishes.get_or_create(&TargetLabels { stream, outcome }).inc();
    }

    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    /// All metrics in the `OpenMetrics` text format.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.with_registry(|registry| encode(&mut text, registry))?;
        Ok(text)
    }

    /// Lets a service add metrics of its own.
    pub(crate) fn with_registry<T>(&self, act: impl FnOnce(&mut Registry) -> T) -> T {
        act(&mut self.registry.lock().expect("nothing panics while it holds this lock"))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}
