//! The one way to submit a request: publish it to the queue REQUESTS and, once the broker has confirmed
//! it, create its fact in the bucket `requested`. Only then is the request accepted.

use std::time::Duration;

use contract::headers::Trace;
use contract::queues::{Message, Request};
use tokio_util::sync::CancellationToken;
use workqueue::{Backoff, Facts, PublishError, Publisher, Refusal};

/// The first ceiling of the time between two tries to publish, and the highest.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Submits requests.
#[derive(Clone, Debug)]
pub struct Submitter {
    /// To the queue REQUESTS.
    pub requests: Publisher,
    /// The bucket `requested`.
    pub requested: Facts,
}

/// What came of submitting a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// It is accepted.
    Accepted,
    /// The queue is full, and nothing of the request was stored.
    NoRoom,
}

impl Submitter {
    /// Submits a request, and tries until the broker has confirmed it. While the queue is full it
    /// waits, until `stop`.
    ///
    /// Dropping the future gives up: it is unknown then whether the request is in the queue.
    ///
    /// # Errors
    ///
    /// Where trying is of no use, see [`Refusal`].
    pub async fn submit(
        &self,
        request: &Request,
        trace: &Trace,
        stop: &CancellationToken,
    ) -> Result<Submission, Refusal> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        // Whether an earlier try may have got through.
        let mut unknown = false;
        loop {
            match self.requests.try_publish(request.publication(trace)).await {
                Ok(_) => break,
                Err(PublishError::Full(_)) if !unknown => {
                    if stop.run_until_cancelled(backoff.wait()).await.is_none() {
                        return Ok(Submission::NoRoom);
                    }
                    continue;
                }
                Err(PublishError::Full(_)) => {}
                Err(PublishError::Unconfirmed(_)) => unknown = true,
                Err(PublishError::TooLarge(reason)) => return Err(Refusal::TooLarge(reason)),
                Err(PublishError::Refused(reason)) => return Err(Refusal::Refused(reason)),
                Err(error @ PublishError::Exists) => {
                    return Err(Refusal::Refused(error.to_string()));
                }
            }
            backoff.wait().await;
        }
        self.record(request).await?;
        Ok(Submission::Accepted)
    }

    /// Creates the fact that this request is accepted. Its queue has confirmed it before.
    ///
    /// # Errors
    ///
    /// As [`Submitter::submit`].
    pub async fn record(&self, request: &Request) -> Result<(), Refusal> {
        self.requested.create(request).await.map(drop)
    }
}
