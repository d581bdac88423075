//! The connection, the logs and the output that the commands and the lab share.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::pin::pin;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error};
use async_nats::jetstream::Context;
use serde::Serialize;
use tokio::time::timeout;
use workqueue::api::ApiError;
use workqueue::topology::Limits;
use workqueue::{Connection, LogFormat, Logs, Metrics, NatsSettings, Producer, TelemetrySettings};

/// The time after which a waiting command reports what it waits for.
const SILENCE: Duration = Duration::from_secs(1);

/// The time limit for cancelling a request, and for discarding a dead letter: enough for the election of a leader, and
/// for another try after it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// The error after [`DEADLINE`].
pub(crate) const TOO_LATE: &str =
    "the broker has not confirmed it in time: it is away, or has no room; it is safe to try again";

/// The pause before another try to write to a full pipe.
const NO_ROOM: Duration = Duration::from_millis(5);

/// The levels without `RUST_LOG`: errors, and the warnings that say what an audit, a declaration or a publish waits
/// for. The commands print the other reasons to wait themselves.
const DEFAULT_LOG: &str = "error,observe=warn,workqueue::declare=warn,workqueue::later=warn,\
                           workqueue::publisher=warn,async_nats=off";

/// Starts the logs of a command: errors, and what it waits for, unless `RUST_LOG` has other levels.
///
/// # Errors
///
/// If `RUST_LOG` makes no sense.
pub fn init_logs() -> anyhow::Result<Logs> {
    let rust_log = workqueue::variable("RUST_LOG").unwrap_or_else(|| DEFAULT_LOG.to_owned());
    let log_format = Some(LogFormat::Pretty);
    workqueue::init_telemetry(&TelemetrySettings {
        rust_log,
        log_format,
        otel_exporter_otlp_endpoint: None,
    })
    .map_err(Error::msg)
}

/// Prints a result, for people or as JSON.
///
/// # Errors
///
/// If it does not serialize, and as [`say`].
pub fn print(result: &(impl Serialize + Display), json: bool) -> anyhow::Result<()> {
    say(text(result, json)?)
}

/// The text of a result, for people or as JSON.
pub(crate) fn text(result: &(impl Serialize + Display), json: bool) -> anyhow::Result<String> {
    if json { Ok(serde_json::to_string_pretty(result)?) } else { Ok(in_locale(result.to_string())) }
}

/// Text for people in the character set of the locale: ASCII without UTF-8. One character replaces one, so that columns
/// stay.
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

/// Prints a line on standard output. If its reader has gone, that is no error: the exit status still has the result.
///
/// # Errors
///
/// If the line cannot be written for another reason, such as a full disk.
pub fn say(text: impl Display) -> anyhow::Result<()> {
    match line(text) {
        Err(error) if !workqueue::reader_has_gone(&error) => {
            Err(error).context("cannot write to the standard output")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints a line on standard output.
///
/// # Errors
///
/// If it cannot be written. [`workqueue::reader_has_gone`] distinguishes a reader that has gone.
pub fn line(text: impl Display) -> io::Result<()> {
    write_patiently(&mut io::stdout(), format!("{text}\n").as_bytes())
}

/// Writes the whole text. A pipe whose reader has made it non-blocking, as Node does, refuses bytes while it is full.
fn write_patiently(output: &mut impl Write, mut text: &[u8]) -> io::Result<()> {
    loop {
        let written = if text.is_empty() { output.flush().map(|()| 0) } else { output.write(text) };
        match written {
            Ok(_) if text.is_empty() => return Ok(()),
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(NO_ROOM),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Prints a line on standard error, and ignores a failure.
pub fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Bases [`workqueue::now`] on the broker's clock, and reports if this machine's clock is wrong. Any existing `stream`
/// will do.
///
/// # Errors
///
/// If the broker does not answer.
pub async fn compare_clocks(nats: &Context, stream: &str) -> Result<(), ApiError> {
    if let Some(complaint) = workqueue::compare_clocks(nats, stream).await? {
        tell(complaint);
    }
    Ok(())
}

/// Connects to the broker, as [`observe::connect`], and reports if that takes a while.
///
/// # Errors
///
/// If the broker cannot be reached, or refuses.
pub async fn connect(settings: &NatsSettings, name: &str) -> anyhow::Result<Connection> {
    wait_for_broker(settings, observe::connect(settings, name)).await
}

/// A producer for one message at a time, which creates missing streams with these limits.
#[must_use]
pub fn producer(connection: &Connection, limits: Limits) -> Producer {
    Producer::new(connection, limits, 1, &Metrics::new("decoupled"))
}

/// Awaits an answer of the broker, and reports if that takes a while.
pub async fn wait_for_broker<F: Future>(settings: &NatsSettings, answer: F) -> F::Output {
    tell_unless_soon(format_args!("waiting for the broker at {}", settings.broker()), answer).await
}

/// Awaits a future, and prints `what` if that takes a while.
pub async fn tell_unless_soon<F: Future>(what: impl Display, awaited: F) -> F::Output {
    let mut awaited = pin!(awaited);
    if let Ok(done) = timeout(SILENCE, awaited.as_mut()).await {
        return done;
    }
    tell(what);
    awaited.await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe that takes a few bytes, and then refuses once.
    #[derive(Default)]
    struct FullPipe {
        taken: Vec<u8>,
        is_full: bool,
    }

    impl FullPipe {
        fn refuses(&mut self) -> io::Result<()> {
            self.is_full = !self.is_full;
            if self.is_full { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        }
    }

    impl Write for FullPipe {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.refuses()?;
            let taken = text.len().min(3);
            self.taken.extend(&text[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.refuses()
        }
    }

    #[test]
    fn write_waits_for_room_in_a_full_pipe() {
        let mut pipe = FullPipe::default();
        write_patiently(&mut pipe, b"a line\n").unwrap();
        assert_eq!(pipe.taken, b"a line\n");
    }
}
