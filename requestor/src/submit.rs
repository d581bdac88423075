//! The one way to submit a request: publish it to the queue REQUESTS and, once the broker has confirmed
//! that, create its fact in the bucket `requested`. Only then is the request accepted.

use contract::queues::Request;
use tokio_util::sync::CancellationToken;
use workqueue::{Producer, PublishError, Trace};

/// Submits a request, and tries until the broker has confirmed it. While the queue is full it waits, until
/// `stop`; then it gives up with [`PublishError::Full`], and nothing of the request is stored.
///
/// Dropping the future gives up: it is unknown then whether the request is in the queue.
///
/// # Errors
///
/// [`PublishError::Full`] after `stop`, and where trying again does not help.
pub async fn submit(
    producer: &Producer,
    request: &Request,
    trace: &Trace,
    stop: &CancellationToken,
) -> Result<(), PublishError> {
    producer.publish(request, request.id, trace, Some(stop)).await?;
    record(producer, request).await
}

/// Creates the fact that a request is accepted. Its queue has to have confirmed it before.
///
/// # Errors
///
/// Where trying again does not help.
pub async fn record(producer: &Producer, request: &Request) -> Result<(), PublishError> {
    producer.create(request, None).await.map(drop)
}
