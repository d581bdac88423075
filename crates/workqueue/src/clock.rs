//! The time, by the broker's clock.
//!
//! The age of a job involves the clocks of two machines, and one of them may be hours ahead. So a service asks the
//! broker for the time before it takes a job, and then adds the time of its own monotonic clock.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use jiff::{SignedDuration, Timestamp, Unit};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::api::{self, ApiError};
use crate::backoff::Backoff;
use crate::connect_options::RETRY;
use crate::connection::Connection;

/// The difference from the broker's clock from which on a machine's clock counts as wrong.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// The interval between two comparisons.
const INTERVAL: Duration = Duration::from_secs(10);

/// The broker's last answer, for the whole process.
static BROKER: RwLock<Option<Reading>> = RwLock::new(None);

#[derive(Clone, Copy, Debug)]
struct Reading {
    time: Timestamp,
    at: Instant,
}

impl Reading {
    /// The broker's time at this moment.
    fn time_at(self, moment: Instant) -> Timestamp {
        let since = moment.saturating_duration_since(self.at);
        self.time.saturating_add(since).unwrap_or(Timestamp::MAX)
    }

    /// The reference after an answer with this time, which was read between the request and the answer. If the earlier
    /// reference agrees with the answer, it stays. Otherwise a slow answer, to a process that was paused meanwhile,
    /// would make the time jump.
    fn after(known: Option<Self>, asked: Instant, answered: Instant, time: Timestamp) -> Self {
        let took = answered.saturating_duration_since(asked);
        let latest = time.saturating_add(took).unwrap_or(Timestamp::MAX);
        let agrees = |known: &Self| (time..=latest).contains(&known.time_at(answered));
        known.filter(agrees).unwrap_or(Self { time, at: asked + took / 2 })
    }
}

/// The part of an answer about a stream that has its time.
#[derive(Deserialize)]
struct AnswerTime {
    ts: Timestamp,
}

/// The present moment, to the microsecond: two clocks do not agree on more digits. By the broker's clock
/// once it was asked, and by this machine's before.
#[must_use]
pub fn now() -> Timestamp {
    let reading = *BROKER.read().unwrap_or_else(PoisonError::into_inner);
    let now = reading.map_or_else(Timestamp::now, |reading| reading.time_at(Instant::now()));
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Asks the broker for the time, on which [`now`] is based from then on. Any `stream` will do about which this user may
/// ask. Returns a description of the error if this machine's clock is wrong by more than a minute.
///
/// # Errors
///
/// If the broker does not say.
pub async fn compare_clocks(context: &Context, stream: &str) -> Result<Option<String>, ApiError> {
    let asked = Instant::now();
    let answer: AnswerTime =
        api::call(context, format!("STREAM.INFO.{stream}"), &json!({})).await?;
    let answered = Instant::now();
    {
        let mut known = BROKER.write().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Reading::after(*known, asked, answered, answer.ts));
    }
    Ok(complaint(Timestamp::now().duration_since(now())))
}

fn complaint(ahead: SignedDuration) -> Option<String> {
    let (off, direction) = (ahead.abs(), if ahead.is_negative() { "behind" } else { "ahead of" });
    let rounded = off.round(Unit::Second).unwrap_or(off);
    (off > TOLERANCE).then(|| {
        format!("this machine's clock is {rounded:#} {direction} the broker's, which counts")
    })
}

/// Compares the clocks at intervals, and after each loss of the connection. Calls `report` when this machine's clock is
/// wrong, and when it is right again.
#[derive(Debug)]
pub struct ClockWatch<R> {
    connection: Connection,
    stream: &'static str,
    report: R,
    is_wrong: bool,
}

impl<R: Fn(Option<String>)> ClockWatch<R> {
    /// Compares the clocks, and retries until the broker answers.
    pub async fn start(connection: &Connection, stream: &'static str, report: R) -> Self {
        let connection = connection.clone();
        let mut watch = Self { connection, stream, report, is_wrong: false };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while !watch.compare().await {
            backoff.wait().await;
        }
        watch
    }

    /// Runs as long as it is awaited.
    pub async fn run(mut self) -> Infallible {
        loop {
            let times = self.connection.times_connected();
            let _ = timeout(INTERVAL, self.connection.reconnected(times)).await;
            self.compare().await;
        }
    }

    /// Returns whether the broker answered.
    async fn compare(&mut self) -> bool {
        let compared = pin!(compare_clocks(self.connection.context(), self.stream));
        let Some(Ok(wrong)) = self.connection.ask(compared).await else { return false };
        match &wrong {
            Some(wrong) if !self.is_wrong => warn!("{wrong}"),
            None if self.is_wrong => info!("this machine's clock agrees with the broker's again"),
            _ => {}
        }
        self.is_wrong = wrong.is_some();
        (self.report)(wrong);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answer_does_not_make_the_time_jump() {
        let noon: Timestamp = "2026-01-02T12:00:00Z".parse().unwrap();
        let (second, start) = (Duration::from_secs(1), Instant::now());
        let known = Reading { time: noon, at: start };
        // Asked ten seconds later, and answered at once, but heard only after four more.
        let (asked, heard) = (start + second * 10, start + second * 14);
        let reading = Reading::after(Some(known), asked, heard, noon + second * 10);
        assert_eq!(reading.time_at(heard), noon + second * 14);
        // The broker's clock was set, or this machine slept.
        let reading = Reading::after(Some(known), asked, heard, noon + second * 60);
        assert_eq!(reading.time_at(heard), noon + second * 62);
        let first = Reading::after(None, asked, heard, noon);
        assert_eq!(first.time_at(heard), noon + second * 2);
    }

    #[test]
    fn clock_is_wrong_by_more_than_a_minute() {
        assert_eq!(complaint(SignedDuration::from_secs(60)), None);
        assert_eq!(complaint(SignedDuration::from_secs(-60)), None);
        let ahead = complaint(SignedDuration::from_millis(90_061_400)).unwrap();
        assert!(ahead.contains("clock is 25h 1m 1s ahead of the broker's"), "{ahead}");
        let behind = complaint(SignedDuration::from_secs(-61)).unwrap();
        assert!(behind.contains("clock is 1m 1s behind the broker's"), "{behind}");
    }
}
