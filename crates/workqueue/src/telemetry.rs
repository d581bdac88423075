//! The logs and traces of a process. This is best effort: a failure never stops the work.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::{panic, thread};

use anstream::{AutoStream, ColorChoice};
use opentelemetry_otlp::ExporterBuildError;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::held_signals::while_held;
use crate::settings::{LogFormat, TelemetrySettings};
use crate::span_export;

/// The number of writes that the standard error did not accept: it is closed, or its disk is full.
static FAILED_WRITES: AtomicU64 = AtomicU64::new(0);

/// The lines for which the queue to the standard error had no room, because its reader stalls.
static FULL_QUEUE: OnceLock<ErrorCounter> = OnceLock::new();

/// How many lines may wait to be written. The room for all of them is taken at the start, 32 bytes each.
const LINES: usize = 8_192;

/// The pending lines, for a process that ends at once.
static GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// The settings of logs and traces are invalid.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTelemetry {
    /// The filter of the logs is invalid.
    #[error("RUST_LOG is '{filter}': {source}")]
    Filter {
        /// The filter.
        filter: String,
        /// The error.
        source: ParseError,
    },
    /// The spans cannot be exported with these settings.
    #[error("traces cannot be exported")]
    Export(#[from] ExporterBuildError),
}

/// Writes the last lines, and sends the last spans, when it is dropped. Drop it at the end of `main`.
#[derive(Debug)]
#[must_use = "dropping it ends the logs"]
pub struct Logs(());

impl Drop for Logs {
    fn drop(&mut self) {
        span_export::flush();
        flush();
    }
}

/// Starts the logs of this process, on standard error, and its traces, if the settings have an endpoint. A line that
/// the writer does not accept is dropped and counted. The messages of panics are logged as well.
///
/// # Errors
///
/// If a setting makes no sense.
///
/// # Panics
///
/// If this process has logs already.
pub fn init(settings: &TelemetrySettings) -> Result<Logs, InvalidTelemetry> {
    let filter = EnvFilter::try_new(&settings.rust_log)
        .map_err(|source| InvalidTelemetry::Filter { filter: settings.rust_log.clone(), source })?;
    // In a separate thread, because a stalled reader would stop the work at the first full pipe.
    let logs = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES);
    let (writer, guard) = while_held(|| logs.finish(BestEffort(io::stderr())));
    FULL_QUEUE.get_or_init(|| writer.error_counter());
    print_panics_to(writer.clone());
    *GUARD.lock().expect(UNPOISONED) = Some(guard);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match settings.log_format {
        Some(LogFormat::Json) => logs.json().flatten_event(true).init(),
        None if !io::stderr().is_terminal() => logs.json().flatten_event(true).init(),
        Some(LogFormat::Pretty) | None => {
            // NO_COLOR and TERM=dumb apply, as for the messages of the command line.
            let colors = AutoStream::choice(&io::stderr()) != ColorChoice::Never;
            logs.with_ansi(colors).with_target(false).init();
        }
    }
    if let Some(endpoint) = &settings.otel_exporter_otlp_endpoint {
        span_export::start(endpoint)?;
    }
    Ok(Logs(()))
}

/// Logs panics: a thread that prints its panic itself would wait for a stalled reader.
fn print_panics_to(logs: NonBlocking) {
    panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let mut text = format!("thread '{}' {panic}\n", thread.name().unwrap_or("unnamed"));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            text = format!("{text}{backtrace}\n");
        }
        let _ = logs.clone().write_all(text.as_bytes());
    }));
}

/// Writes the pending lines, and ends the logs.
pub(crate) fn flush() {
    drop(GUARD.lock().expect(UNPOISONED).take());
}

/// The number of log lines dropped so far.
pub(crate) fn dropped_lines() -> u64 {
    let full = FULL_QUEUE.get().map_or(0, ErrorCounter::dropped_lines);
    FAILED_WRITES.load(Ordering::Relaxed) + u64::try_from(full).unwrap_or(u64::MAX)
}

const UNPOISONED: &str = "nothing panics while it holds this lock";

/// A writer that accepts everything, and counts the writes that its inner writer refuses.
struct BestEffort<W>(W);

impl<W: Write> Write for BestEffort<W> {
    /// One line of the subscriber.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            FAILED_WRITES.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
