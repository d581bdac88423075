//! Reads a deployment from its broker. It does not need the services, so it works while they are down.
//!
//! | subject | module |
//! | --- | --- |
//! | a snapshot of the flow: queues, replicas, totals, the last requests | [`snapshot`], taken by a [`Poller`] with `replicas` and `round_trips` |
//! | the history of one request | [`history`] |
//! | a list of requests | [`requests`] |
//! | the audit: lost and doubled requests | [`audit`] |
//!
//! This crate only reads: it changes nothing on the broker.

pub mod audit;
pub mod history;
mod poller;
mod replicas;
pub mod requests;
mod round_trips;
pub mod snapshot;

pub use history::RequestHistory;
pub use poller::{Poller, SnapshotErrorKind, queue};
pub use snapshot::{LaneSnapshot, QueueSnapshot, Snapshot};

use std::time::Duration;

use workqueue::{Connection, NatsSettings};

/// The time limit for connecting. Unlike a service, a tool does not wait for a broker.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a broker, or gives up after a while.
///
/// # Errors
///
/// If the broker cannot be reached, or refuses the connection.
pub async fn connect(settings: &NatsSettings, name: &str) -> anyhow::Result<Connection> {
    Ok(Connection::establish_within(settings, name, PATIENCE).await?)
}
