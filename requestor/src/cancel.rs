//! Cancels requests.

use contract::facts::{Cancellation, Stored};
use contract::queues::{REQUESTS, SCHEDULES};
use tracing::{debug, warn};
use workqueue::{Connection, Creation, JobId, Producer, PublishError, now, remove};

/// Cancels a request, unless its strings are stored. Gives what is true from now on: this cancellation, or what
/// came before it.
///
/// Repeating it is safe. Where it was cancelled before, that cancellation stands.
///
/// # Errors
///
/// Where the broker does not take the fact; then it is not cancelled, as far as is known.
pub async fn cancel(
    producer: &Producer,
    connection: &Connection,
    id: JobId,
    by: &str,
) -> Result<Stored, PublishError> {
    let cancelled_by = by.to_owned();
    let new = Stored::Cancelled(Cancellation { id, cancelled_by, cancelled_at: now() });
    let stored = match producer.create(&new, None).await? {
        Creation::Created => new,
        Creation::AlreadyExists(earlier) => earlier,
    };
    if matches!(stored, Stored::Cancelled(_)) {
        // It saves the work, and no more: what is made all the same is not stored.
        for queue in [SCHEDULES, REQUESTS] {
            match remove(connection, queue, id).await {
                Ok(removed) => debug!(%id, queue = queue.stream, removed, "cancelled"),
                Err(error) => warn!(%id, %error, "cancelled, but it may still be worked on"),
            }
        }
    }
    Ok(stored)
}
