//! The routes of the API, and what holds for all of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use contract::{RequestId, queues};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::input::{Asking, Query};
use super::list::List;
use super::metrics::Asked;
use super::problem::{Kind, Outcome, Problem};
use super::status::State;
use super::{Api, ask as asking, guard, http, openapi as description};

const REQUESTS: &str = "/requests";
const REQUEST: &str = "/requests/{id}";
const OPENAPI: &str = "/openapi.json";

/// All routes.
pub(super) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route(REQUESTS, post(ask).get(list))
        .route(REQUEST, get(status))
        .route(OPENAPI, get(openapi))
        .fallback(async || Kind::NoRoute.because("the routes are in /openapi.json"))
        .method_not_allowed_fallback(async || {
            Kind::Method.because("the methods of this route are in Allow")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&api), each))
        .with_state(api)
}

/// What is done with each request, whatever it asks for.
async fn each(
    Shared(api): Shared<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, Infallible> {
    let begun = Instant::now();
    let _in_flight = api.metrics.begun();
    let route = match request.uri().path() {
        REQUESTS => REQUESTS,
        OPENAPI => OPENAPI,
        path if path.strip_prefix("/requests/").is_some_and(|id| !id.contains('/')) => REQUEST,
        _ => "none",
    };
    let asked = Asked::new(request.method(), route);
    let checked = http::check(&request)
        .and_then(|host| guard::check(&api.addr, &api.hosts, host.as_ref(), request.headers()));
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    // What is shown changes by itself, and is nobody's but theirs who asked.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    api.metrics.answered(&asked, response.status(), begun.elapsed());
    Ok(response)
}

/// What was accepted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AcceptedRequest)]
pub(crate) struct Accepted {
    /// The id of the request.
    #[schema(value_type = super::openapi::Id)]
    id: RequestId,
    /// How many strings were asked for.
    count: u32,
    /// How many characters each of them is to have.
    length: u32,
    /// When it was asked for, first.
    requested_at: Timestamp,
}

fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("no answer can fail to become JSON");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Ask for strings
///
/// Answers once the broker has confirmed that the request is in its queue.
#[utoipa::path(
    post,
    path = "/requests",
    operation_id = "ask",
    tag = "requests",
    params((
        "Idempotency-Key" = Option<String>, Header,
        description = "What you call this request: any text of 1 to 255 characters, in UTF-8. The same key \
                       again gives the same answer, and asks for nothing more. Bodies are the same that \
                       mean the same `count` and `length`. A key is remembered for an hour longer than \
                       the promises hold.",
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
        content = super::input::NewRequest, content_type = "application/json",
        description = "What to ask for. Without a body, and for what it leaves out, the defaults count."
    ),
    responses(
        (status = 202, description = "Accepted: exactly one result will be stored", body = Accepted,
         headers(("Location" = String, description = "Where to look what became of it"))),
        (status = 400, description = "The body, the key or the query makes no sense", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "A page of another site asks", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The key stands for another request, or for one that is too old", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than 4096 bytes", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not application/json in UTF-8, or it is compressed", body = Problem, content_type = "application/problem+json"),
        (status = 417, description = "Something else than 100-continue is expected", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "The broker refuses it", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "The transfer coding is not chunked", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The queue is full, the broker away, or too much in hand. `outcome` says \
         whether the request may be carried out all the same", body = Problem, content_type = "application/problem+json",
         headers(("Retry-After" = u32, description = "When to come back, in seconds"))),
    )
)]
pub(super) async fn ask(
    Shared(api): Shared<Arc<Api>>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let asking = Asking::read(&parts, body).await?;
    let Some(broker) = api.broker.get() else { return Err(asking::away()) };
    if api.closing.is_cancelled() {
        let detail = "this requestor is stopping; nothing of this try remains";
        return Err(Kind::Busy.because(detail).with(Outcome::NotAsked));
    }
    let queues::Request { id, amount, requested_at, .. } = broker.asker.ask(asking).await?;
    let accepted = Accepted { id, count: amount.count(), length: amount.length(), requested_at };
    let location = [(header::LOCATION, format!("{REQUESTS}/{id}"))];
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
        (status = 200, description = "The newest requests, without their strings", body = List),
        (status = 400, description = "The query makes no sense", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "A page of another site asks", body = Problem, content_type = "application/problem+json"),
        (status = 417, description = "Something else than 100-continue is expected", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "The facts cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "The transfer coding is not chunked", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The broker is away", body = Problem, content_type = "application/problem+json",
         headers(("Retry-After" = u32, description = "When to come back, in seconds"))),
    )
)]
pub(super) async fn list(Shared(api): Shared<Arc<Api>>, uri: Uri) -> Result<Response, Problem> {
    let limit = Query::read(&uri, &["limit"])?.limit()?;
    let list: List = api.reader()?.list(limit).await?;
    Ok(json(&list))
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
        "id" = super::openapi::Id, Path, description = "The id of the request"
    ), (
        "wait" = Option<String>, Query,
        description = "How long to wait for the strings: a time from `0s` to `60s`, or in `ms`",
        pattern = "^((0|[1-9]|[1-5][0-9]|60)s|(0|[1-9][0-9]{0,3}|[1-5][0-9]{4}|60000)ms)$",
        nullable = false, example = "10s",
    )),
    responses(
        (status = 200, description = "How far it has come", body = State),
        (status = 400, description = "The id or the query makes no sense", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "A page of another site asks", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nobody asked for this id, or it is forgotten", body = Problem, content_type = "application/problem+json"),
        (status = 417, description = "Something else than 100-continue is expected", body = Problem, content_type = "application/problem+json"),
        (status = 500, description = "The facts cannot be read", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "The transfer coding is not chunked", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The broker is away, or too many wait", body = Problem, content_type = "application/problem+json",
         headers(("Retry-After" = u32, description = "When to come back, in seconds"))),
    )
)]
pub(super) async fn status(Shared(api): Shared<Arc<Api>>, uri: Uri) -> Result<Response, Problem> {
    let wait = Query::read(&uri, &["wait"])?.wait()?;
    // The path as it came: an id has one spelling, and needs no escapes.
    let id = uri.path().strip_prefix("/requests/").unwrap_or_default();
    let id = id.parse().map_err(|error| Kind::Invalid.because(error))?;
    let reader = api.reader()?;
    let state: State = match wait {
        None => reader.state(id).await?,
        Some(time) => reader.wait(id, time, &api.waiting, &api.closing).await?,
    };
    Ok(json(&state))
}

/// This description
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "description",
    responses(
        (status = 200, description = "The description of this API, in OpenAPI 3.1", body = serde_json::Value),
        (status = 400, description = "There is no query here", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "A page of another site asks", body = Problem, content_type = "application/problem+json"),
        (status = 417, description = "Something else than 100-continue is expected", body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "The transfer coding is not chunked", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn openapi(uri: Uri) -> Result<Response, Problem> {
    Query::read(&uri, &[])?;
    Ok(description::answer())
}
