//! The API: asking for strings, and how far each request has come.

pub(crate) mod input;
pub(crate) mod reader;
pub(crate) mod submit;
pub(crate) mod time;
pub(crate) mod view;
pub(crate) mod waiters;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;

use crate::problem::{Problem, ProblemKind, SubmitOutcome};
use crate::state::Gateway;
use input::{ListQuery, NoQuery, Submission, WaitQuery, query};
use view::{AcceptedRequest, RequestDetails, RequestList};

/// The routes of the API.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/requests", post(submit_request).get(list))
        .route("/requests/{id}", get(show).delete(cancel))
}

/// An answer in JSON.
pub(crate) fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("no answer can fail to become JSON");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Ask for strings
///
/// Answers once the broker has confirmed that the request is in its queue, or that it is kept until it is due.
#[utoipa::path(
    post,
    path = "/requests",
    operation_id = "ask",
    tag = "requests",
    params((
        "Idempotency-Key" = Option<String>, Header,
        description = "The name that you give this request: any text of 1 to 255 characters, in UTF-8. The same key \
                       again gives the same answer, and asks for nothing more. Bodies are the same that \
                       mean the same request. A key is remembered for an hour longer than \
                       the guarantees hold.",
        min_length = 1, max_length = 255, nullable = false,
    ), (
        "traceparent" = Option<String>, Header,
        description = "The trace that this belongs to, as W3C Trace Context has it. It is carried on; \
                       what is not valid is passed over.",
        nullable = false,
    ), (
        "tracestate" = Option<String>, Header,
        description = "What tracing systems add to `traceparent`.",
        nullable = false,
    )),
    request_body(
        content((input::NewRequest = "application/json", example = json!({ "count": 2, "length": 8 }))),
        description = "The strings to ask for, and when: at once, unless there is a `delay` or a time (`not_before`). The defaults apply without a body, and to the fields that it leaves out."
    ),
    responses(
        (status = 202, description = "Accepted: exactly one result will be stored", body = AcceptedRequest,
         headers(("Location" = String, description = "The address of the request, relative to this one")),
         example = json!({
             "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "count": 2, "length": 8,
             "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z"
         })),
    )
)]
pub(crate) async fn submit_request(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let new = Submission::read(request).await?;
    let Some(submissions) = gateway.submissions.get() else { return Err(submit::away()) };
    if gateway.stop.is_cancelled() {
        let detail = "this gateway is stopping; nothing of this try remains";
        return Err(ProblemKind::Busy.because(detail).with(SubmitOutcome::NotAsked));
    }
    let accepted = submissions.submit(new).await?;
    // Relative to this path, because a proxy may serve it under another.
    let location = [(header::LOCATION, format!("requests/{}", accepted.id))];
    Ok((StatusCode::ACCEPTED, location, json(&accepted)).into_response())
}

/// List the newest requests
///
/// The one that was accepted last comes first. Those that another requestor has accepted are there, too.
#[utoipa::path(
    get,
    path = "/requests",
    operation_id = "list",
    tag = "requests",
    params((
        "limit" = Option<u32>, Query, description = "How many, 50 unless it is said",
        minimum = 1, maximum = 1000, nullable = false,
    )),
    responses(
        (status = 200, description = "The newest requests, without their strings", body = RequestList,
         example = json!({ "requests": [{
             "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "queued", "count": 2, "length": 8,
             "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1"
         }] })),
    )
)]
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let ListQuery { limit } = query(&uri)?;
    let requests = gateway.reader()?.newest(limit).await?;
    Ok(json(&RequestList { requests }))
}

/// Look up a request
///
/// With `wait`, answers as soon as the strings are stored or the request is given up, or else after that
/// time, with the state as it is then.
#[utoipa::path(
    get,
    path = "/requests/{id}",
    operation_id = "status",
    tag = "requests",
    params((
        "id" = view::RequestIdSchema, Path, description = "The id of the request"
    ), (
        "wait" = Option<String>, Query,
        description = "How long to wait for the strings: a time from `0s` to `60s`, or in `ms`",
        pattern = "^((0|[1-9]|[1-5][0-9]|60)s|(0|[1-9][0-9]{0,3}|[1-5][0-9]{4}|60000)ms)$",
        nullable = false, example = "10s",
    )),
    responses(
        (status = 200, description = "How far it has come", body = RequestDetails, examples(
            ("scheduled" = (summary = "It is to be made later", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "scheduled", "count": 2, "length": 8,
                "priority": "normal", "not_before": "2026-11-22T03:30:00Z"
            }))),
            ("queued" = (summary = "It waits for a generator", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "queued", "count": 2, "length": 8,
                "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1"
            }))),
            ("received" = (summary = "It has come to its end", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "received", "count": 2, "length": 8,
                "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1",
                "values": ["3iqwfwAB", "wmXu6nh8"],
                "generated_at": "2026-11-21T07:17:18.76012Z", "generated_by": "generator-2",
                "stored_at": "2026-11-21T07:17:18.76101Z", "stored_by": "requestor-1",
                "received_at": "2026-11-21T07:17:18.76188Z", "received_by": "generator-1"
            }))),
            ("cancelled" = (summary = "It was cancelled", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "cancelled", "count": 2, "length": 8,
                "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1",
                "cancelled_at": "2026-11-21T07:17:20.10417Z", "cancelled_by": "gateway-1"
            }))),
            ("dead-lettered" = (summary = "It was given up", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "dead-lettered", "count": 2,
                "length": 8, "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1",
                "dead_letter": {
                    "queue": "REQUESTS", "reason": "exhausted: failed at each of 10 attempts",
                    "at": "2026-11-21T07:19:02.10417Z", "by": "generator-2", "attempts": 10
                }
            }))),
        )),
    )
)]
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let WaitQuery { wait } = query(&uri)?;
    let id = input::id(&uri)?;
    let reader = gateway.reader()?;
    let details = match wait {
        None => reader.details(id).await?,
        Some(time) => gateway.waiters.wait(reader, id, time, &gateway.stop).await?,
    };
    Ok(json(&details))
}

/// Cancel a request
///
/// Unless its strings are stored, they never will be. The answer says what is true from now on: `cancelled`, or
/// what came first. Asking again gives the same answer.
#[utoipa::path(
    delete,
    path = "/requests/{id}",
    operation_id = "cancel",
    tag = "requests",
    params(("id" = view::RequestIdSchema, Path, description = "The id of the request")),
    responses(
        (status = 200, description = "What is true from now on", body = RequestDetails, example = json!({
            "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "cancelled", "count": 2, "length": 8,
            "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1",
            "cancelled_at": "2026-11-21T07:17:20.10417Z", "cancelled_by": "gateway-1"
        })),
    )
)]
pub(crate) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let id = input::id(&uri)?;
    let reader = gateway.reader()?;
    let history = reader.history(id).await?;
    let scheduled = history.scheduled.clone().map(|later| later.job);
    let before = reader::found(id, history)?;
    if before.is_decided() {
        return Ok(json(&before));
    }
    let Some(submissions) = gateway.submissions.get() else { return Err(submit::away()) };
    submissions.cancel(id, scheduled).await?;
    Ok(json(&reader.details(id).await?))
}
