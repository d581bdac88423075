//! `decoupled declare`: creates or adjusts the streams, buckets and consumers of a deployment.

use std::time::Duration;

use async_nats::jetstream::Context;
use clap::Args;
use tokio::time::Instant;
use workqueue::topology::{self, DeclareError, Declared, Limits};
use workqueue::{Backoff, Connection, KnownStreams, NatsSettings};

use crate::output::say;
use crate::terminal;
use crate::watch::{self, WatchSettings};

/// The first ceiling of the time between two tries, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The least time to connect, so that no wait is too short for a broker that is ready.
const CONNECTING: Duration = Duration::from_secs(2);

/// Settings of `decoupled declare`.
#[derive(Args, Clone, Debug)]
pub struct DeclareSettings {
    /// Time for which to retry while there is no broker, or one that is not ready, such as a cluster that is still
    /// starting
    #[arg(long, default_value = "10s", value_parser = workqueue::duration, value_name = "TIME")]
    wait: Duration,

    /// Run until SIGTERM or SIGINT, and keep the streams, buckets and consumers as declared. Also move messages that
    /// no client can read to the dead letters, and messages that a killed broker does not redeliver to the end of
    /// their queue
    #[arg(long, conflicts_with = "wait")]
    pub(crate) watch: bool,

    #[command(flatten)]
    nats: NatsSettings,

    #[command(flatten)]
    limits: Limits,

    #[command(flatten)]
    pub(crate) watching: WatchSettings,
}

pub(crate) async fn run(settings: &DeclareSettings) -> anyhow::Result<()> {
    let DeclareSettings { wait, watch, nats, limits, watching } = settings;
    if *watch {
        let stop = workqueue::stop_on_signals()?;
        return watch::watch(watching, nats, limits, &stop).await;
    }
    let declaring = declare_patiently(nats, limits, *wait);
    let done = terminal::wait_for_broker(nats, declaring).await?;
    if done.is_empty() {
        say("Everything exists as declared.").await?;
    }
    for line in done {
        say(line).await?;
    }
    Ok(())
}

/// Creates missing streams, buckets and consumers, changes differing limits in place, and returns a line for each
/// change.
///
/// # Errors
///
/// If an existing stream or consumer breaks a guarantee, or the broker refuses.
pub async fn declare(nats: &Context, limits: &Limits) -> Result<Vec<String>, DeclareError> {
    let mut done = Declared::default();
    let known = KnownStreams::default();
    topology::adjust(nats, &known, &contract::whole_topology(), limits, &mut done).await?;
    Ok(done.lines())
}

/// Connects, and calls [`declare`]. Retries within `patience` while there is no broker, or one that is not ready, such
/// as a cluster that is still starting.
///
/// # Errors
///
/// As [`declare`], and the last failure when the time is over.
pub async fn declare_patiently(
    settings: &NatsSettings,
    limits: &Limits,
    patience: Duration,
) -> anyhow::Result<Vec<String>> {
    let begun = Instant::now();
    let connecting =
        Connection::establish_within(settings, "decoupled declare", patience.max(CONNECTING));
    let connection = connecting.await?;
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut done = Declared::default();
    loop {
        let (nats, known) = (connection.context(), connection.known());
        match topology::adjust(nats, known, &contract::whole_topology(), limits, &mut done).await {
            Ok(()) => return Ok(done.lines()),
            Err(DeclareError::Unavailable { .. }) if begun.elapsed() < patience => {}
            Err(error) => return Err(error.into()),
        }
        backoff.wait().await;
    }
}
