//! Marks: takes an acknowledgment from the queue ACKNOWLEDGMENTS, and creates the fact in the bucket
//! `received`.

use contract::facts::Received;
use contract::headers::Trace;
use contract::queues::Acknowledgment;
use tracing::{debug, error};
use workqueue::{Creation, Facts, Handler, HandlerError};

#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) received: Facts,
    pub(crate) instance: String,
}

impl Handler for Mark {
    type Message = Acknowledgment;

    async fn handle(&self, stored: Acknowledgment, _: &Trace) -> Result<(), HandlerError> {
        let mark = Received {
            id: stored.id,
            values: stored.values,
            marked_by: self.instance.clone(),
            received_at: workqueue::now(),
        };
        match self.received.create(&mark).await? {
            Creation::Created => debug!(id = %mark.id, "marked as received"),
            Creation::Stands(standing) if standing.values == mark.values => {
                debug!(id = %mark.id, by = standing.marked_by, "was marked as received before");
            }
            // The mark that stands is right for what was acknowledged first, and is never changed.
            Creation::Stands(_) => {
                error!(id = %mark.id, "acknowledged twice with different strings");
            }
        }
        Ok(())
    }
}
