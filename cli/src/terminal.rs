//! Shared by the commands that a person calls at a terminal: their connection, their logs and their result.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Error};
use serde::Serialize;
use tokio::time::timeout;
use workqueue::{Connection, LogFormat, Logs, NatsSettings, TelemetrySettings};

/// How long a command waits for the broker before it says so.
const SILENCE: Duration = Duration::from_secs(1);

/// Starts the logs of a command: errors, and what an audit waits for, unless `RUST_LOG` says
/// otherwise.
///
/// # Errors
///
/// Where `RUST_LOG` makes no sense.
pub fn init_logs() -> anyhow::Result<Logs> {
    let rust_log = workqueue::variable("RUST_LOG")
        .unwrap_or_else(|| "error,observe=warn,async_nats=off".to_owned());
    let log_format = Some(LogFormat::Pretty);
    workqueue::init_telemetry(&TelemetrySettings { rust_log, log_format }).map_err(Error::msg)
}

/// Prints a result, for people or as JSON.
///
/// # Errors
///
/// Where it cannot become JSON, and as [`say`].
pub fn print(result: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    if json {
        say(serde_json::to_string_pretty(result)?)
    } else {
        say(in_locale(result.to_string()))
    }
}

/// Text for people in signs that the locale has: in ASCII, where it has no UTF-8. One sign takes the place of
/// one, so that columns stay.
#[must_use]
pub fn in_locale(text: String) -> String {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(workqueue::variable);
    let is_utf8 = |locale: String| locale.to_lowercase().replace('-', "").contains("utf8");
    if locale.is_none_or(is_utf8) {
        return text;
    }
    let plain = |sign| match sign {
        '▓' => '#',
        '░' => '=',
        '·' => '.',
        '…' => '~',
        '–' => '-',
        '≥' => '>',
        '≤' => '<',
        'µ' => 'u',
        sign => sign,
    };
    text.chars().map(plain).collect()
}

/// Prints a line on standard output. Where its reader has gone, nothing is missing: what the command does
/// counts, and its exit status says how it ended.
///
/// # Errors
///
/// Where the line cannot be written for another reason, such as a full disk.
pub fn say(text: impl Display) -> anyhow::Result<()> {
    match line(text) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to the standard output")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints a line on standard output.
///
/// # Errors
///
/// Where it cannot be written: with [`ErrorKind::BrokenPipe`], where its reader has gone.
pub fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Tells on the standard error how far something is, if that takes it.
pub fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Connects to the broker, as [`observe::connect`], and tells that it waits where that takes a while.
///
/// # Errors
///
/// Where the broker cannot be reached, or refuses.
pub async fn connect(settings: &NatsSettings, name: &str) -> anyhow::Result<Connection> {
    wait_for_broker(settings, observe::connect(settings, name)).await
}

/// Awaits what the broker is asked for, and tells that it waits where that takes a while.
pub async fn wait_for_broker<F: Future>(settings: &NatsSettings, answer: F) -> F::Output {
    let mut answer = pin!(answer);
    if let Ok(answered) = timeout(SILENCE, answer.as_mut()).await {
        return answered;
    }
    tell(format_args!("waiting for the broker at {}", settings.broker()));
    answer.await
}
