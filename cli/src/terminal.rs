//! Shared by the commands that a person calls at a terminal: their logs, their result, and how a
//! signal ends it.

use std::fmt::Display;
use std::io;

use anyhow::Error;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use workqueue::{LogFormat, TelemetrySettings};

/// Starts the logs of a command: errors only, unless `RUST_LOG` says otherwise.
///
/// # Errors
///
/// Where `RUST_LOG` makes no sense.
pub fn init_logs() -> anyhow::Result<()> {
    let rust_log = std::env::var("RUST_LOG").unwrap_or_else(|_| "error,async_nats=off".to_owned());
    let log_format = Some(LogFormat::Pretty);
    workqueue::init_telemetry(&TelemetrySettings { rust_log, log_format }).map_err(Error::msg)
}

/// Prints a result, for people or as JSON.
///
/// # Errors
///
/// Where it cannot become JSON.
pub fn print(result: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(result)?);
    } else {
        println!("{result}");
    }
    Ok(())
}

/// SIGINT, SIGTERM and SIGHUP. Without a handler for the last, closing the terminal would leave behind
/// what a command has started; without one for the others, they would not end the first process of a
/// container.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// Where the operating system refuses.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
