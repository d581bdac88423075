//! Waits until the state of a request changes, through any replica of either service.
//!
//! For each client that waits, the gateway subscribes to the publishes that could end its request, and reads the facts
//! after each of them. Requests without a waiting client cost nothing.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use contract::RequestStatus;
use contract::facts::{RECEIVED, STORED};
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use workqueue::{Backoff, JobId, dead_letters};

use super::reader::RequestReader;
use super::view::RequestDetails;
use crate::problem::{Problem, ProblemKind};

/// The most clients that may wait, and the most that may follow a request. Most connections remain for other clients.
const PLACES: usize = 64;
const FOLLOWERS: usize = 64;

/// The interval of reads without a publish, because a subscription may be lost or not permitted.
const POLL: Duration = Duration::from_secs(2);

/// The first ceiling of the pause before another read: a publish may arrive before the fact is readable.
const SOON: Duration = Duration::from_millis(5);

/// The clients that wait, and those that follow a request.
#[derive(Debug)]
pub(crate) struct Waiters {
    places: Semaphore,
    followers: Arc<Semaphore>,
}

impl Default for Waiters {
    fn default() -> Self {
        Self { places: Semaphore::new(PLACES), followers: Arc::new(Semaphore::new(FOLLOWERS)) }
    }
}

impl Waiters {
    /// Waits until the strings of this request are stored, it is cancelled or a dead letter, `time` is over, or
    /// `closing` is cancelled. Returns its state.
    pub(crate) async fn wait(
        &self,
        reader: &RequestReader,
        id: JobId,
        time: Duration,
        closing: &CancellationToken,
    ) -> Result<RequestDetails, Problem> {
        let end = Instant::now() + time;
        let Ok(_place) = self.places.try_acquire() else {
            return Err(
                ProblemKind::Busy.because("too many clients wait at this moment; ask without wait")
            );
        };
        let mut details = reader.details(id).await?;
        let over = |details: &RequestDetails| {
            let still = matches!(details.status, RequestStatus::Queued | RequestStatus::Scheduled);
            !still || Instant::now() >= end || closing.is_cancelled()
        };
        if over(&details) {
            return Ok(details);
        }
        let mut listener = Listener::start(reader, id).await?;
        loop {
            details = reader.details(id).await?;
            if over(&details) {
                return Ok(details);
            }
            let next = async {
                tokio::select! {
                    () = listener.next() => {}
                    () = closing.cancelled() => {}
                }
            };
            // After a time-out the loop reads for the last time.
            let _ = timeout_at(end, next).await;
        }
    }

    /// A place for a client that follows a request, until it is dropped.
    pub(super) fn follow(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.followers).try_acquire_owned().map_err(|_all_taken| {
            ProblemKind::Busy
                .because("too many clients follow requests at this moment; poll instead")
        })
    }
}

/// Listens for the publishes that may change the state of one request.
#[derive(Debug)]
pub(super) struct Listener {
    heard: SelectAll<Subscriber>,
    soon: Option<Backoff>,
}

impl Listener {
    /// Returns once the broker has the subscriptions, so that no change after the next read is missed.
    pub(super) async fn start(reader: &RequestReader, id: JobId) -> Result<Self, Problem> {
        let client = reader.connection.client();
        let dead_letter = dead_letters::subject("*", &id.to_string());
        let mut heard = SelectAll::new();
        for subject in [STORED.subject(id), RECEIVED.subject(id), dead_letter] {
            let lost =
                |_| ProblemKind::BrokerAway.because("the connection to the broker has ended");
            heard.push(client.subscribe(subject).await.map_err(lost)?);
        }
        let _ = timeout(POLL, client.flush()).await;
        Ok(Self { heard, soon: None })
    }

    /// Waits until the state of the request may have changed.
    pub(super) async fn next(&mut self) {
        let pause = self.soon.as_mut().map_or(POLL, Backoff::delay);
        tokio::select! {
            Some(_) = self.heard.next() => self.soon = Some(Backoff::new(SOON, POLL)),
            () = sleep(pause) => {}
        }
    }
}
