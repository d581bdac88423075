//! Submits due requests: takes each from the queue SCHEDULES, and publishes it to the queue REQUESTS.

use contract::facts::{Cancellation, Stored};
use contract::queues::{DueRequest, Request};
use tracing::debug;
use workqueue::{Attempt, Context, Failure, Handler, Rejection, now};

#[derive(Debug)]
pub(crate) struct Due;

impl Handler for Due {
    type Job = DueRequest;

    fn admit(&self, due: &DueRequest, cx: &Context) -> Result<(), Rejection> {
        if due.cancelled_by.is_some() {
            // A cancelled request is not worked on, so its age does not matter.
            return Ok(());
        }
        let requested_at = due.clone().request(cx.id()).requested_at;
        contract::check_age(requested_at, cx.started_at(), cx.facts_max_age())
    }

    async fn handle(&self, mut due: DueRequest, cx: &Context) -> Result<(), Failure> {
        let cancelled_by = due.cancelled_by.take();
        let request = due.request(cx.id());
        let key = request.id.to_string();
        // An earlier attempt may have succeeded, and only its ack got lost.
        if cx.attempt() > Attempt::new(1) && cx.read::<Request>(&key).await?.is_some() {
            return Ok(());
        }
        // The process that cancelled it may have died before it created this fact.
        if let Some(cancelled_by) = cancelled_by {
            let cancellation = Cancellation { id: request.id, cancelled_by, cancelled_at: now() };
            cx.create(&Stored::Cancelled(cancellation)).await?;
        }
        // The request may be answered or cancelled already. Then an earlier attempt, or the process that cancelled
        // it, died before it recorded the request as accepted.
        if cx.read::<Stored>(&key).await?.is_some() {
            cx.create(&request).await?;
            return Ok(());
        }
        // As `producer::submit` does. While the queue is full, the due message waits.
        cx.publish(&request).await?;
        cx.create(&request).await?;
        debug!(id = %request.id, "submitted a due request");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use contract::Amount;
    use workqueue::testing::Recorder;
    use workqueue::{JobId, Priority};

    use super::*;

    fn due() -> DueRequest {
        let due = DueRequest::new(Amount::new(1, 8).unwrap(), "gateway-1");
        DueRequest { priority: Priority::High, ..due }
    }

    #[tokio::test]
    async fn due_request_is_submitted_once_and_accepted() {
        let recorder = Recorder::new();
        let id = JobId::new();
        for attempt in [1, 2, 3] {
            let cx = recorder.context_of(id, Attempt::new(attempt));
            Due.handle(due(), &cx).await.unwrap();
        }
        let request = due().request(id);
        assert_eq!(request.requested_at, id.made_at());
        let once = vec![request];
        assert_eq!(recorder.published::<Request>(), once);
        assert_eq!(recorder.created::<Request>(), once);
    }

    #[tokio::test]
    async fn cancelled_request_is_accepted_and_not_submitted() {
        // Cancelled by the fact, or only in the message, if the cancelling process died before it created the fact.
        for has_fact in [true, false] {
            let recorder = Recorder::new();
            let cx = recorder.context();
            let (id, cancelled_by) = (cx.id(), "me".to_owned());
            let mut due = due();
            if has_fact {
                let cancellation = Cancellation { id, cancelled_by, cancelled_at: now() };
                cx.create(&Stored::Cancelled(cancellation)).await.unwrap();
            } else {
                due.cancelled_by = Some(cancelled_by);
            }
            Due.handle(due, &cx).await.unwrap();
            assert_eq!(recorder.published::<Request>(), []);
            assert_eq!(recorder.created::<Request>().len(), 1);
            let stored = recorder.created::<Stored>();
            let [Stored::Cancelled(cancellation)] = &stored[..] else { panic!("{stored:?}") };
            assert_eq!(cancellation.cancelled_by, "me");
        }
    }
}
