//! Generates: takes a request from the queue REQUESTS, makes its strings, and publishes them to the
//! queue RESPONSES.

use std::time::Duration;

use contract::Strings;
use contract::queues::{Request, Response};
use tracing::debug;
use workqueue::{Context, Failure, Handler, Rejection, now};

use crate::settings::GeneratorSettings;
use crate::strings;

/// The handler of requests.
#[derive(Clone, Debug)]
pub struct Generate {
    /// How long one string takes to make.
    work_time: Duration,
    /// The share of attempts that fail.
    failure_rate: f64,
}

impl Generate {
    /// A handler with the work time and the failure rate of these settings.
    #[must_use]
    pub fn new(settings: &GeneratorSettings) -> Self {
        let &GeneratorSettings { work_time, failure_rate, .. } = settings;
        Self { work_time, failure_rate }
    }

    /// Publishes the response to a request, with these strings, after the work time.
    ///
    /// # Errors
    ///
    /// If the response cannot be published, and for a share of the attempts, the failure rate.
    pub async fn respond(
        &self,
        request: Request,
        values: Strings,
        cx: &Context,
    ) -> Result<(), Failure> {
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
            values,
            generator: cx.instance().to_owned(),
            started_at: Some(cx.started_at()),
            generated_at: now(),
        };
        cx.publish(&response).await?;
        debug!(id = %request.id, "generated");
        Ok(())
    }
}

impl Handler for Generate {
    type Job = Request;

    fn admit(&self, request: &Request, cx: &Context) -> Result<(), Rejection> {
        contract::check_age(request.requested_at, cx.started_at(), cx.facts_max_age())?;
        contract::check_expiry(request.expires_at, cx.started_at())
    }

    async fn handle(&self, request: Request, cx: &Context) -> Result<(), Failure> {
        let strings = strings::make(request.amount, &mut rand::rng());
        self.respond(request, strings, cx).await
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
