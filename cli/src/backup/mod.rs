//! `decoupled backup` and `decoupled restore`: write the data of a deployment on its broker to files, and back.
//!
//! The broker makes a snapshot of each stream, with its consumers. It cannot make all snapshots at one moment, and a
//! request that is in a queue in one file and stored in another would be done twice. So the data must not change
//! meanwhile: a backup is refused while a client waits for messages, and is discarded if anything has changed at its
//! end.
//!
//! A directory is a backup once it has a manifest, which is written last. A restore checks all files before it creates
//! anything. If one of the streams exists, it changes nothing.

mod broker_state;
mod manifest;
mod restore;
mod snapshot;

pub use restore::restore;

use std::mem;
use std::path::{Path, PathBuf};

use crate::output::say;
use crate::terminal;
use anyhow::bail;
use async_nats::jetstream::Context;
use clap::Args;
use contract::facts;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use workqueue::topology::FIRST_CREATED;
use workqueue::{Connection, NatsSettings};

use broker_state::{BrokerState, in_the_queue};
use manifest::{KeptConsumer, Manifest, Unfinished};

/// Settings of `decoupled backup`.
#[derive(Args, Clone, Debug)]
pub struct BackupSettings {
    /// Directory for the backup: an empty one, or one that does not exist yet
    directory: PathBuf,

    #[command(flatten)]
    nats: NatsSettings,
}

/// Settings of `decoupled restore`.
#[derive(Args, Clone, Debug)]
pub struct RestoreSettings {
    /// Directory of the backup
    directory: PathBuf,

    /// How many brokers of a cluster keep each stream: 1, 3 or 5 [default: as many as before]
    #[arg(long, env, value_parser = workqueue::copies, value_name = "NUMBER")]
    replicas: Option<usize>,

    #[command(flatten)]
    nats: NatsSettings,
}

pub(crate) async fn run_backup(settings: &BackupSettings) -> anyhow::Result<()> {
    manifest::has_room(&settings.directory).await?;
    let connection = terminal::connect(&settings.nats, "decoupled backup").await?;
    backup(&connection, &settings.directory).await?;
    say(format_args!("Backed up to {}.", settings.directory.display())).await
}

pub(crate) async fn run_restore(
    settings: &RestoreSettings,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let RestoreSettings { directory, replicas, nats } = settings;
    let preparing = async {
        let manifest = Manifest::read(directory).await?;
        anyhow::Ok((manifest, terminal::connect(nats, "decoupled restore").await?))
    };
    let Some(prepared) = stop.run_until_cancelled(Box::pin(preparing)).await else {
        bail!("{}, and nothing was changed", restore::STOPPED);
    };
    let (manifest, connection) = prepared?;
    restore::give_all(&connection, directory, &manifest, *replicas, stop).await?;
    let said = say("Restored. Start both services, and run `decoupled audit`.");
    stop.run_until_cancelled(said).await.unwrap_or(Ok(()))
}

/// Backs up all streams with their consumers into a directory, which is created, or has to be empty. Reports its
/// progress on standard error.
///
/// # Errors
///
/// If the directory is not empty, a service still runs, anything changes meanwhile, or the broker refuses. The
/// directory is not a backup then.
pub async fn backup(connection: &Connection, directory: &Path) -> anyhow::Result<()> {
    let nats = connection.context();
    let before = BrokerState::read(nats).await?;
    before.no_service_waits()?;
    manifest::prepare(directory).await?;
    let unfinished = Unfinished(directory);
    take(connection, directory, &before).await?;
    mem::forget(unfinished);
    Ok(())
}

async fn take(
    connection: &Connection,
    directory: &Path,
    before: &BrokerState,
) -> anyhow::Result<()> {
    let nats = connection.context();
    let mut kept = Vec::new();
    for stream in manifest::streams() {
        let consumers = consumers(nats, before, stream).await?;
        let path = directory.join(manifest::file(stream));
        let mut stream = snapshot::take(connection, stream, consumers, &path).await?;
        stream.config["metadata"][FIRST_CREATED] = json!(before.first_created(&stream.name));
        snapshot::report(&stream)?;
        kept.push(stream);
    }
    let after = BrokerState::read(nats).await?;
    if let Some(change) = before.change(&after) {
        bail!("{change} during the backup: stop both services, and all other writers");
    }
    after.no_service_waits()?;
    let broker = connection.client().server_info().version;
    terminal::compare_clocks(nats, facts::REQUESTED.stream).await?;
    Manifest::new(workqueue::now(), broker, kept).write(directory).await
}

async fn consumers(
    nats: &Context,
    state: &BrokerState,
    stream: &str,
) -> anyhow::Result<Vec<KeptConsumer>> {
    let consumers = state.consumers.iter().map(|(_, consumer)| consumer);
    let mut kept = Vec::new();
    for consumer in consumers.filter(|consumer| consumer.stream_name == stream) {
        let outstanding = manifest::outstanding(consumer);
        let settled = in_the_queue(nats, consumer).await?.saturating_sub(outstanding);
        kept.push(KeptConsumer { name: consumer.name.clone(), outstanding, settled });
    }
    Ok(kept)
}
