//! Runs the whole system on one machine, breaks it on purpose, and audits it.

pub mod audit;
pub mod bench;
pub mod broker;
pub mod chaos;
pub mod dead_letters;
pub mod declare;
pub mod eventually;
mod flow;
pub mod http;
pub mod process;
pub mod programs;
pub mod proxy;
mod reading;
pub mod replica;
pub mod target;
pub mod up;

use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;
use worker::{Connection, NatsSettings};

/// How long to try to reach a broker. Unlike a service, the lab does not wait for one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a broker, or gives up after a while.
///
/// # Errors
///
/// Where it cannot be reached, or refuses.
pub async fn connect(settings: &NatsSettings, name: &str) -> anyhow::Result<Connection> {
    let connecting = Connection::establish(settings, name, |_connected| {});
    let connection = timeout(PATIENCE, connecting).await.with_context(|| {
        format!("no broker answers at {} (NATS_URL, --nats-url)", settings.nats_url)
    })?;
    Ok(connection?)
}
