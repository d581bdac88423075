//! Makes a task of each recount that is due.

use workqueue::{Context, Failure, Handler, Priority, RetryPolicy};

use crate::store::Store;
use crate::{Recount, Task};

/// Forwards a due recount under the id of its firing. A redelivery may make the same task again; its second result is
/// ignored.
pub struct Recounts(pub Store);

impl Handler for Recounts {
    type Job = Recount;

    fn retry_policy(&self) -> RetryPolicy {
        // As for the results: see `Store`.
        RetryPolicy { max_attempts: Some(1_000), ..RetryPolicy::default() }
    }

    async fn handle(&self, Recount { task, input }: Recount, cx: &Context) -> Result<(), Failure> {
        let task = Task { id: cx.id(), task, input, priority: Priority::Normal };
        cx.publish(&task).await?;
        self.0.note(&[task]).await?;
        Ok(())
    }
}
