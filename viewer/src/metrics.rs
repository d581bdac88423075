//! What the viewer counts of itself, and says on its admin endpoint.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use workqueue::Report;

use crate::Viewer;

/// The metrics of the viewer.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) connected: Gauge,
    pub(crate) looks: Counter,
    pub(crate) failed_looks: Counter,
    pub(crate) tabs: Gauge,
    pub(crate) sent_bytes: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("viewer"),
            connected: Gauge::default(),
            looks: Counter::default(),
            failed_looks: Counter::default(),
            tabs: Gauge::default(),
            sent_bytes: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("connected", "1 while the broker answers", metrics.connected.clone());
        registry.register("looks", "Looks at the broker, one a second", metrics.looks.clone());
        let failed = metrics.failed_looks.clone();
        registry.register("failed_looks", "Looks that the broker did not answer", failed);
        registry.register("tabs", "Pages that are open", metrics.tabs.clone());
        let sent = metrics.sent_bytes.clone();
        registry.register("sent_bytes", "Bytes of events handed to pages", sent);
        metrics
    }
}

/// What the admin endpoint tells.
pub(crate) struct Told(pub(crate) Arc<Viewer>);

impl Report for Told {
    /// The page works without a broker, and says that there is none.
    fn not_ready(&self) -> Option<String> {
        self.0.stop.is_cancelled().then(|| "stopping".to_owned())
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0.metrics.registry)?;
        Ok(text)
    }
}
