//! What the gateway counts of itself.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// What was asked, without what a client can make up: no id, and no unknown method.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    method: &'static str,
    route: String,
    status: u16,
}

/// The gateway's own metrics.
#[derive(Debug)]
pub(crate) struct GatewayMetrics {
    requests: Family<AnswerLabels, Counter>,
    duration: Family<RouteLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    pub(crate) snapshots: Counter,
    pub(crate) failed_snapshots: Counter,
    pub(crate) tabs: Gauge,
    pub(crate) sent_bytes: Counter,
}

impl GatewayMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let new = Self {
            requests: Family::default(),
            // From half a millisecond to more than two minutes: some are there to wait.
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
        registry.register("api_requests", "HTTP requests by what the answer was", requests);
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
            "Snapshots of the flow, one a second",
            new.snapshots.clone(),
        );
        let failed = new.failed_snapshots.clone();
        registry.register("failed_snapshots", "Snapshots that the broker did not answer", failed);
        registry.register("tabs", "Pages that are open", new.tabs.clone());
        registry.register("sent_bytes", "Bytes of events handed to pages", new.sent_bytes.clone());
        new
    }

    /// Counts a request as being answered for as long as the result is there.
    pub(crate) fn begun(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
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
        let answer = AnswerLabels { method, route: route.clone(), status: status.as_u16() };
        self.requests.get_or_create(&answer).inc();
        let duration = duration.as_secs_f64();
        self.duration.get_or_create(&RouteLabels { method, route }).observe(duration);
    }
}

/// A request that is being answered.
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
