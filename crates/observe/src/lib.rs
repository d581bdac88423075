//! Reads what is on the broker, without asking any of the services: so it can be read whoever is down.
//!
//! | what | module |
//! | --- | --- |
//! | a moment of the flow: the queues, the counts, the last requests | [`flow`] |
//! | what was given up, and another try for it | [`dead_letters`] |
//! | one request: what has happened to it, and where it is | [`life`] |
//! | some messages of a stream, by one question | [`batch`] |
//! | the verdict: what was lost or doubled | [`audit`] |
//!
//! Nothing here changes anything, save for [`dead_letters::replay`].

pub mod audit;
pub mod batch;
pub mod dead_letters;
pub mod flow;
pub mod life;
mod reading;

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::timeout;
use workqueue::{Connection, NatsSettings};

/// How long to try to reach a broker. Unlike a service, whoever only looks does not wait for one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a broker, or gives up after a while.
///
/// # Errors
///
/// Where it cannot be reached, or refuses.
pub async fn connect(settings: &NatsSettings, name: &str) -> anyhow::Result<Connection> {
    let connecting = Connection::establish(settings, name, |_connected| {});
    let connection = timeout(PATIENCE, connecting).await.map_err(|_too_long| {
        anyhow!("no broker answers at {} (NATS_URL, --nats-url); does it run?", settings.nats_url)
    })?;
    Ok(connection?)
}
