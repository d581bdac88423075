//! Produces requests at a given rate, and submits them, several at a time.
//!
//! The requestor and the gateway submit a request in the same way: they publish it to the queue REQUESTS and, once the
//! broker has confirmed that, create its fact in the bucket `requested`. Only then is the request accepted.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use contract::Amount;
use contract::queues::Request;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};
use workqueue::{
    Backoff, JobId, LogOnce, Priority, Producer, PublishError, Span, Trace, chain, now,
};

use crate::rate_limiter::RateLimiter;
use crate::tally::Tally;

/// The first and the highest ceiling of the pause between two tries, if the broker rejects a request.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Submits a request, and repeats that until the broker has confirmed it. While the queue is full, it waits. If the
/// queue is still full after `stop`, it gives up with [`PublishError::Full`], and nothing of the request is stored.
///
/// If the caller drops the future, it is unknown whether the request is in the queue.
///
/// # Errors
///
/// If the queue is full after `stop`, or if a retry does not help.
pub async fn submit(
    producer: &Producer,
    request: &Request,
    trace: &Trace,
    stop: &CancellationToken,
) -> Result<(), PublishError> {
    let span = Span::internal("ask", trace);
    let trace = span.trace(trace);
    producer.publish(request, request.id, &trace, Some(stop)).await?;
    record(producer, request, &trace).await
}

/// Creates the fact that a request is accepted. Call it only after the broker has confirmed the publish.
///
/// # Errors
///
/// If a retry does not help.
pub async fn record(
    producer: &Producer,
    request: &Request,
    trace: &Trace,
) -> Result<(), PublishError> {
    producer.create(request, trace, None).await.map(drop)
}

/// Submits requests for strings, at a given rate.
#[derive(Debug)]
pub(crate) struct RequestProducer {
    pub(crate) producer: Producer,
    pub(crate) instance: String,
    pub(crate) amount: Amount,
    pub(crate) priority: Priority,
    /// The most requests that may wait for the broker's confirmation at a time.
    pub(crate) concurrency: usize,
    /// Records the requests, if the requestor ends after the last of them.
    pub(crate) tally: Option<Arc<Tally>>,
    /// The logged reasons for which the broker rejected requests.
    pub(crate) rejections: Mutex<LogOnce>,
}

/// The rate limiter, and the number of requests that are left. A task holds the lock while it waits for its turn.
type Turns = tokio::sync::Mutex<(RateLimiter, u64)>;

impl RequestProducer {
    /// Submits requests until `stop`, or until there were `total`. Then it waits until the last one is accepted, or
    /// until the time for the drain is over.
    pub(crate) async fn run(
        self: Arc<Self>,
        rate_limiter: RateLimiter,
        total: Option<u64>,
        stop: CancellationToken,
        abandoned: CancellationToken,
    ) {
        let turns = Arc::new(Turns::new((rate_limiter, total.unwrap_or(u64::MAX))));
        let mut asking = JoinSet::new();
        for _ in 0..self.concurrency {
            asking.spawn(Arc::clone(&self).take_turns(Arc::clone(&turns), stop.clone()));
        }
        // A request that is given up was never accepted, so no accepted request is lost.
        let _ = abandoned.run_until_cancelled(asking.join_all()).await;
    }

    /// Submits one request at a time, each when the rate limiter allows it.
    async fn take_turns(self: Arc<Self>, turns: Arc<Turns>, stop: CancellationToken) {
        let next = async || {
            let (rate_limiter, left) = &mut *turns.lock().await;
            *left = left.checked_sub(1)?;
            rate_limiter.next().await;
            Some(())
        };
        while let Some(Some(())) = stop.run_until_cancelled(next()).await {
            self.ask(&stop).await;
        }
    }

    /// Repeats a request until it is accepted or cannot be published, or until `stop` while the queue is full.
    async fn ask(&self, stop: &CancellationToken) {
        let id = JobId::new();
        let mut request = Request::new(id, self.amount, &self.instance, now());
        request.priority = self.priority;
        if let Some(tally) = &self.tally {
            tally.asked(id);
        }
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut rejected = false;
        loop {
            match submit(&self.producer, &request, &Trace::default(), stop).await {
                Ok(()) => {
                    debug!(%id, "accepted");
                    if rejected {
                        self.rejections().forget();
                    }
                    return;
                }
                Err(PublishError::Full(_)) => {
                    debug!(%id, "not submitted: stopping, and the queue is full");
                    return;
                }
                Err(error) => {
                    let (is_permanent, error) = (error.is_permanent(), chain(&error));
                    if !self.rejections().is_first(&error) {
                        debug!(%id, error, "rejected");
                    } else if is_permanent {
                        error!(%id, error, "requests cannot be published; given up");
                    } else {
                        error!(%id, error, "the broker rejects requests; trying again");
                    }
                    rejected = true;
                    // Before a request is given up, too, because the rate `max` has no pauses of its own.
                    let waited = stop.run_until_cancelled(backoff.wait()).await;
                    if is_permanent {
                        if let Some(tally) = &self.tally {
                            tally.given_up(id, error);
                        }
                        return;
                    }
                    if waited.is_none() {
                        debug!(%id, "not submitted: stopping, and the broker rejects it");
                        return;
                    }
                    // The request was not accepted, so its age starts anew.
                    request.requested_at = now();
                }
            }
        }
    }

    fn rejections(&self) -> MutexGuard<'_, LogOnce> {
        self.rejections.lock().expect("nothing panics while it holds this lock")
    }
}
