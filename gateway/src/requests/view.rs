//! The JSON of requests: an accepted one, its state, and lists.

use contract::facts::Stored;
use contract::queues::Request;
use contract::{RequestState, RequestStatus, Strings};
use jiff::Timestamp;
use observe::RequestHistory;
use serde::Serialize;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};
use workqueue::dead_letters::DeadLetter;
use workqueue::{JobId, Priority};

/// An accepted request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AcceptedRequest {
    /// The id of the request.
    #[schema(value_type = RequestIdSchema)]
    pub(super) id: JobId,
    /// Its status when it was accepted. If its key was accepted earlier, its current status may be later.
    #[schema(value_type = StatusSchema)]
    pub(super) status: RequestStatus,
    /// The number of strings.
    pub(super) count: u32,
    /// The number of characters in each.
    pub(super) length: u32,
    #[schema(value_type = PrioritySchema)]
    pub(super) priority: Priority,
    /// When it was made, or when it is due.
    pub(super) requested_at: Timestamp,
    /// The time after which no worker handles it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) expires_at: Option<Timestamp>,
    /// When it is due, if that is later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) not_before: Option<Timestamp>,
}

impl AcceptedRequest {
    /// A request that is made now, or is due then.
    pub(super) fn new(request: &Request, not_before: Option<Timestamp>) -> Self {
        let Request { id, amount, priority, requested_at, expires_at, .. } = *request;
        let (count, length) = (amount.count(), amount.length());
        let requested_at = not_before.unwrap_or(requested_at);
        let status =
            if not_before.is_some() { RequestStatus::Scheduled } else { RequestStatus::Queued };
        Self { id, status, count, length, priority, requested_at, expires_at, not_before }
    }
}

/// The priority of a request. Workers handle the most urgent first.
#[derive(ToSchema)]
#[schema(as = Priority, rename_all = "lowercase", default = "normal")]
#[expect(dead_code, reason = "it only describes the type of the engine")]
pub(crate) enum PrioritySchema {
    High,
    Normal,
    Low,
}

/// A page of requests.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RequestList {
    /// The requests, the newest first.
    pub(super) requests: Vec<RequestSummary>,
    /// The cursor of the next page. Absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) next: Option<String>,
}

/// A request in a list, without its strings.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RequestSummary {
    /// The id of the request.
    #[schema(value_type = RequestIdSchema)]
    id: JobId,
    #[schema(value_type = StatusSchema)]
    status: RequestStatus,
    /// The number of strings.
    count: u32,
    /// The number of characters in each.
    length: u32,
    #[schema(value_type = PrioritySchema)]
    priority: Priority,
    /// When it was made, or, if it is `scheduled`, when it is due.
    requested_at: Timestamp,
    /// The instance that submitted it.
    requested_by: String,
}

impl RequestSummary {
    pub(super) fn new(request: Request, status: RequestStatus) -> Self {
        let Request { id, amount, priority, requestor, requested_at, .. } = request;
        let (count, length) = (amount.count(), amount.length());
        Self { id, status, count, length, priority, requested_at, requested_by: requestor }
    }
}

/// The words of the contract's [`RequestStatus`].
pub(crate) struct StatusSchema;

impl PartialSchema for StatusSchema {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "The state of a request: it is due later (`scheduled`); its strings are still to be made or stored \
                 (`queued`); they are stored (`stored`), and marked as received with the same values (`received`, the \
                 end); it was cancelled before they were stored (`cancelled`, an end, too); the values that are marked \
                 as received differ from the stored ones (`doubled`, which the guarantees exclude); or the message of \
                 its next step is a dead letter, and may be replayed (`dead-lettered`).",
            ))
            .enum_values(Some(RequestStatus::ALL.map(RequestStatus::as_str)))
            .into()
    }
}

impl ToSchema for StatusSchema {
    fn name() -> std::borrow::Cow<'static, str> {
        "RequestStatus".into()
    }
}

/// A request and its state. Steps that have not happened yet are absent.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RequestDetails {
    /// The id of the request.
    #[schema(value_type = RequestIdSchema)]
    pub(super) id: JobId,
    #[schema(value_type = StatusSchema)]
    pub(super) status: RequestStatus,
    /// The number of strings.
    count: u32,
    /// The number of characters in each.
    length: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PrioritySchema>, nullable = false)]
    priority: Option<Priority>,
    /// When it is due, if it has not been submitted yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    not_before: Option<Timestamp>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    requested_at: Option<Timestamp>,
    /// The instance that submitted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    requested_by: Option<String>,
    /// The strings, once they are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, nullable = false)]
    values: Option<Strings>,
    /// When the instance that made the strings started. Until then the request waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    started_at: Option<Timestamp>,
    /// When the strings were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    generated_at: Option<Timestamp>,
    /// The instance that made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    generated_by: Option<String>,
    /// When they were stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stored_at: Option<Timestamp>,
    /// The instance that stored them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stored_by: Option<String>,
    /// When they were marked as received.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    received_at: Option<Timestamp>,
    /// The instance that marked them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    received_by: Option<String>,
    /// The time after which no worker handles it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    expires_at: Option<Timestamp>,
    /// When it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cancelled_at: Option<Timestamp>,
    /// The instance that cancelled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    cancelled_by: Option<String>,
    /// The reason of its dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    dead_letter: Option<DeadLetterSummary>,
}

/// The reason and the circumstances of a dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterSummary {
    /// The queue that it was in.
    queue: String,
    /// The reason, for people.
    reason: String,
    /// When it became a dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    at: Option<Timestamp>,
    /// The instance that dead-lettered it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    by: Option<String>,
    /// The number of its deliveries.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    attempts: Option<u64>,
}

impl From<&DeadLetter> for DeadLetterSummary {
    fn from(letter: &DeadLetter) -> Self {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            queue: letter.stream.clone(),
            reason: some(&letter.reason).unwrap_or_else(|| "no reason given".to_owned()),
            at: letter.at.parse().ok(),
            by: some(&letter.by),
            attempts: letter.attempts,
        }
    }
}

impl RequestDetails {
    /// The body of an answer.
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("no answer can fail to become JSON")
    }

    /// The state of this request, if it was accepted. A message that was published by hand is not a request.
    pub(crate) fn new(id: JobId, history: RequestHistory) -> Option<Self> {
        let not_asked = history.not_asked();
        let state = history.state();
        let status = RequestStatus::from(state);
        let dead_letter = match state {
            RequestState::DeadLettered(letter) => Some(DeadLetterSummary::from(letter)),
            _ => None,
        };
        let RequestHistory { requested, stored, received, .. } = history;
        let (stored, cancelled) = match stored {
            Some(Stored::Strings(stored)) => (Some(stored), None),
            Some(Stored::Cancelled(cancellation)) => (None, Some(cancellation)),
            None => (None, None),
        };
        let cancelled = cancelled.map(|it| (it.cancelled_at, it.cancelled_by));
        let (cancelled_at, cancelled_by) = cancelled.unzip();
        let values = stored.as_ref().map(|stored| stored.values.clone());
        let of_request = requested.as_ref().map(|request| (request.amount, request.priority));
        let asked = of_request.or(not_asked.as_ref().map(|due| (due.amount, due.priority)));
        let (count, length) = match (asked, &values) {
            (Some((amount, _)), _) => (amount.count(), amount.length()),
            (None, Some(values)) => shape(values),
            (None, None) => return None,
        };
        let requested_at = requested.as_ref().map(|request| request.requested_at);
        let requested_at = requested_at.or(stored.as_ref().map(|stored| stored.requested_at));
        let started_at = stored.as_ref().and_then(|stored| stored.started_at);
        let (made, stored) = stored
            .map(|it| ((it.generated_at, it.generator), (it.stored_at, it.requestor)))
            .unzip();
        let (generated_at, generated_by) = made.unzip();
        let (stored_at, stored_by) = stored.unzip();
        let received = received.map(|received| (received.received_at, received.marked_by));
        let (received_at, received_by) = received.unzip();
        Some(Self {
            id,
            status,
            count,
            length,
            priority: asked.map(|(_, priority)| priority),
            expires_at: requested
                .as_ref()
                .map_or(not_asked.as_ref().and_then(|due| due.expires_at), |it| it.expires_at),
            not_before: not_asked.as_ref().and_then(|due| due.not_before),
            cancelled_at,
            cancelled_by,
            requested_at,
            requested_by: requested
                .map(|request| request.requestor)
                .or_else(|| not_asked.map(|due| due.requestor)),
            values,
            started_at,
            generated_at,
            generated_by,
            stored_at,
            stored_by,
            received_at,
            received_by,
            dead_letter,
        })
    }

    /// Whether the fact `stored` exists, with strings or a cancellation.
    pub(super) fn is_decided(&self) -> bool {
        self.values.is_some() || self.cancelled_at.is_some()
    }
}

fn shape(values: &Strings) -> (u32, u32) {
    let values = values.as_slice();
    let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    (number(values.len()), number(values.first().map_or(0, String::len)))
}

/// The id of a request, as in the contract.
pub(crate) struct RequestIdSchema;

impl PartialSchema for RequestIdSchema {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("uuid".to_owned())))
            .pattern(Some("^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"))
            .description(Some("A UUID of version 7, in lower case with hyphens"))
            .examples(["019cadd3-8896-7938-bc36-c32d4d2563a7"])
            .into()
    }
}

impl ToSchema for RequestIdSchema {
    fn name() -> std::borrow::Cow<'static, str> {
        "JobId".into()
    }
}
