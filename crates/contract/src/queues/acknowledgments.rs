use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use workqueue::{Job, JobId, Queue};

use super::Response;
use crate::Strings;

/// What is still to be marked as received. The requestor acknowledges, the generator marks.
pub const ACKNOWLEDGMENTS: Queue =
    Queue::new("ACKNOWLEDGMENTS", "acknowledgments").consumer("generator");

/// A requestor has stored these strings. It is the fact of the bucket `stored`, and the message
/// that tells the generator of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgment {
    /// The request that was answered.
    pub id: JobId,
    /// When that request was asked.
    pub requested_at: Timestamp,
    /// The strings that were stored.
    pub values: Strings,
    /// The instance that made them.
    pub generator: String,
    /// When it made them.
    pub generated_at: Timestamp,
    /// The instance that stored them.
    pub requestor: String,
    /// When it stored them.
    pub stored_at: Timestamp,
}

impl Acknowledgment {
    /// The acknowledgment of a response that `requestor` stores at `stored_at`.
    #[must_use]
    pub fn new(response: Response, requestor: &str, stored_at: Timestamp) -> Self {
        Self {
            id: response.id,
            requested_at: response.requested_at,
            values: response.values,
            generator: response.generator,
            generated_at: response.generated_at,
            requestor: requestor.to_owned(),
            stored_at,
        }
    }
}

impl Job for Acknowledgment {
    const QUEUE: Queue = ACKNOWLEDGMENTS;

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }
}
