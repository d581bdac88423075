//! The events of a run, printed as they happen.

use std::fmt::Display;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use cli::terminal::{line, tell};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The events so far. Several tasks write to it at the same time.
#[derive(Debug)]
pub(crate) struct EventLog {
    started: OnceLock<Instant>,
    events: Mutex<Vec<LoggedEvent>>,
    quiet: bool,
    /// Ends the run if the reader of the output has gone.
    stop: CancellationToken,
}

/// An event.
#[derive(Clone, Debug, Serialize)]
pub struct LoggedEvent {
    /// Seconds since the beginning.
    pub at: f64,
    /// The event.
    pub what: String,
}

impl EventLog {
    /// Begins with the first event, or the first question for a moment. A quiet log writes to the standard error, and
    /// leaves the standard output to the report. If the reader of the events has gone, as in `chaos | head`, it stops
    /// the run gracefully.
    pub(crate) fn new(quiet: bool, stop: CancellationToken) -> Self {
        Self { started: OnceLock::new(), events: Mutex::default(), quiet, stop }
    }

    /// The moment that is this long after the beginning.
    pub(crate) fn after(&self, time: Duration) -> Instant {
        *self.started.get_or_init(Instant::now) + time
    }

    /// Records and prints an event.
    pub(crate) fn note(&self, what: impl Display) {
        let at = self.after(Duration::ZERO).elapsed().as_secs_f64();
        let what = what.to_string();
        if self.quiet {
            tell(format_args!("{at:>7.2}s  {what}"));
        } else {
            let printed = line(format_args!("{at:>7.2}s  {what}"));
            if printed.is_err_and(|error| workqueue::reader_has_gone(&error)) {
                self.stop.cancel();
            }
        }
        self.events
            .lock()
            .expect("nothing panics while it holds this")
            .push(LoggedEvent { at, what });
    }

    pub(crate) fn into_events(self) -> Vec<LoggedEvent> {
        self.events.into_inner().expect("nothing panics while it holds this")
    }
}
