//! Stores: takes a response from the queue RESPONSES, creates the fact in the bucket `stored`, and
//! publishes an acknowledgment of the stored strings to the queue ACKNOWLEDGMENTS. For a cancelled request it
//! stores nothing.

use std::sync::Arc;

use contract::facts::Stored;
use contract::queues::{Acknowledgment, Response};
use tracing::debug;
use workqueue::{Context, Creation, Failure, Handler, Rejection, now};

use crate::tally::Tally;

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) tally: Option<Arc<Tally>>,
}

impl Handler for Store {
    type Job = Response;

    fn admit(&self, response: &Response, cx: &Context) -> Result<(), Rejection> {
        contract::check_age(response.requested_at, cx.started_at(), cx.facts_max_age())
    }

    async fn handle(&self, response: Response, cx: &Context) -> Result<(), Failure> {
        let new = Stored::Strings(Acknowledgment::new(response, cx.instance(), now()));
        let stored = match cx.create(&new).await? {
            Creation::Created => new,
            // There was a second response, or a redelivery. The first fact wins, and only its strings are
            // acknowledged, so both services have the same strings.
            Creation::AlreadyExists(stored) => stored,
        };
        let stored = match stored {
            Stored::Strings(stored) => stored,
            Stored::Cancelled(cancellation) => {
                debug!(id = %cx.id(), by = cancellation.cancelled_by, "was cancelled");
                return Ok(());
            }
        };
        debug!(id = %stored.id, by = stored.requestor, "stored");
        if let Some(tally) = &self.tally {
            tally.stored(stored.id);
        }
        cx.publish(&stored).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use contract::Strings;
    use contract::facts::Cancellation;
    use workqueue::JobId;
    use workqueue::testing::Recorder;

    use super::*;

    fn response(id: JobId, value: &str) -> Response {
        let values = Strings::try_from(vec![value.to_owned()]).unwrap();
        let (generator, at) = ("generator-1".to_owned(), now());
        let started_at = Some(at);
        Response { id, requested_at: at, values, generator, started_at, generated_at: at }
    }

    #[tokio::test]
    async fn second_response_acknowledges_the_strings_of_the_first() {
        let recorder = Recorder::new();
        let (store, id) = (Store { tally: None }, JobId::new());
        let first = Acknowledgment::new(response(id, "first"), "requestor-1", now());
        recorder.context().create(&Stored::Strings(first.clone())).await.unwrap();
        store.handle(response(id, "second"), &recorder.context()).await.unwrap();
        assert_eq!(recorder.published::<Acknowledgment>(), [first]);
    }

    #[tokio::test]
    async fn response_to_a_cancelled_request_is_not_acknowledged() {
        let recorder = Recorder::new();
        let (store, id) = (Store { tally: None }, JobId::new());
        let cancelled = Cancellation { id, cancelled_by: "me".to_owned(), cancelled_at: now() };
        let cancelled = Stored::Cancelled(cancelled);
        recorder.context().create(&cancelled).await.unwrap();
        store.handle(response(id, "late"), &recorder.context()).await.unwrap();
        assert_eq!(recorder.published::<Acknowledgment>(), []);
        let stored: Option<Stored> = recorder.context().read(&id.to_string()).await.unwrap();
        assert_eq!(stored, Some(cancelled));
    }
}
