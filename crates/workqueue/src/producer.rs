//! Publishes and creates facts for a program that consumes nothing.

use std::sync::Arc;
use std::time::Duration;

use contract::facts::Bucket;
use contract::queues::Queue;
use contract::topology::{DeclareError, Limits, Topology};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::connection::Connection;
use crate::facts::Facts;
use crate::metrics::Metrics;
use crate::publisher::Publisher;
use crate::service::{declare, repair};
use crate::settings::LimitSettings;

/// Publishers and facts on a connection, with all that they need declared on the broker.
#[derive(Debug)]
pub struct Producer {
    connection: Connection,
    metrics: Arc<Metrics>,
    topology: Topology,
    capacity: usize,
    /// Told by a publisher that finds no stream.
    missing: Arc<Notify>,
    _repairs: AbortOnDropHandle<()>,
}

impl Producer {
    /// Declares what is missing, however long that takes, and again when it goes missing. Each publisher
    /// may have `capacity` messages under way.
    ///
    /// # Errors
    ///
    /// Where waiting does not help, see [`DeclareError`].
    pub async fn start(
        connection: &Connection,
        limits: &LimitSettings,
        metrics: &Arc<Metrics>,
        capacity: usize,
    ) -> Result<Self, DeclareError> {
        let limits = Limits::from(limits);
        let topology = declare(connection, &limits).await?;
        let missing = Arc::default();
        let repairs = repair(connection.clone(), limits, Arc::clone(&missing));
        Ok(Self {
            connection: connection.clone(),
            metrics: Arc::clone(metrics),
            topology,
            capacity,
            missing,
            _repairs: AbortOnDropHandle::new(tokio::spawn(repairs)),
        })
    }

    /// How long the promises hold from the moment of asking, as the buckets on the broker have it.
    #[must_use]
    pub fn facts_max_age(&self) -> Duration {
        self.topology.facts_max_age()
    }

    /// A publisher to this queue.
    #[must_use]
    pub fn publisher(&self, queue: Queue) -> Publisher {
        self.publisher_to(queue.stream)
    }

    /// The facts of this bucket.
    #[must_use]
    pub fn facts(&self, bucket: Bucket) -> Facts {
        Facts::new(&self.connection, self.publisher_to(bucket.stream))
    }

    fn publisher_to(&self, stream: &'static str) -> Publisher {
        Publisher::new(&self.connection, &self.metrics, &self.missing, stream, self.capacity)
    }
}
