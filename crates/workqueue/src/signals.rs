use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::telemetry;

/// How soon after the first signal another one means the same: a process manager sends two of them.
pub const SAME_REQUEST: Duration = Duration::from_secs(1);

/// A token that SIGTERM or SIGINT cancels. A second signal more than a second later ends the process at
/// once.
///
/// # Errors
///
/// Where the signals cannot be listened for.
pub fn stop_on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let mut either = async || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
            }
        };
        let (name, _) = either().await;
        info!(signal = name, "stopping; a second signal ends this at once");
        stopped.cancel();
        let first = Instant::now();
        let (name, kind) = loop {
            let second = either().await;
            if first.elapsed() > SAME_REQUEST {
                break second;
            }
        };
        warn!(signal = name, "ending at once: what is in flight comes back after ACK_WAIT");
        telemetry::flush();
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(stop)
}
