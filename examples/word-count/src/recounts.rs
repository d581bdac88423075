//! Makes a task of each recount that is due.

use workqueue::{Context, Failure, Handler, Priority};

use crate::store::Store;
use crate::{Recount, Task};

/// Forwards a due recount under the id of its firing, so that a redelivery makes no second task.
pub struct Recounts(pub Store);

impl Handler for Recounts {
    type Job = Recount;

    async fn handle(&self, Recount { task, input }: Recount, cx: &Context) -> Result<(), Failure> {
        let task = Task { id: cx.id(), task, input, priority: Priority::Normal };
        cx.publish(&task).await?;
        self.0.note(&[task]).await?;
        Ok(())
    }
}
