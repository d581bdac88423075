//! The last snapshot of the flow as metrics, so that a dashboard can show the queues, and not only the processes.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use observe::snapshot::Totals;
use observe::{QueueSnapshot, Snapshot};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::timeline::Timeline;

/// A metric: its name, its meaning, and how to read it.
type Metric<T, N = u64> = (&'static str, &'static str, fn(&T) -> N);

const OF_EACH_QUEUE: [Metric<QueueSnapshot>; 4] = [
    ("queue_waiting", "Messages in a queue that are not delivered yet", |it| it.waiting),
    ("queue_in_flight", "Messages in a queue that were delivered and are not settled yet", |it| {
        it.in_flight
    }),
    ("queue_full", "1 while a queue has no room, and its publishers wait", |it| it.full.into()),
    ("queue_paused", "1 while a queue is paused", |it| it.paused_until.is_some().into()),
];

const COUNTERS: [Metric<Totals>; 3] = [
    ("requested", "Requests that were accepted", |it| it.requested),
    ("stored", "Requests whose strings were stored, or that were cancelled", |it| it.stored),
    ("received", "Requests whose strings were marked as received", |it| it.received),
];

const GAUGES: [Metric<Totals, i64>; 4] = [
    ("dead_letters", "Dead letters", |it| it.dead_letters.cast_signed()),
    (
        "redeliveries",
        "Deliveries that were not the first of their message, as far as the broker remembers",
        |it| it.redelivered,
    ),
    (
        "requests_missing",
        "Accepted requests that are neither stored, nor in a queue, nor dead letters",
        |it| it.missing.cast_signed(),
    ),
    ("facts_written_twice", "Facts that were written a second time", |it| {
        it.written_twice.cast_signed()
    }),
];

/// Encodes the last snapshot for each scrape. While the broker does not answer, it encodes nothing. All gateways have
/// the same values: aggregate them with `max`, not with `sum`.
#[derive(Debug)]
pub(crate) struct FlowMetrics(pub(crate) Arc<Timeline>);

impl Collector for FlowMetrics {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        self.0.current().map_or(Ok(()), |flow| encode(encoder, &flow, workqueue::now()))
    }
}

fn encode(mut encoder: DescriptorEncoder, flow: &Snapshot, now: Timestamp) -> fmt::Result {
    for (name, help, value) in OF_EACH_QUEUE {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for queue in flow.queues.iter().chain([&flow.schedules]) {
            let labels = [("queue", queue.name)];
            ConstGauge::new(value(queue)).encode(family.encode_family(&labels)?)?;
        }
    }
    // Without SCHEDULES, because a schedule may be old.
    let (name, seconds) = ("queue_oldest", Some(&Unit::Seconds));
    let help = "Age of the oldest message in a queue, or 0 if there is none";
    let mut family = encoder.encode_descriptor(name, help, seconds, MetricType::Gauge)?;
    for queue in &flow.queues {
        let age = queue.oldest_at.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
        ConstGauge::new(age).encode(family.encode_family(&[("queue", queue.name)])?)?;
    }
    let help = "Replicas that work";
    let mut family = encoder.encode_descriptor("replicas", help, None, MetricType::Gauge)?;
    let (requestors, generators) = (flow.replicas.requestors, flow.replicas.generators);
    // Not `service`, a label that Prometheus gives to the targets of a service of Kubernetes.
    for (program, replicas) in [("requestor", requestors), ("generator", generators)] {
        ConstGauge::new(replicas).encode(family.encode_family(&[("program", program)])?)?;
    }
    for (name, help, value) in COUNTERS {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value(&flow.totals)).encode(metric)?;
    }
    for (name, help, value) in GAUGES {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value(&flow.totals)).encode(metric)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    /// Encodes a snapshot as of a minute after its oldest message came in.
    #[derive(Debug)]
    struct Later(Snapshot);

    impl Collector for Later {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            super::encode(encoder, &self.0, Timestamp::UNIX_EPOCH + Duration::from_mins(1))
        }
    }

    fn encoded(collector: impl Collector) -> String {
        let (mut registry, mut encoded) = (Registry::with_prefix("gateway"), String::new());
        registry.register_collector(Box::new(collector));
        text::encode(&mut encoded, &registry).unwrap();
        encoded
    }

    #[test]
    fn metrics_have_the_last_snapshot() {
        let requests = QueueSnapshot {
            name: "REQUESTS",
            waiting: 3,
            full: true,
            oldest_at: Some(Timestamp::UNIX_EPOCH),
            ..QueueSnapshot::default()
        };
        let responses = QueueSnapshot { name: "RESPONSES", in_flight: 2, ..Default::default() };
        let mut flow = Snapshot { queues: vec![requests, responses], ..Snapshot::default() };
        flow.schedules.name = "SCHEDULES";
        flow.replicas.generators = 2;
        flow.totals = Totals {
            requested: 9,
            stored: 5,
            dead_letters: 1,
            redelivered: -2,
            ..Totals::default()
        };
        let encoded = encoded(Later(flow));
        for line in [
            r#"gateway_queue_waiting{queue="REQUESTS"} 3"#,
            r#"gateway_queue_waiting{queue="SCHEDULES"} 0"#,
            r#"gateway_queue_in_flight{queue="RESPONSES"} 2"#,
            r#"gateway_queue_full{queue="REQUESTS"} 1"#,
            r#"gateway_queue_paused{queue="REQUESTS"} 0"#,
            r#"gateway_queue_oldest_seconds{queue="REQUESTS"} 60.0"#,
            r#"gateway_queue_oldest_seconds{queue="RESPONSES"} 0.0"#,
            r#"gateway_replicas{program="generator"} 2"#,
            "gateway_requested_total 9",
            "gateway_stored_total 5",
            "gateway_dead_letters 1",
            "gateway_redeliveries -2",
            "gateway_requests_missing 0",
        ] {
            assert!(encoded.lines().any(|it| it == line), "{line} is missing:\n{encoded}");
        }
        assert!(!encoded.contains(r#"oldest_seconds{queue="SCHEDULES"#), "{encoded}");
    }

    #[test]
    fn metrics_are_empty_while_the_broker_is_silent() {
        assert_eq!(encoded(FlowMetrics(Arc::default())), "# EOF\n");
    }
}
