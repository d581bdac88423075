//! The gateway's metrics.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a request and its answer, without values that a client chooses: no id, and no unknown method.
type Labels<const N: usize> = [(&'static str, String); N];

/// The gateway's own metrics.
#[derive(Debug)]
pub(crate) struct GatewayMetrics {
    requests: Family<Labels<3>, Counter>,
    duration: Family<Labels<2>, Histogram, fn() -> Histogram>,
    pub(crate) in_flight: Gauge,
    pub(crate) snapshots: Counter,
    pub(crate) failed_snapshots: Counter,
    pub(crate) tabs: Gauge,
    pub(crate) sent_bytes: Counter,
}

impl GatewayMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let new = Self {
            requests: Family::default(),
            // From half a millisecond to more than two minutes, because some requests wait.
            duration: Family::new_with_constructor(
                (|| Histogram::new(exponential_buckets(0.000_5, 4.0, 10))) as fn() -> Histogram,
            ),
            in_flight: Gauge::default(),
            snapshots: Counter::default(),
            failed_snapshots: Counter::default(),
            tabs: Gauge::default(),
            sent_bytes: Counter::default(),
        };
        let requests = new.requests.clone();
        registry.register("api_requests", "HTTP requests by their answer", requests);
        registry.register_with_unit(
            "api_request_duration",
            "Time from the head of an HTTP request to the answer",
            Unit::Seconds,
            new.duration.clone(),
        );
        let in_flight = new.in_flight.clone();
        registry.register("api_in_flight", "HTTP requests that are being answered", in_flight);
        registry.register(
            "snapshots",
            "Tries to take a snapshot of the flow, one a second",
            new.snapshots.clone(),
        );
        let failed = new.failed_snapshots.clone();
        registry.register("failed_snapshots", "Tries to take a snapshot that failed", failed);
        registry.register("tabs", "Pages that are open", new.tabs.clone());
        registry.register("sent_bytes", "Bytes of events handed to pages", new.sent_bytes.clone());
        new
    }

    pub(crate) fn answered(
        &self,
        method: &Method,
        route: String,
        status: StatusCode,
        duration: Duration,
    ) {
        const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        let method = KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
        let labels = [("method", method.to_owned()), ("route", route)];
        self.duration.get_or_create(&labels).observe(duration.as_secs_f64());
        let [method, route] = labels;
        let answer = [method, route, ("status", status.as_str().to_owned())];
        self.requests.get_or_create(&answer).inc();
    }
}

/// Adds one to a gauge until it is dropped.
pub(crate) struct GaugeGuard(Gauge);

impl GaugeGuard {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
