//! Stores: takes a response from the queue RESPONSES, creates the fact in the bucket `stored`, and
//! publishes an acknowledgment of what is stored to the queue ACKNOWLEDGMENTS.

use std::sync::Arc;

use contract::headers::Trace;
use contract::queues::{Acknowledgment, Message, Response};
use tracing::debug;
use workqueue::{Creation, Facts, Handler, HandlerError, Publisher};

use crate::tally::Tally;

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) stored: Facts,
    pub(crate) acknowledgments: Publisher,
    pub(crate) instance: String,
    pub(crate) tally: Option<Arc<Tally>>,
}

impl Handler for Store {
    type Message = Response;

    async fn handle(&self, response: Response, trace: &Trace) -> Result<(), HandlerError> {
        let new = Acknowledgment::new(response, &self.instance, workqueue::now());
        let stored = match self.stored.create(&new).await? {
            Creation::Created => new,
            // It was answered, or stored, twice. What is stored counts, and only that is
            // acknowledged, so that both sides have the same strings.
            Creation::Stands(stored) => stored,
        };
        debug!(id = %stored.id, by = stored.requestor, "stored");
        if let Some(tally) = &self.tally {
            tally.stored(stored.id);
        }
        self.acknowledgments.publish(|| stored.publication(trace)).await?;
        Ok(())
    }
}
