//! What the API counts of itself.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// What was asked, without what anybody can make up: no id, and no method that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Asked {
    method: &'static str,
    route: &'static str,
}

impl Asked {
    pub(super) fn new(method: &Method, route: &'static str) -> Self {
        const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        let method = KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
        Self { method, route }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: &'static str,
    status: u16,
}

/// The metrics of the API. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    requests: Family<Answered, Counter>,
    duration: Family<Asked, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            // From half a millisecond to more than two minutes: some are there to wait.
            duration: Family::new_with_constructor(
                (|| Histogram::new(exponential_buckets(0.000_5, 4.0, 10))) as fn() -> Histogram,
            ),
            in_flight: Gauge::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "api_requests",
            "Requests to the HTTP API by what the answer was",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "api_request_duration",
            "Time from the head of a request to the HTTP API to the answer",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register(
            "api_in_flight",
            "Requests to the HTTP API that are being answered",
            self.in_flight.clone(),
        );
    }

    /// Counts a request as being answered for as long as the result is there.
    pub(super) fn begun(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    pub(super) fn answered(&self, asked: &Asked, status: StatusCode, duration: Duration) {
        let Asked { method, route } = *asked;
        let answered = Answered { method, route, status: status.as_u16() };
        self.requests.get_or_create(&answered).inc();
        self.duration.get_or_create(asked).observe(duration.as_secs_f64());
    }
}

/// A request that is being answered.
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
