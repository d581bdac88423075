//! The transactional outbox: an order and its event are committed in one transaction, a relay publishes the event, and a
//! payment service takes the money once. The README of this example is the lesson.
//!
//! | to see | module |
//! | --- | --- |
//! | the outbox, and the two naive ways | [`orders`] |
//! | the events of an order, published one after another | [`relay`] |
//! | the inbox | [`payments`] |
//! | all differences between `SQLite` and Postgres | [`database`] |
//! | the verdict | [`audit`](mod@audit) |

pub mod audit;
pub mod database;
pub mod orders;
pub mod payments;
pub mod relay;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sqlx::migrate::Migrator;
use tokio_util::sync::CancellationToken;
use workqueue::{Job, JobId, Logs, Queue, Settings, variable};

use database::Database;

/// An event of an order. Its id is also that of its message, so that the inbox recognises an event that is published
/// again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OrderEvent {
    /// Its own id.
    pub id: JobId,
    /// The order.
    pub order: JobId,
    /// Its number among the events of its order, from 1. Events have their effects in the sequence of these numbers.
    pub number: i64,
    /// What happened.
    pub change: Change,
    /// The price of the order, in cents.
    pub amount: i64,
}

/// The change of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It was placed, and has to be paid.
    Placed,
    /// It was cancelled, and its payment has to be refunded.
    Cancelled,
}

impl Job for OrderEvent {
    const QUEUE: Queue = Queue::new("ORDER_EVENTS", "order-events").consumer("payments");

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }
}

/// The outcome of an event of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The order.
    pub order: JobId,
    /// The number of the event.
    pub number: i64,
    /// Paid, declined, refunded or cancelled.
    pub status: String,
}

impl Job for Outcome {
    const QUEUE: Queue = Queue::new("PAYMENT_OUTCOMES", "payment-outcomes").consumer("orders");
}

/// The common parts of all programs.
pub struct Program {
    /// The settings of every service, from the environment.
    pub settings: Settings,
    /// Its database.
    pub database: Database,
    /// Cancelled when the program has to stop.
    pub stop: CancellationToken,
    _logs: Logs,
}

impl Program {
    /// Starts the logs, listens for signals, and connects to the database of these tables: that of `DATABASE_URL`, by
    /// default this `SQLite` file. Returns nothing if the program is stopped before that.
    ///
    /// # Errors
    ///
    /// If the logs or the database cannot be used, and waiting does not help.
    pub async fn start(file: &str, tables: Migrator) -> anyhow::Result<Option<Self>> {
        // The audit reads no bundles.
        let settings = Settings { bundle_limit: 1, ..Settings::from_env() };
        let logs = workqueue::init_telemetry(&settings.telemetry)?;
        let stop = workqueue::stop_on_signals()?;
        let url = variable("DATABASE_URL").unwrap_or_else(|| format!("sqlite:{file}"));
        let connecting = stop.run_until_cancelled(Database::connect(&url, tables));
        let Some(database) = connecting.await else { return Ok(None) };
        let database = database.context("cannot use the database (DATABASE_URL)")?;
        Ok(Some(Self { settings, database, stop, _logs: logs }))
    }
}
