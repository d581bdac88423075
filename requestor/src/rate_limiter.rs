use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::settings::Rate;

/// The longest delay for which the requestor catches up. If the queue was full for longer, it does not make up for the
/// requests that fell due before.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Limits the requests of this requestor to a rate.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rate: Rate,
    start: Instant,
    due: Duration,
}

impl RateLimiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, start: Instant::now(), due: Duration::ZERO }
    }

    /// Waits until the next request is due.
    pub(crate) async fn next(&mut self) {
        match self.rate {
            Rate::Zero => std::future::pending().await,
            Rate::PerSecond(rate) => {
                sleep_until(self.start + self.due).await;
                let interval = Duration::from_secs_f64(1.0 / rate);
                self.due = next_due(self.due, self.start.elapsed(), interval);
            }
            Rate::Max => {}
        }
    }
}

/// The time at which the next request is due, if the last one was due at `due` and made at `made`: one request in each
/// interval. All times are since the start.
#[must_use]
pub fn next_due(due: Duration, made: Duration, interval: Duration) -> Duration {
    due.max(made.saturating_sub(CATCH_UP)) + interval
}
