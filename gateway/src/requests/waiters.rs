//! Waits until something becomes of a request, through any replica of either side.
//!
//! Each client that waits listens on the broker for the publishes that could end its request, and reads the facts
//! when it hears one. Requests that none waits for cost nothing.

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

/// How many clients may wait at a time, and how many may follow a request, which leaves most of the connections to
/// the others.
const PLACES: usize = 64;
const FOLLOWERS: usize = 64;

/// How often to read while nothing is heard: a subscription may be lost, or not be permitted.
const POLL: Duration = Duration::from_secs(2);

/// A fact may be heard of before it is readable. The first ceiling of the time before it is read again.
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
            // Once the time is over, it reads for the last time.
            let _ = timeout_at(end, next).await;
        }
    }

    /// A place for a client that follows a request, for as long as this is there.
    pub(super) fn follow(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.followers).try_acquire_owned().map_err(|_all_taken| {
            ProblemKind::Busy
                .because("too many clients follow requests at this moment; poll instead")
        })
    }
}

/// Listens for what may become of one request.
#[derive(Debug)]
pub(super) struct Listener {
    heard: SelectAll<Subscriber>,
    soon: Option<Backoff>,
}

impl Listener {
    /// The broker has the subscriptions after that. So nothing is missed that happens after the next reading.
    pub(super) async fn start(reader: &RequestReader, id: JobId) -> Result<Self, Problem> {
        let client = reader.connection.client();
        let given_up = dead_letters::subject("*", &id.to_string());
        let mut heard = SelectAll::new();
        for subject in [STORED.subject(id), RECEIVED.subject(id), given_up] {
            let lost =
                |_| ProblemKind::BrokerAway.because("the connection to the broker has ended");
            heard.push(client.subscribe(subject).await.map_err(lost)?);
        }
        let _ = timeout(POLL, client.flush()).await;
        Ok(Self { heard, soon: None })
    }

    /// Waits until something may have become of the request, and it is worth reading it again.
    pub(super) async fn next(&mut self) {
        let pause = self.soon.as_mut().map_or(POLL, Backoff::delay);
        tokio::select! {
            Some(_) = self.heard.next() => self.soon = Some(Backoff::new(SOON, POLL)),
            () = sleep(pause) => {}
        }
    }
}
