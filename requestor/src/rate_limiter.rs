use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::settings::Rate;

/// How far behind schedule the requestor may be and still catch up. Requests that fell
/// due while a queue was full for longer are not made up for.
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

/// When the next request is due after one that was due at one moment and made at another, all since the
/// start, at one request in each interval.
#[must_use]
pub fn next_due(due: Duration, made: Duration, interval: Duration) -> Duration {
    due.max(made.saturating_sub(CATCH_UP)) + interval
}
