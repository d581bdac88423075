//! Stores: takes a response from the queue RESPONSES, creates the fact in the bucket `stored`, and
//! publishes an acknowledgment of what is stored to the queue ACKNOWLEDGMENTS.

use std::sync::Arc;

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
        contract::check_age(response.requested_at, now(), cx.facts_max_age())
    }

    async fn handle(&self, response: Response, cx: &Context) -> Result<(), Failure> {
        let new = Acknowledgment::new(response, cx.instance(), now());
        let stored = match cx.create(&new).await? {
            Creation::Created => new,
            // The request was answered, or its response stored, twice. The first fact counts, and only
            // that is acknowledged: both sides have the same strings.
            Creation::AlreadyExists(stored) => stored,
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
    use workqueue::JobId;
    use workqueue::testing::Recorder;

    use super::*;

    fn response(id: JobId, value: &str) -> Response {
        let values = Strings::try_from(vec![value.to_owned()]).unwrap();
        let (generator, at) = ("generator-1".to_owned(), now());
        Response { id, requested_at: at, values, generator, generated_at: at }
    }

    #[tokio::test]
    async fn second_response_acknowledges_the_strings_of_the_first() {
        let recorder = Recorder::new();
        let (store, id) = (Store { tally: None }, JobId::new());
        let first = Acknowledgment::new(response(id, "first"), "requestor-1", now());
        recorder.context().create(&first).await.unwrap();
        store.handle(response(id, "second"), &recorder.context()).await.unwrap();
        assert_eq!(recorder.published::<Acknowledgment>(), [first]);
    }
}
