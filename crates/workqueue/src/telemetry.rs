use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::settings::{LogFormat, TelemetrySettings};

/// The filter of the logs makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("RUST_LOG is '{filter}': {source}")]
pub struct InvalidFilter {
    filter: String,
    source: ParseError,
}

/// Starts the logs of this process, on standard error.
///
/// # Errors
///
/// Where the filter makes no sense.
pub fn init(settings: &TelemetrySettings) -> Result<(), InvalidFilter> {
    let filter = EnvFilter::try_new(&settings.rust_log)
        .map_err(|source| InvalidFilter { filter: settings.rust_log.clone(), source })?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::NONE);
    let terminal = io::stderr().is_terminal();
    match settings.log_format {
        Some(LogFormat::Json) => logs.json().flatten_event(true).init(),
        None if !terminal => logs.json().flatten_event(true).init(),
        Some(LogFormat::Pretty) | None => logs.with_ansi(terminal).with_target(false).init(),
    }
    Ok(())
}
