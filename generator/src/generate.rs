//! Generates: takes a request from the queue REQUESTS, makes its strings, and publishes them to the
//! queue RESPONSES.

use std::time::Duration;

use contract::queues::{Request, Response};
use tracing::debug;
use workqueue::{Context, Failure, Handler, Rejection, now};

use crate::strings;

#[derive(Debug)]
pub(crate) struct Generate {
    /// How long one string takes to make.
    pub(crate) work_time: Duration,
    /// The share of attempts that fail.
    pub(crate) failure_rate: f64,
}

impl Handler for Generate {
    type Job = Request;

    fn admit(&self, request: &Request, cx: &Context) -> Result<(), Rejection> {
        contract::check_age(request.requested_at, cx.started_at(), cx.facts_max_age())?;
        contract::check_expiry(request.expires_at, cx.started_at())
    }

    async fn handle(&self, request: Request, cx: &Context) -> Result<(), Failure> {
        let work_time = self.work_time.saturating_mul(request.amount.count());
        if !work_time.is_zero() {
            tokio::time::sleep(work_time).await;
        }
        if rand::random_bool(self.failure_rate) {
            return Err(Failure::retry("failed on purpose (FAILURE_RATE)"));
        }
        let response = Response {
            id: request.id,
            requested_at: request.requested_at,
            values: strings::make(request.amount, &mut rand::rng()),
            generator: cx.instance().to_owned(),
            started_at: Some(cx.started_at()),
            generated_at: now(),
        };
        cx.publish(&response).await?;
        debug!(id = %request.id, "generated");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use contract::Amount;
    use workqueue::JobId;
    use workqueue::testing::Recorder;

    use super::*;

    fn request() -> Request {
        Request::new(JobId::new(), Amount::new(3, 5).unwrap(), "requestor-1", now())
    }

    #[tokio::test]
    async fn response_has_as_many_strings_as_requested() {
        let recorder = Recorder::new();
        let generate = Generate { work_time: Duration::ZERO, failure_rate: 0.0 };
        let request = request();
        generate.handle(request.clone(), &recorder.context()).await.unwrap();
        let [response] = &recorder.published::<Response>()[..] else { panic!("one response") };
        assert_eq!((response.id, response.requested_at), (request.id, request.requested_at));
        assert_eq!(response.values.as_slice().len(), 3);
    }

    #[tokio::test]
    async fn failing_attempt_publishes_nothing() {
        let recorder = Recorder::new();
        let generate = Generate { work_time: Duration::ZERO, failure_rate: 1.0 };
        let failed = generate.handle(request(), &recorder.context()).await;
        assert!(matches!(failed, Err(Failure::Retry(_))), "{failed:?}");
        assert_eq!(recorder.published::<Response>(), []);
    }
}
