//! The API of requests: submit, list, look up, follow and cancel.

mod cursor;
pub(crate) mod events;
pub(crate) mod input;
mod list;
pub(crate) mod reader;
pub(crate) mod submit;
pub(crate) mod time;
pub(crate) mod view;
pub(crate) mod waiters;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;

use workqueue::Span;

use crate::etag;
use crate::input::{NoQuery, query};
use crate::problem::{Problem, ProblemKind};
use crate::state::Gateway;
use input::{ListQuery, Submission, WaitQuery};
use view::{AcceptedRequest, RequestDetails, RequestList};

/// The routes of the API.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/requests", post(submit_request).get(list))
        .route("/requests/{id}", get(show).delete(cancel))
        .route("/requests/{id}/events", get(follow))
}

/// An answer in JSON.
pub(crate) fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("no answer can fail to become JSON");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Ask for strings
///
/// Answers once the broker has confirmed the request, or, for a later one, its schedule.
#[utoipa::path(
    post,
    path = "/requests",
    operation_id = "ask",
    tag = "requests",
    params((
        "Idempotency-Key" = Option<String>, Header,
        description = "A name for this request: any text of 1 to 255 characters, in UTF-8. A second request with the \
                       same key and values gets the same answer, and submits nothing. Other values get a 409. The \
                       gateway remembers a key for an hour longer than the guarantees hold.",
        min_length = 1, max_length = 255, nullable = false,
    ), (
        "traceparent" = Option<String>, Header,
        description = "The trace of the client, in the format of W3C Trace Context. An invalid value is ignored.",
        nullable = false,
    ), (
        "tracestate" = Option<String>, Header,
        description = "Vendor-specific additions to `traceparent`.",
        nullable = false,
    )),
    request_body(
        content((input::NewRequest = "application/json", example = json!({ "count": 2, "length": 8 }))),
        description = "The strings to ask for, and the time: now, or after a `delay`, or at `not_before`. Missing fields have their defaults, and so has a missing body."
    ),
    responses(
        (status = 202, description = "Accepted: exactly one result will be stored", body = AcceptedRequest,
         headers(
             ("Location" = String, description = "The address of the request, relative to this one"),
             ("Retry-After" = u32, description = "The seconds after which to look it up first"),
         ),
         example = json!({
             "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "queued", "count": 2, "length": 8,
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
        let why = "this gateway is stopping";
        return Err(submit::not_stored(ProblemKind::Busy, why, new.key.is_some()));
    }
    let mut span = Span::server("POST /requests", &new.trace);
    let new = Submission { trace: span.trace(&new.trace).into_owned(), ..new };
    let submitted = submissions.submit(new).await;
    span.respond(submitted.as_ref().map_or_else(Problem::status, |_| 202));
    drop(span);
    let accepted = submitted?;
    // Relative to this path, because a proxy may serve it under another.
    let location = format!("requests/{}", accepted.id);
    let headers = [(header::LOCATION, location), (header::RETRY_AFTER, retry_after(&accepted))];
    Ok((StatusCode::ACCEPTED, headers, json(&accepted)).into_response())
}

/// The seconds after which the request may be complete: one, or one after it is due.
fn retry_after(accepted: &AcceptedRequest) -> String {
    let due = accepted.not_before.map(|at| at.duration_since(workqueue::now()).as_secs() + 1);
    due.unwrap_or_default().max(1).to_string()
}

/// List requests
///
/// Lists the requests of all requestors and gateways, the newest first. If a page has a `next`, get the next page with
/// it as `cursor`, and with the same filter. Pages are stable: requests that are accepted meanwhile come before the
/// first page. A page reads at most 5,000 requests, so with a rare status it may have fewer than `limit`, or none, and
/// a `next`. Before it is due, a scheduled request is only in the list with `status=scheduled`.
#[utoipa::path(
    get,
    path = "/requests",
    operation_id = "list",
    tag = "requests",
    params((
        "status" = inline(Option<view::StatusSchema>), Query, description = "Only requests with this status",
        nullable = false,
    ), (
        "priority" = inline(Option<view::PrioritySchema>), Query, description = "Only requests of this priority",
        nullable = false,
    ), (
        "requested_by" = Option<String>, Query,
        description = "Only requests by an instance whose name contains this text", nullable = false,
    ), (
        "cursor" = Option<String>, Query, description = "The position to continue from: the `next` of the previous page",
        nullable = false,
    ), (
        "limit" = Option<u32>, Query, description = "The length of a page, 50 by default",
        minimum = 1, maximum = 1000, nullable = false,
    )),
    responses(
        (status = 200, description = "A page of requests, without their strings", body = RequestList,
         example = json!({ "requests": [{
             "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "queued", "count": 2, "length": 8,
             "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1"
         }], "next": "eyJzdGF0dXMiOm51bGwsInByaW9yaXR5IjpudWxsLCJzdG9yZSI6IjIwMjYtMTEtMjFUMDc6MTc6MTZaIiwiYmVmb3JlIjo0MX0" })),
    )
)]
pub(crate) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let list: ListQuery = query(&uri)?;
    let (filter, cursor) = (list.filter(), list.cursor.as_deref());
    Ok(json(&gateway.reader()?.list(&filter, cursor, list.limit).await?))
}

/// Look up a request
///
/// With `wait`, answers as soon as the strings are stored, or the request is cancelled or a dead letter, or else after
/// that time, with the current state. 64 clients can wait at a time; further ones get a 503. With the `ETag` of an
/// earlier answer in `If-None-Match`, the answer is 304 if the state is still the same.
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
    ), (
        "If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer", nullable = false,
    )),
    responses(
        (status = 304, description = "Nothing has changed since the answer with this `ETag`",
         headers(("ETag" = String, description = "The tag of that answer"))),
        (status = 200, description = "The state of the request", body = RequestDetails,
         headers(("ETag" = String, description = "The tag of this answer")), examples(
            ("scheduled" = (summary = "It is not due yet", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "scheduled", "count": 2, "length": 8,
                "priority": "normal", "not_before": "2026-11-22T03:30:00Z", "requested_by": "gateway-1"
            }))),
            ("queued" = (summary = "It waits for a generator", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "queued", "count": 2, "length": 8,
                "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1"
            }))),
            ("received" = (summary = "It is complete", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "received", "count": 2, "length": 8,
                "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1",
                "values": ["3iqwfwAB", "wmXu6nh8"],
                "started_at": "2026-11-21T07:17:18.75991Z",
                "generated_at": "2026-11-21T07:17:18.76012Z", "generated_by": "generator-2",
                "stored_at": "2026-11-21T07:17:18.76101Z", "stored_by": "requestor-1",
                "received_at": "2026-11-21T07:17:18.76188Z", "received_by": "generator-1"
            }))),
            ("cancelled" = (summary = "It was cancelled", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "cancelled", "count": 2, "length": 8,
                "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1",
                "cancelled_at": "2026-11-21T07:17:20.10417Z", "cancelled_by": "gateway-1"
            }))),
            ("dead-lettered" = (summary = "A message of it is a dead letter", value = json!({
                "id": "019cadd3-8896-7938-bc36-c32d4d2563a7", "status": "dead-lettered", "count": 2,
                "length": 8, "priority": "normal", "requested_at": "2026-11-21T07:17:18.75925Z", "requested_by": "gateway-1",
                "dead_letter": {
                    "queue": "REQUESTS", "reason": "failed: the disk is full (attempt 10)",
                    "at": "2026-11-21T07:19:02.10417Z", "by": "generator-2", "attempts": 10
                }
            }))),
        )),
    )
)]
pub(crate) async fn show(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let WaitQuery { wait } = query(&uri)?;
    let id = input::id(&uri)?;
    let reader = gateway.reader()?;
    let details = match wait {
        None => reader.details(id).await?,
        Some(time) => gateway.waiters.wait(reader, id, time, &gateway.stop).await?,
    };
    Ok(etag::answer(&headers, "application/json", details.json()))
}

/// Follow a request
///
/// Streams server-sent events, for an `EventSource`. Each event is the state of the request, in the JSON of `GET
/// /requests/{id}`: first the current state, unless the client has it, then each change. The stream ends when the
/// request is received, cancelled, dead-lettered or doubled. A client that reconnects sends the id of its last event in
/// `Last-Event-ID`, and gets a 204 if that was the end. Comments keep the connection open.
#[utoipa::path(
    get,
    path = "/requests/{id}/events",
    operation_id = "follow",
    tag = "requests",
    params((
        "id" = view::RequestIdSchema, Path, description = "The id of the request"
    ), (
        "Last-Event-ID" = Option<String>, Header, description = "The id of the last event that the client has got",
        nullable = false,
    )),
    responses(
        (status = 200, description = "The states of the request, one after another",
         body = events::RequestEvent, content_type = "text/event-stream",
         example = json!({
             "id": "5f0c1d3e8a92b7f4", "retry": 1000,
             "data": "{\"id\":\"019cadd3-8896-7938-bc36-c32d4d2563a7\",\"status\":\"queued\",\"count\":2,\"length\":8}"
         })),
        (status = 204, description = "The request has ended, and the client has got its last event"),
    )
)]
pub(crate) async fn follow(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let NoQuery {} = query(&uri)?;
    let id = input::id(&uri)?;
    let seen = headers.get(events::LAST_EVENT_ID).and_then(|seen| seen.to_str().ok());
    events::follow(gateway, id, seen.map(str::to_owned)).await
}

/// Cancel a request
///
/// Cancels the request, unless its strings are stored. The answer is the resulting state: `cancelled`, or `stored` or
/// `received` if the strings came first. A repetition gets the same answer.
#[utoipa::path(
    delete,
    path = "/requests/{id}",
    operation_id = "cancel",
    tag = "requests",
    params(("id" = view::RequestIdSchema, Path, description = "The id of the request")),
    responses(
        (status = 200, description = "The resulting state", body = RequestDetails, example = json!({
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
    let not_asked = history.not_asked();
    let before = reader::found(id, history)?;
    if before.is_decided() {
        return Ok(json(&before));
    }
    let Some(submissions) = gateway.submissions.get() else { return Err(submit::away()) };
    submissions.cancel(id, not_asked).await?;
    Ok(json(&reader.details(id).await?))
}
