use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use workqueue::{Job, JobId, Queue};

use crate::Strings;

/// What is still to be stored. The generator answers, the requestor stores.
pub const RESPONSES: Queue = Queue::new("RESPONSES", "responses").consumer("requestor");

/// The strings that a generator made for a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request that this answers.
    pub id: JobId,
    /// When that request was asked.
    pub requested_at: Timestamp,
    /// The strings.
    pub values: Strings,
    /// The instance that made them.
    pub generator: String,
    /// When it made them.
    pub generated_at: Timestamp,
}

impl Job for Response {
    const QUEUE: Queue = RESPONSES;

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }
}
