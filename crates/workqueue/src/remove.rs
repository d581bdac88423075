use serde::Deserialize;
use serde_json::json;

use crate::api::{ApiError, call};
use crate::connection::Connection;
use crate::id::JobId;
use crate::job::Queue;

/// Removes a job from its queue, if it is there. Gives the number of messages that were.
///
/// A replica that has the job in flight does not notice: it goes on, and what it publishes is stored. So what
/// must not happen any more needs a fact that excludes it; this only saves the work.
///
/// # Errors
///
/// Where the broker does not answer, or refuses.
pub async fn remove(connection: &Connection, queue: Queue, id: JobId) -> Result<u64, ApiError> {
    #[derive(Deserialize)]
    struct Purged {
        purged: u64,
    }

    let mut removed = 0;
    for subject in id.with_text(|key| queue.subjects_of(key)) {
        let purge = format!("STREAM.PURGE.{}", queue.stream);
        let question = json!({ "filter": subject });
        let Purged { purged } = call(connection.context(), purge, &question).await?;
        removed += purged;
    }
    Ok(removed)
}
