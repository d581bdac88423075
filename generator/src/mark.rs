//! Marks: takes an acknowledgment from the queue ACKNOWLEDGMENTS, and creates the fact in the bucket
//! `received`.

use contract::facts::Received;
use contract::queues::Acknowledgment;
use tracing::{debug, error};
use workqueue::{Context, Creation, Failure, Handler, Rejection, now};

#[derive(Debug)]
pub(crate) struct Mark;

impl Handler for Mark {
    type Job = Acknowledgment;

    fn admit(&self, stored: &Acknowledgment, cx: &Context) -> Result<(), Rejection> {
        contract::check_age(stored.requested_at, cx.started_at(), cx.facts_max_age())
    }

    async fn handle(&self, stored: Acknowledgment, cx: &Context) -> Result<(), Failure> {
        let mark = Received {
            id: stored.id,
            values: stored.values,
            marked_by: cx.instance().to_owned(),
            received_at: now(),
        };
        match cx.create(&mark).await? {
            Creation::Created => debug!(id = %mark.id, "marked as received"),
            Creation::AlreadyExists(first) if first.values == mark.values => {
                debug!(id = %mark.id, by = first.marked_by, "was marked as received before");
            }
            // The first mark has the strings of the first acknowledgment, and never changes.
            Creation::AlreadyExists(_) => {
                error!(id = %mark.id, "acknowledged twice with different strings");
            }
        }
        Ok(())
    }
}
