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
    due: Instant,
}

impl RateLimiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, due: Instant::now() }
    }

    /// Waits until the next request is due.
    pub(crate) async fn next(&mut self) {
        match self.rate {
            Rate::Zero => std::future::pending().await,
            Rate::PerSecond(rate) => {
                sleep_until(self.due).await;
                let earliest = Instant::now().checked_sub(CATCH_UP).unwrap_or(self.due);
                self.due = self.due.max(earliest) + Duration::from_secs_f64(1.0 / rate);
            }
            Rate::Max => {}
        }
    }
}
