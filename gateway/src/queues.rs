//! The API of queues: their content, and, if `CONTROL` allows it, pause and resume.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::{get, post};
use contract::queues;
use jiff::Timestamp;
use observe::{LaneSnapshot, QueueSnapshot};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use workqueue::topology::DeclareError;
use workqueue::{Priority, Queue, chain, topology};

use crate::input::{Empty, Json, NoQuery, path, query, whole_number};
use crate::problem::{Problem, ProblemKind};
use crate::requests::json;
use crate::requests::view::PrioritySchema;
use crate::state::Gateway;

/// The routes of the queues.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/queues", get(list))
        .route("/queues/{name}", get(show))
        .route("/queues/{name}/pause", post(pause))
        .route("/queues/{name}/resume", post(resume))
}

/// The queues.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueueList {
    /// In the order in which a request passes through them.
    queues: Vec<QueueDetails>,
}

/// The content of a queue.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueueDetails {
    #[schema(value_type = QueueName)]
    name: &'static str,
    /// Messages that are not delivered yet.
    waiting: u64,
    /// Messages that were delivered and are not settled yet.
    in_flight: u64,
    /// Messages that are not due yet: later requests, and schedules.
    scheduled: u64,
    /// The most messages that it holds, if there is a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    limit: Option<u64>,
    /// Bytes that it holds.
    bytes: u64,
    /// The most bytes that it holds, if there is a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    max_bytes: Option<u64>,
    /// Whether it has no room for another message, so that its publishers wait.
    full: bool,
    /// The time of the oldest message, delivered or not. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    oldest_at: Option<Timestamp>,
    /// The end of its pause. Absent if it is not paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    paused_until: Option<Timestamp>,
    /// Its messages by priority, the most urgent first. Absent if it has no priorities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lanes: Vec<LaneDetails>,
}

/// The messages of one priority in a queue.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LaneDetails {
    #[schema(value_type = PrioritySchema)]
    priority: Priority,
    /// Messages that are not delivered yet.
    waiting: u64,
    /// Messages that were delivered and are not settled yet.
    in_flight: u64,
}

impl From<QueueSnapshot> for QueueDetails {
    fn from(queue: QueueSnapshot) -> Self {
        let lane = |lane: LaneSnapshot| {
            let LaneSnapshot { priority, waiting, in_flight } = lane;
            LaneDetails { priority, waiting, in_flight }
        };
        Self {
            name: queue.name,
            waiting: queue.waiting,
            in_flight: queue.in_flight,
            scheduled: queue.scheduled,
            limit: queue.limit,
            bytes: queue.bytes,
            max_bytes: queue.max_bytes,
            full: queue.full,
            oldest_at: queue.oldest_at,
            paused_until: queue.paused_until,
            lanes: queue.lanes.into_iter().map(lane).collect(),
        }
    }
}

/// The duration of a pause.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Pause {
    /// A time with its unit, such as 30s, 10m or 2h.
    #[serde(rename = "for", deserialize_with = "time")]
    #[schema(value_type = String, default = "1h", pattern = "^[1-9][0-9]{0,5}(ms|s|m|h)$")]
    time: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self { time: Duration::from_hours(1) }
    }
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.trim_end_matches(|sign: char| sign.is_ascii_lowercase());
    // The settings may be written in more ways.
    let time = match (whole_number(digits), &text[digits.len()..]) {
        (Some(1..=999_999), "ms" | "s" | "m" | "h") => workqueue::above_zero(&text).ok(),
        _ => None,
    };
    let help = "for: write a time above zero, such as 250ms, 30s, 10m or 2h";
    time.ok_or_else(|| serde::de::Error::custom(help))
}

/// The names of the queues.
pub(crate) struct QueueName;

impl PartialSchema for QueueName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The name of a queue. A request may have it in lower case, too"))
            .enum_values(Some(queues::ALL.map(|queue| queue.stream)))
            .into()
    }
}

impl ToSchema for QueueName {
    fn name() -> std::borrow::Cow<'static, str> {
        "QueueName".into()
    }
}

/// List the queues
///
/// In the order in which a request passes through them.
#[utoipa::path(
    get,
    path = "/queues",
    operation_id = "listQueues",
    tag = "queues",
    responses(
        (status = 200, description = "The queues", body = QueueList, example = json!({ "queues": [{
            "name": "RESPONSES", "waiting": 3, "in_flight": 1, "scheduled": 0, "limit": 100_000, "bytes": 1612, "full": false,
            "oldest_at": "2026-11-21T07:17:18.75925Z"
        }] })),
    )
)]
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let mut list = QueueList { queues: Vec::new() };
    for queue in queues::ALL {
        list.queues.push(read(&gateway, queue).await?);
    }
    Ok(json(&list))
}

/// Look up a queue
#[utoipa::path(
    get,
    path = "/queues/{name}",
    operation_id = "showQueue",
    tag = "queues",
    params(("name" = QueueName, Path, description = "The name of the queue")),
    responses(
        (status = 200, description = "The content of the queue", body = QueueDetails, example = json!({
            "name": "REQUESTS", "waiting": 53, "in_flight": 0, "scheduled": 0, "limit": 100_000, "bytes": 18_020, "full": false,
            "oldest_at": "2026-11-21T07:17:18.75925Z", "paused_until": "2026-11-21T07:27:18.75925Z",
            "lanes": [
                { "priority": "high", "waiting": 2, "in_flight": 0 },
                { "priority": "normal", "waiting": 51, "in_flight": 0 },
                { "priority": "low", "waiting": 0, "in_flight": 0 }
            ]
        })),
    )
)]
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    Ok(json(&read(&gateway, named(name)?).await?))
}

/// Pause a queue
///
/// The broker delivers no message of a paused queue, and accepts more; workers finish those in flight. The pause
/// survives a restart of the broker, and ends by itself. Another pause replaces it. Needs `CONTROL=on`.
#[utoipa::path(
    post,
    path = "/queues/{name}/pause",
    operation_id = "pauseQueue",
    tag = "queues",
    params(("name" = QueueName, Path, description = "The name of the queue")),
    request_body(content((Pause = "application/json", example = json!({ "for": "10m" })))),
    responses(
        (status = 200, description = "The queue is paused", body = QueueDetails, example = json!({
            "name": "RESPONSES", "waiting": 3, "in_flight": 0, "scheduled": 0, "limit": 100_000, "bytes": 1612, "full": false,
            "oldest_at": "2026-11-21T07:17:18.75925Z", "paused_until": "2026-11-21T07:27:18.75925Z"
        })),
    )
)]
pub(crate) async fn pause(
    State(gateway): State<Arc<Gateway>>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
    Json(Pause { time }): Json<Pause>,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let queue = named(name)?;
    let operator = &gateway.operator()?.connection;
    let Ok(until) = workqueue::now().checked_add(time) else {
        return Err(ProblemKind::Invalid.because("for is too long: there is no such date"));
    };
    let paused =
        topology::pause(operator.context(), queue, until).await.map_err(|error| problem(&error))?;
    if !paused {
        let detail =
            format_args!("the broker's clock is past {until} already: the queue is not paused");
        return Err(ProblemKind::Conflict.because(detail));
    }
    Ok(json(&read(&gateway, queue).await?))
}

/// Resume a queue
///
/// The workers continue within a second. Needs `CONTROL=on`.
#[utoipa::path(
    post,
    path = "/queues/{name}/resume",
    operation_id = "resumeQueue",
    tag = "queues",
    params(("name" = QueueName, Path, description = "The name of the queue")),
    request_body(content((Empty = "application/json", example = json!({}))), description = "An empty object"),
    responses(
        (status = 200, description = "The queue is resumed", body = QueueDetails, example = json!({
            "name": "RESPONSES", "waiting": 3, "in_flight": 0, "scheduled": 0, "limit": 100_000, "bytes": 1612, "full": false,
            "oldest_at": "2026-11-21T07:17:18.75925Z"
        })),
    )
)]
pub(crate) async fn resume(
    State(gateway): State<Arc<Gateway>>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
    Json(Empty {}): Json<Empty>,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let queue = named(name)?;
    topology::resume(gateway.operator()?.connection.context(), queue)
        .await
        .map_err(|error| problem(&error))?;
    Ok(json(&read(&gateway, queue).await?))
}

/// The queue that a path names.
fn named(name: Result<Path<String>, PathRejection>) -> Result<Queue, Problem> {
    queues::named(&path(name)?).map_err(|error| ProblemKind::NoQueue.because(error))
}

async fn read(gateway: &Gateway, queue: Queue) -> Result<QueueDetails, Problem> {
    let queue = observe::queue(gateway.connection()?, queue).await;
    queue.map(QueueDetails::from).map_err(|error| match error.downcast_ref() {
        Some(error) => problem(error),
        None => ProblemKind::BrokerAway.because(chain(&*error)),
    })
}

fn problem(error: &DeclareError) -> Problem {
    let kind = match error {
        // The queue is not declared yet, or not any more.
        DeclareError::Refused { source, .. }
            if [ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND]
                .contains(&source.error_code()) =>
        {
            ProblemKind::BrokerAway
        }
        DeclareError::Refused { .. } => ProblemKind::Refused,
        _ => ProblemKind::BrokerAway,
    };
    kind.because(chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_pause_has_the_described_form() {
        let read = |time: &str| serde_json::from_value::<Pause>(serde_json::json!({ "for": time }));
        for (text, millis) in [("250ms", 250), ("30s", 30_000), ("10m", 600_000), ("2h", 7_200_000)]
        {
            assert_eq!(read(text).unwrap().time, Duration::from_millis(millis), "{text}");
        }
        for wrong in
            ["", "10", "0s", "01s", "-1s", "1.5s", "PT10M", "1 hour", "10min", "1d", "1000000s"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
