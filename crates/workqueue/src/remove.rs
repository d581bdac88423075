use std::pin::pin;

use async_nats::jetstream::ErrorCode;
use serde::Deserialize;
use serde_json::json;

use crate::api::{ApiError, call};
use crate::connection::Connection;
use crate::id::JobId;
use crate::queue::Queue;

/// Removes a job from its queue, if it is there. Returns the number of removed messages: 0 also for a job in a bundle,
/// which stays there, because its message has other jobs.
///
/// A replica that has the job in flight does not notice: it continues, and the broker stores its messages. To prevent
/// an effect, create a fact that prevents it; removing the message only saves the work. The broker may not store
/// another job under its id for [two minutes](crate::Producer::submit).
///
/// # Errors
///
/// If the broker does not answer, or refuses.
pub async fn remove(connection: &Connection, queue: Queue, id: JobId) -> Result<u64, ApiError> {
    let mut removed = 0;
    for subject in id.with_text(|key| queue.subjects_of(key)) {
        removed += purge(connection, queue, &subject).await?;
    }
    Ok(removed)
}

/// Removes all messages under this subject. Returns their number, 0 if the stream does not exist.
pub(crate) async fn purge(
    connection: &Connection,
    queue: Queue,
    subject: &str,
) -> Result<u64, ApiError> {
    #[derive(Deserialize)]
    struct Purged {
        purged: u64,
    }

    let (order, question) =
        (format!("STREAM.PURGE.{}", queue.stream), json!({ "filter": subject }));
    let purging = call(connection.context(), order, &question);
    match connection.ask(pin!(purging)).await {
        Some(Ok(Purged { purged })) => Ok(purged),
        Some(Err(ApiError::Refused(error)))
            if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
        {
            Ok(0)
        }
        Some(Err(error)) => Err(error),
        None => Err(ApiError::TimedOut),
    }
}
