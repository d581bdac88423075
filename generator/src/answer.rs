//! Answers: takes a request from the queue REQUESTS, makes its strings, and publishes them to the
//! queue RESPONSES.

use std::time::Duration;

use contract::headers::Trace;
use contract::queues::{Message, Request, Response};
use tracing::debug;
use workqueue::{Handler, HandlerError, Publisher};

use crate::strings;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) responses: Publisher,
    pub(crate) instance: String,
    /// How long one string takes to make.
    pub(crate) work_time: Duration,
    /// The share of attempts that fail.
    pub(crate) failure_rate: f64,
}

impl Handler for Answer {
    type Message = Request;

    async fn handle(&self, request: Request, trace: &Trace) -> Result<(), HandlerError> {
        let work_time = self.work_time.saturating_mul(request.amount.count());
        if !work_time.is_zero() {
            tokio::time::sleep(work_time).await;
        }
        if rand::random_bool(self.failure_rate) {
            return Err(HandlerError::Transient("failed on purpose (FAILURE_RATE)".to_owned()));
        }
        let response = Response {
            id: request.id,
            requested_at: request.requested_at,
            values: strings::make(request.amount, &mut rand::rng()),
            generator: self.instance.clone(),
            generated_at: workqueue::now(),
        };
        self.responses.publish(|| response.publication(trace)).await?;
        debug!(id = %request.id, "answered");
        Ok(())
    }
}
