//! The queues, and the message that each of them holds.
//!
//! | queue | message | published by | consumed by |
//! | --- | --- | --- | --- |
//! | [`SCHEDULES`] | [`DueRequest`] | gateway, operator | requestor |
//! | [`REQUESTS`] | [`Request`] | requestor, gateway, operator | generator |
//! | [`RESPONSES`] | [`Response`] | generator | requestor |
//! | [`ACKNOWLEDGMENTS`] | [`Acknowledgment`] | requestor | generator |
//!
//! An operator does so by a command, such as `decoupled requests submit`.
//!
//! A queue is a stream that removes a message once its consumer has acked it. The messages have no message ids, because
//! all their effects are facts.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use workqueue::{Job, JobId, Priority, Queue};

use crate::strings::{Amount, InvalidStrings, Strings};

/// All queues, in the order in which a request passes through them.
pub const ALL: [Queue; 4] = [SCHEDULES, REQUESTS, RESPONSES, ACKNOWLEDGMENTS];

/// Requests for a later time, once or recurring. The gateway or an operator schedules them, and the requestor submits
/// them when they are due.
pub const SCHEDULES: Queue = Queue::new("SCHEDULES", "due")
    .consumer("requestor")
    .with_schedules("schedules")
    .without_message_ids();

/// The longest time for which a request may be scheduled ahead.
pub const LONGEST_DELAY: Duration = Duration::from_hours(30 * 24);

/// A scheduled request. When it is due, the requestor submits it under the id of this job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "DueFields", into = "DueFields")]
pub struct DueRequest {
    /// The number and the length of the strings.
    pub amount: Amount,
    /// Its priority, once it is due.
    pub priority: Priority,
    /// The instance that received it; for a recurring request, `schedule` and the name of the schedule.
    pub requestor: String,
    /// When it is due, if it does not recur.
    pub not_before: Option<Timestamp>,
    /// When it expires: from then on no generator makes its strings.
    pub expires_at: Option<Timestamp>,
    /// The instance that cancelled it while it was scheduled: it is not submitted, but counts as accepted and
    /// cancelled.
    pub cancelled_by: Option<String>,
}

impl DueRequest {
    /// A due request of normal priority without a time, as recurring requests are.
    #[must_use]
    pub fn new(amount: Amount, requestor: impl Into<String>) -> Self {
        let (priority, requestor) = (Priority::Normal, requestor.into());
        let (not_before, expires_at, cancelled_by) = (None, None, None);
        Self { amount, priority, requestor, not_before, expires_at, cancelled_by }
    }

    /// A request of the schedule of this name. Each client that sets the schedule writes the same message.
    #[must_use]
    pub fn of_schedule(name: &str, amount: Amount) -> Self {
        Self::new(amount, format!("schedule {name}"))
    }

    /// The request to submit when this is due. Its `requested_at` is the due time; for a recurring request the id
    /// has that time.
    #[must_use]
    pub fn request(self, id: JobId) -> Request {
        let Self { amount, priority, requestor, not_before, expires_at, .. } = self;
        let requested_at = not_before.unwrap_or_else(|| id.made_at());
        Request { id, amount, priority, requestor, requested_at, expires_at }
    }
}

impl Job for DueRequest {
    const QUEUE: Queue = SCHEDULES;
}

/// A due request in JSON, where the amount may be any number.
#[derive(Serialize, Deserialize)]
struct DueFields {
    count: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    priority: Priority,
    requestor: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cancelled_by: Option<String>,
}

impl TryFrom<DueFields> for DueRequest {
    type Error = InvalidStrings;

    fn try_from(fields: DueFields) -> Result<Self, InvalidStrings> {
        let DueFields { count, length, priority, requestor, not_before, expires_at, cancelled_by } =
            fields;
        let amount = Amount::new(count, length)?;
        Ok(Self { amount, priority, requestor, not_before, expires_at, cancelled_by })
    }
}

impl From<DueRequest> for DueFields {
    fn from(due: DueRequest) -> Self {
        let DueRequest { amount, priority, requestor, not_before, expires_at, cancelled_by } = due;
        let (count, length) = (amount.count(), amount.length());
        Self { count, length, priority, requestor, not_before, expires_at, cancelled_by }
    }
}

/// The queue of this name. Upper and lower case are equal.
///
/// # Errors
///
/// If there is no such queue. The message lists the queues.
pub fn named(name: &str) -> Result<Queue, UnknownQueue> {
    let found = ALL.into_iter().find(|queue| queue.stream.eq_ignore_ascii_case(name));
    found.ok_or(UnknownQueue)
}

/// There is no queue of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queues are {}, {}, {} and {}", ALL[0].stream, ALL[1].stream, ALL[2].stream, ALL[3].stream)]
pub struct UnknownQueue;

/// Requests whose strings are still to be made. The requestor, the gateway and an operator publish them, and the
/// generator consumes them.
pub const REQUESTS: Queue = Queue::new("REQUESTS", "requests")
    .consumer("generator")
    .with_priorities()
    .without_message_ids();

/// A request for random strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Request {
    /// The id of the request. Its response, acknowledgment and facts have the same id.
    pub id: JobId,
    /// The number and the length of the strings.
    pub amount: Amount,
    /// Its priority.
    pub priority: Priority,
    /// The instance that submitted the request.
    pub requestor: String,
    /// When the request was made.
    pub requested_at: Timestamp,
    /// When it expires: from then on no generator makes its strings.
    pub expires_at: Option<Timestamp>,
}

impl Request {
    /// A request of normal priority that does not expire.
    #[must_use]
    pub fn new(
        id: JobId,
        amount: Amount,
        requestor: impl Into<String>,
        requested_at: Timestamp,
    ) -> Self {
        let (priority, requestor) = (Priority::Normal, requestor.into());
        Self { id, amount, priority, requestor, requested_at, expires_at: None }
    }
}

impl Job for Request {
    const QUEUE: Queue = REQUESTS;

    fn priority(&self) -> Priority {
        self.priority
    }

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }
}

/// A request in JSON, where the amount may be any number.
#[derive(Serialize, Deserialize)]
struct Fields {
    id: JobId,
    count: u32,
    length: u32,
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    priority: Priority,
    requestor: String,
    requested_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

impl TryFrom<Fields> for Request {
    type Error = InvalidStrings;

    fn try_from(fields: Fields) -> Result<Self, InvalidStrings> {
        Ok(Self {
            id: fields.id,
            amount: Amount::new(fields.count, fields.length)?,
            priority: fields.priority,
            requestor: fields.requestor,
            requested_at: fields.requested_at,
            expires_at: fields.expires_at,
        })
    }
}

impl From<Request> for Fields {
    fn from(request: Request) -> Self {
        Self {
            id: request.id,
            count: request.amount.count(),
            length: request.amount.length(),
            priority: request.priority,
            requestor: request.requestor,
            requested_at: request.requested_at,
            expires_at: request.expires_at,
        }
    }
}

/// Responses that are still to be stored. The generator publishes them, and the requestor consumes them.
pub const RESPONSES: Queue =
    Queue::new("RESPONSES", "responses").consumer("requestor").without_message_ids();

/// The strings that a generator made for a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request that this answers.
    pub id: JobId,
    /// When that request was made.
    pub requested_at: Timestamp,
    /// The strings.
    pub values: Strings,
    /// The instance that made them.
    pub generator: String,
    /// When it started to make them: until then the request waited. Responses of older generators lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it had made them.
    pub generated_at: Timestamp,
}

impl Job for Response {
    const QUEUE: Queue = RESPONSES;

    fn id(&self) -> Option<JobId> {
        Some(self.id)
    }
}

/// Acknowledgments whose strings are still to be marked. The requestor publishes them, and the generator consumes them.
pub const ACKNOWLEDGMENTS: Queue =
    Queue::new("ACKNOWLEDGMENTS", "acknowledgments").consumer("generator").without_message_ids();

/// A requestor has stored these strings. This is the fact in the bucket `stored`, unless the request was cancelled, and
/// the message that informs the generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgment {
    /// The request that was answered.
    pub id: JobId,
    /// When that request was made.
    pub requested_at: Timestamp,
    /// The strings that were stored.
    pub values: Strings,
    /// The instance that made them.
    pub generator: String,
    /// When it started to make them, as the response says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it had made them.
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
            started_at: response.started_at,
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
