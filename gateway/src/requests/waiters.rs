//! Waits until a request has come to its end, through any replica of either side.
//!
//! Each waiter listens on the broker for the publishes that could end its request, and reads the facts
//! when it hears one. Requests without a waiter cost nothing.

use std::time::Duration;

use contract::facts::STORED;
use futures_util::StreamExt;
use futures_util::stream::select;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use workqueue::{Backoff, JobId, dead_letters};

use super::reader::RequestReader;
use super::view::{RequestDetails, RequestStatus};
use crate::problem::{Problem, ProblemKind};

/// How many requests may wait at a time, which leaves most of the connections to the others.
const PLACES: usize = 64;

/// How often to read while nothing is heard: a subscription may be lost, or not be permitted.
const POLL: Duration = Duration::from_secs(2);

/// A fact may be heard of before it is readable. The first ceiling of the time before it is read again.
const SOON: Duration = Duration::from_millis(5);

/// The clients that wait.
#[derive(Debug)]
pub(crate) struct Waiters {
    places: Semaphore,
}

impl Default for Waiters {
    fn default() -> Self {
        Self { places: Semaphore::new(PLACES) }
    }
}

impl Waiters {
    /// How far this request has come once its strings are stored, or it is given up, or `time` is over,
    /// or `closing`.
    pub(crate) async fn wait(
        &self,
        reader: &RequestReader,
        id: JobId,
        time: Duration,
        closing: &CancellationToken,
    ) -> Result<RequestDetails, Problem> {
        let end = Instant::now() + time;
        let Ok(_place) = self.places.try_acquire() else {
            return Err(ProblemKind::Busy.because("too many wait at this moment; ask without wait"));
        };
        let mut details = reader.details(id).await?;
        let over = |details: &RequestDetails| {
            let still = matches!(details.status, RequestStatus::Queued | RequestStatus::Scheduled);
            !still || Instant::now() >= end || closing.is_cancelled()
        };
        if over(&details) {
            return Ok(details);
        }
        let client = reader.connection.client();
        let lost = |_| ProblemKind::BrokerAway.because("the connection to the broker has ended");
        let stored = client.subscribe(STORED.subject(id)).await.map_err(lost)?;
        let given_up = dead_letters::subject("*", &id.to_string());
        let given_up = client.subscribe(given_up).await.map_err(lost)?;
        let mut heard = select(stored, given_up);
        // The broker has the subscriptions before the facts are read again, so nothing is missed.
        let _ = timeout_at(end, client.flush()).await;
        let mut soon = None;
        loop {
            details = reader.details(id).await?;
            if over(&details) {
                return Ok(details);
            }
            let pause = soon.as_mut().map_or(POLL, Backoff::delay);
            let next = async {
                tokio::select! {
                    Some(_) = heard.next() => soon = Some(Backoff::new(SOON, POLL)),
                    () = sleep(pause) => {}
                    () = closing.cancelled() => {}
                }
            };
            // Once the time is over, it reads for the last time.
            let _ = timeout_at(end, next).await;
        }
    }
}
