use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use workqueue::{Job, JobId, Queue};

use crate::{Amount, InvalidStrings};

/// What is still to be generated. The requestor asks, the generator answers.
pub const REQUESTS: Queue = Queue::new("REQUESTS", "requests").consumer("generator");

/// A request for random strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Request {
    /// The id that everything about this request carries.
    pub id: JobId,
    /// How many strings, and how long.
    pub amount: Amount,
    /// The instance that asked.
    pub requestor: String,
    /// When it asked.
    pub requested_at: Timestamp,
}

impl Job for Request {
    const QUEUE: Queue = REQUESTS;

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }
}

/// A request as it stands in JSON, where the amount may be anything.
#[derive(Serialize, Deserialize)]
struct Fields {
    id: JobId,
    count: u32,
    length: u32,
    requestor: String,
    requested_at: Timestamp,
}

impl TryFrom<Fields> for Request {
    type Error = InvalidStrings;

    fn try_from(fields: Fields) -> Result<Self, InvalidStrings> {
        Ok(Self {
            id: fields.id,
            amount: Amount::new(fields.count, fields.length)?,
            requestor: fields.requestor,
            requested_at: fields.requested_at,
        })
    }
}

impl From<Request> for Fields {
    fn from(request: Request) -> Self {
        Self {
            id: request.id,
            count: request.amount.count(),
            length: request.amount.length(),
            requestor: request.requestor,
            requested_at: request.requested_at,
        }
    }
}
