use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::held_signals::while_held;
use crate::telemetry;

/// The time after a signal in which another one counts as the same request: some process managers send two.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// The requests to stop that a process gets: SIGTERM, SIGINT, and SIGHUP, which comes when the terminal is
/// closed. Without a handler for them, the first process of a container would not end, and a process that
/// has started others would leave them behind.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if the process was started with the signal ignored, such as by `nohup`.
    hangup: Option<Signal>,
    /// The time of the last request.
    last: Option<Instant>,
}

impl StopSignals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// If the operating system refuses.
    pub fn listen() -> io::Result<Self> {
        // A signal that arrives before its listener is registered is lost.
        while_held(|| {
            let hangup = SignalKind::hangup();
            Ok(Self {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: if is_ignored(hangup) { None } else { Some(signal(hangup)?) },
                last: None,
            })
        })
    }

    /// Waits for the next request, and returns the name of the signal, and the signal. A signal within a second of the
    /// last request does not count.
    pub async fn next(&mut self) -> (&'static str, SignalKind) {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let signal = tokio::select! {
                _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
                _ = self.interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
                _ = hangup => ("SIGHUP", SignalKind::hangup()),
            };
            if self.last.is_none_or(|last| last.elapsed() > SAME_REQUEST) {
                self.last = Some(Instant::now());
                return signal;
            }
        }
    }
}

/// Whether this process was started with this signal ignored, if the operating system reports it.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// A token that the first request to stop cancels. The second one ends the process at once.
///
/// # Errors
///
/// If it cannot listen for the signals.
pub fn stop_on_signals() -> io::Result<CancellationToken> {
    let mut signals = StopSignals::listen()?;
    let stop = CancellationToken::new();
    // A process that can receive no more signals stops as well.
    let stopping = stop.clone().drop_guard();
    tokio::spawn(async move {
        let (signal, _) = signals.next().await;
        info!(signal, "stopping; another signal, more than a second from now, ends this at once");
        drop(stopping);
        let (signal, kind) = signals.next().await;
        warn!(signal, "ending at once: the jobs in flight are redelivered after ACK_WAIT");
        telemetry::flush();
        std::process::exit(128 + kind.as_raw_value());
    });
    Ok(stop)
}
