//! The metrics of a service, in the format of Prometheus.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::{Registry, Unit};

use crate::queue::Queue;
use crate::span_export;
use crate::spans::Span;
use crate::telemetry;

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

/// Times, with the trace of one job in each bucket as an exemplar, if traces are exported.
type Histogram = HistogramWithExemplars<[(&'static str, String); 1]>;

/// The metrics of one service. Their names begin with the service's.
pub struct Metrics {
    registry: Mutex<Registry>,
    settlements: Family<OutcomeLabels, Counter>,
    handle_duration: Family<QueueLabels, Histogram, fn() -> Histogram>,
    handled_nanoseconds: Family<QueueLabels, Counter>,
    in_flight: Family<QueueLabels, Gauge>,
    rate_limited: Family<QueueLabels, Gauge>,
    publishes: Family<TargetLabels, Counter>,
    /// The same metrics by stream, because a family does not list its members.
    publishers: Mutex<BTreeMap<&'static str, PublishMetrics>>,
    connected: Gauge,
}

impl Metrics {
    /// Metrics whose names begin with this prefix. Characters that a name of a metric cannot have become `_`.
    #[must_use]
    pub fn new(service: &'static str) -> Arc<Self> {
        let may_be = |sign: char| sign.is_ascii_alphanumeric() || sign == '_';
        let mut registry = Registry::with_prefix(service.replace(|sign| !may_be(sign), "_"));
        let settlements = Family::default();
        registry.register(
            "settlements",
            "Deliveries by how they were settled: ack, nak, snooze or dead_letter",
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
        let rate_limited = Family::default();
        registry.register(
            "rate_limited",
            "Deliveries that wait because RATE_LIMIT allows no more at present",
            rate_limited.clone(),
        );
        let publishes = Family::default();
        registry.register(
            "publishes",
            "Publishes by outcome: confirmed, duplicate, exists, full, unconfirmed or rejected; \
             all but the first three are repeated or given up",
            publishes.clone(),
        );
        let connected = Gauge::default();
        registry.register("connected", "1 while connected to the broker", connected.clone());
        registry.register_collector(Box::new(DroppedTelemetry));
        Arc::new(Self {
            registry: Mutex::new(registry),
            settlements,
            handle_duration,
            // The histogram's sum, which cannot be read back from it.
            handled_nanoseconds: Family::default(),
            in_flight,
            rate_limited,
            publishes,
            publishers: Mutex::default(),
            connected,
        })
    }

    /// The metrics of this queue.
    pub(crate) fn of(&self, queue: Queue) -> QueueMetrics {
        let queue = queue.stream;
        let labels = QueueLabels { queue };
        let settlements =
            |outcome| self.settlements.get_or_create_owned(&OutcomeLabels { queue, outcome });
        QueueMetrics {
            acks: settlements("ack"),
            naks: settlements("nak"),
            snoozes: settlements("snooze"),
            dead_letters: settlements("dead_letter"),
            handle_duration: self.handle_duration.get_or_create_owned(&labels),
            handled_nanoseconds: self.handled_nanoseconds.get_or_create_owned(&labels),
            in_flight: self.in_flight.get_or_create_owned(&labels),
            rate_limited: self.rate_limited.get_or_create_owned(&labels),
        }
    }

    /// The metrics of publishing to this stream.
    pub(crate) fn publishes_to(&self, stream: &'static str) -> PublishMetrics {
        let publishes =
            |outcome| self.publishes.get_or_create_owned(&TargetLabels { stream, outcome });
        let metrics = PublishMetrics {
            confirmed: publishes("confirmed"),
            duplicate: publishes("duplicate"),
            exists: publishes("exists"),
            full: publishes("full"),
            unconfirmed: publishes("unconfirmed"),
            rejected: publishes("rejected"),
        };
        self.publishers().insert(stream, metrics.clone());
        metrics
    }

    /// The metrics of publishing, by stream.
    pub(crate) fn publishers(&self) -> MutexGuard<'_, BTreeMap<&'static str, PublishMetrics>> {
        self.publishers.lock().expect("nothing panics while it holds this lock")
    }

    /// Records whether there is a connection to the broker.
    pub fn set_connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    /// All metrics in the `OpenMetrics` text format.
    ///
    /// # Errors
    ///
    /// If they cannot be written down.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.with_registry(|registry| encode(&mut text, registry))?;
        Ok(text)
    }

    /// Lets a service add metrics of its own.
    ///
    /// # Panics
    ///
    /// If an earlier call has panicked.
    pub fn with_registry<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().expect("nothing panics while it holds this lock"))
    }
}

/// The metrics of one queue. Looked up once, because that costs more than counting.
#[derive(Clone, Debug)]
pub(crate) struct QueueMetrics {
    pub(crate) acks: Counter,
    pub(crate) naks: Counter,
    pub(crate) snoozes: Counter,
    pub(crate) dead_letters: Counter,
    handle_duration: Histogram,
    handled_nanoseconds: Counter,
    in_flight: Gauge,
    pub(crate) rate_limited: Gauge,
}

impl QueueMetrics {
    /// Counts a delivery as in flight for as long as this lives.
    pub(crate) fn in_flight(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    /// Counts a settled delivery: with its counter, the time from its pull to its settlement, and its span.
    pub(crate) fn settled(&self, counter: &Counter, duration: Duration, span: &Span) {
        counter.inc();
        let exemplar = span.exported_trace_id().map(|id| [("trace_id", id.to_string())]);
        self.handle_duration.observe(duration.as_secs_f64(), exemplar, None);
        self.handled_nanoseconds.inc_by(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The number of settled deliveries.
    pub(crate) fn settled_so_far(&self) -> u64 {
        self.acks.get() + self.snoozes.get() + self.failed_so_far()
    }

    /// The number of deliveries that were given back or dead-lettered.
    pub(crate) fn failed_so_far(&self) -> u64 {
        self.naks.get() + self.dead_letters.get()
    }

    /// The total time from pull to settlement, of all deliveries.
    pub(crate) fn handled_nanoseconds(&self) -> u64 {
        self.handled_nanoseconds.get()
    }

    /// The number of deliveries that are being handled.
    pub(crate) fn in_flight_now(&self) -> i64 {
        self.in_flight.get()
    }
}

/// A delivery that is being handled.
pub(crate) struct InFlight<'a>(&'a Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The numbers of dropped log lines and dropped spans, read when the metrics are scraped.
#[derive(Debug)]
pub struct DroppedTelemetry;

impl Collector for DroppedTelemetry {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let lines = "Log lines that could not be written to the standard error";
        let spans = "Spans of traces that were not exported";
        for (name, help, dropped) in [
            ("log_lines_dropped", lines, telemetry::dropped_lines()),
            ("spans_dropped", spans, span_export::dropped_spans()),
        ] {
            let dropped = ConstCounter::new(dropped);
            let kind = dropped.metric_type();
            dropped.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}

/// The metrics of publishing to one stream.
#[derive(Clone, Debug)]
pub(crate) struct PublishMetrics {
    pub(crate) confirmed: Counter,
    pub(crate) duplicate: Counter,
    pub(crate) exists: Counter,
    pub(crate) full: Counter,
    pub(crate) unconfirmed: Counter,
    pub(crate) rejected: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}
