use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Message, Queue};
use crate::{RequestId, Strings};

/// What is still to be stored. The generator answers, the requestor stores.
pub const RESPONSES: Queue =
    Queue { stream: "RESPONSES", root: "responses", consumer: "requestor" };

/// The strings that a generator made for a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request that this answers.
    pub id: RequestId,
    /// When that request was asked.
    pub requested_at: Timestamp,
    /// The strings.
    pub values: Strings,
    /// The instance that made them.
    pub generator: String,
    /// When it made them.
    pub generated_at: Timestamp,
}

impl Message for Response {
    const QUEUE: Queue = RESPONSES;

    fn id(&self) -> RequestId {
        self.id
    }

    fn requested_at(&self) -> Timestamp {
        self.requested_at
    }
}
