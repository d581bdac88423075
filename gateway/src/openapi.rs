//! The description of the API in OpenAPI, generated from the code of the handlers.

use std::sync::LazyLock;

use axum::http::{Uri, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use contract::{MAX_CHARACTERS, MAX_COUNT, MAX_LENGTH};
use serde_json::{Value, json};
use utoipa::OpenApi;

use crate::input::{NoQuery, query};
use crate::problem::ProblemKind::{
    self, BrokerAway, Busy, Coding, Conflict, Cursor, Expectation, Foreign, Impossible, Invalid,
    KeyExpired, KeyTaken, MediaType, NoDeadLetter, NoQueue, NoRequest, NoSchedule, NotAllowed,
    QueueFull, Refused, Slow, TooLarge,
};
use crate::problem::{PROBLEM_JSON, Problem, SubmitOutcome};
use crate::requests::submit::away;
use crate::requests::time;
use crate::{dead_letters, queues, requests, schedules};

/// The problems with which any operation may answer, and those of each operation.
const ANY: [ProblemKind; 4] = [Invalid, Foreign, Expectation, Coding];
const PROBLEMS: [(&str, &str, &[ProblemKind]); 20] = [
    (
        "/requests",
        "post",
        &[
            Slow, KeyTaken, KeyExpired, TooLarge, MediaType, Impossible, Refused, QueueFull,
            BrokerAway, Busy,
        ],
    ),
    ("/requests", "get", &[Cursor, Refused, BrokerAway, Busy]),
    ("/requests/{id}", "get", &[NoRequest, Refused, BrokerAway, Busy]),
    ("/requests/{id}", "delete", &[NoRequest, Refused, BrokerAway, Busy]),
    ("/schedules", "get", &[BrokerAway]),
    ("/schedules/{name}", "get", &[NoSchedule, BrokerAway]),
    (
        "/schedules/{name}",
        "put",
        &[Slow, TooLarge, MediaType, Impossible, Refused, QueueFull, BrokerAway],
    ),
    ("/schedules/{name}", "delete", &[NoSchedule, Refused, BrokerAway]),
    ("/requests/{id}/events", "get", &[NoRequest, Refused, BrokerAway, Busy]),
    ("/queues", "get", &[Refused, BrokerAway]),
    ("/queues/{name}", "get", &[NoQueue, Refused, BrokerAway]),
    (
        "/queues/{name}/pause",
        "post",
        &[NotAllowed, NoQueue, Slow, Conflict, TooLarge, MediaType, Refused, BrokerAway],
    ),
    (
        "/queues/{name}/resume",
        "post",
        &[NotAllowed, NoQueue, Slow, TooLarge, MediaType, Refused, BrokerAway],
    ),
    ("/dead-letters", "get", &[BrokerAway, Busy]),
    ("/dead-letters", "delete", &[NotAllowed, BrokerAway, Busy]),
    ("/dead-letters/{sequence}", "get", &[NoDeadLetter, BrokerAway]),
    ("/dead-letters/{sequence}", "delete", &[NotAllowed, NoDeadLetter, Conflict, BrokerAway]),
    (
        "/dead-letters/{sequence}/replay",
        "post",
        &[NotAllowed, NoDeadLetter, Slow, Conflict, TooLarge, MediaType, QueueFull, BrokerAway],
    ),
    ("/dead-letters/replay", "post", &[NotAllowed, Slow, TooLarge, MediaType, BrokerAway, Busy]),
    ("/openapi.json", "get", &[]),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Random strings, asked for and looked up",
        description = "`POST /requests` accepts a request at once, and answers with its address. The services work on it \
                       asynchronously; `GET /requests/{id}` has its state. A 503 asks the client to try \
                       again later. If its `outcome` is `unknown`, the request may have been accepted; with an \
                       `Idempotency-Key` it is safe to try again.\n\n\
                       Unknown fields and parameters are refused. Each error is an \
                       `application/problem+json` (RFC 9457).\n\n\
                       The API is for programs, and for pages of the same origin. It refuses requests from a page \
                       of another site, and a `Host` that is not an address, not `localhost`, and not in \
                       `GATEWAY_HOSTS`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    // Relative to this description, because a proxy may serve it under another path.
    servers((url = ".")),
    paths(
        requests::submit_request,
        requests::list,
        requests::show,
        requests::cancel,
        requests::follow,
        schedules::list,
        schedules::show,
        schedules::set,
        schedules::remove,
        queues::list,
        queues::show,
        queues::pause,
        queues::resume,
        dead_letters::list,
        dead_letters::show,
        dead_letters::replay,
        dead_letters::replay_all,
        dead_letters::discard_one,
        dead_letters::discard_all,
        describe,
    ),
    components(schemas(Problem))
)]
struct Description;

/// The description in JSON.
fn document() -> Value {
    let description = Description::openapi();
    let mut document =
        serde_json::to_value(description).expect("the description can always become JSON");
    // The body is optional. The derived description would allow `null` as well.
    document["paths"]["/requests"]["post"]["requestBody"]["required"] = false.into();
    // States that the API needs no credentials.
    document["security"] = json!([]);
    let schemas = &mut document["components"]["schemas"];
    let within_limit_of = json!({ "$ref": "#/components/schemas/WithinLimit" });
    let both = json!({ "properties": { "delay": {}, "not_before": {} }, "required": ["delay", "not_before"] });
    let not_both = json!({ "not": both });
    schemas["NewRequest"]["allOf"] = json!([within_limit_of, not_both]);
    schemas["NewSchedule"]["allOf"] = json!([within_limit_of]);
    schemas["NewSchedule"]["oneOf"] = json!([
        { "required": ["every"], "properties": { "cron": false, "time_zone": false } },
        { "required": ["cron"], "properties": { "every": false } },
    ]);
    schemas["NewRequest"]["properties"]["delay"]["pattern"] = time::PATTERN.into();
    // Whole seconds, at least one.
    let interval = time::PATTERN.replace("(0|[1-9][0-9]{0,8})ms", "([1-9][0-9]{0,5}000)ms");
    schemas["NewSchedule"]["properties"]["every"]["pattern"] = interval.replace("(0|", "(").into();
    schemas["WithinLimit"] = within_limit();
    for (path, method, kinds) in PROBLEMS {
        let responses = &mut document["paths"][path][method]["responses"];
        for kind in ANY.iter().chain(kinds) {
            add_problem(
                responses,
                *kind,
                &example(*kind, path == "/requests" && method == "post").at(path),
            );
        }
    }
    document
}

/// Adds a kind of problem to the responses of an operation, with an example. Several may have the same status.
fn add_problem(responses: &mut Value, kind: ProblemKind, example: &Problem) {
    let (status, name, title) = kind.parts();
    let response = &mut responses[status.as_str()];
    let mut examples = response["content"][PROBLEM_JSON]["examples"].take();
    examples[name] = json!({ "summary": title, "value": example });
    let others = response["description"].as_str().map(|others| format!("{others}; "));
    let others = others.unwrap_or_default();
    *response = json!({
        "description": format!("{others}{title} (`openapi.json#{name}`)"),
        "content": { PROBLEM_JSON: {
            "schema": { "$ref": "#/components/schemas/Problem" },
            "examples": examples,
        } },
    });
    if status.as_u16() == 503 {
        let header = json!({ "description": "The seconds after which to try again", "schema": { "type": "integer" } });
        response["headers"] = json!({ "Retry-After": header });
    }
}

/// A problem of this kind, as an answer of an operation that submits, or that reads.
fn example(kind: ProblemKind, submits: bool) -> Problem {
    let problem = kind.because(match kind {
        Foreign => "the browser reports that a page of another site sent this",
        NoSchedule => "no schedule has the name nightly",
        Impossible => {
            "the broker knows no time zone 'Mars/Base'; write a name of the IANA database, such as \
             Europe/Berlin, or leave it out for UTC"
        }
        NotAllowed => "this deployment is not controlled from here; set CONTROL=on to allow it",
        Cursor => "the store that this cursor belongs to is gone; begin without a cursor",
        NoQueue => "the queues are SCHEDULES, REQUESTS, RESPONSES and ACKNOWLEDGMENTS",
        NoDeadLetter => "there is no dead letter 7",
        Conflict => {
            "it has expired: its `expires_at` has passed, or its facts may be gone, so that its effect \
             could happen a second time"
        }
        NoRequest => "no request has the id 019cadd3-8896-7938-bc36-c32d4d2563a7",
        Slow => "the body has to arrive within 5 s",
        KeyTaken => "this Idempotency-Key belongs to a request with count 2, length 8 and priority normal",
        KeyExpired => {
            "the request of this Idempotency-Key, of 2026-11-21T07:17:18.75925Z, was never accepted, and \
             is too old now; use another key"
        }
        TooLarge => "the body may have at most 4096 bytes",
        MediaType => "the body must not have a Content-Encoding",
        Expectation => "Expect may only be 100-continue",
        Refused => {
            "the broker refuses request 019cadd3-8896-7938-bc36-c32d4d2563a7; its reason is in the \
             log of the gateway"
        }
        Coding => "Transfer-Encoding may only be chunked",
        QueueFull if submits => "there is no room in the queue; nothing of this request remains",
        QueueFull => "there is no room in the queue",
        BrokerAway if submits => return away(),
        BrokerAway => "the broker does not answer; try again",
        Busy if submits => "too many clients ask at this moment; nothing of this request remains",
        Busy => "too many clients read lists at this moment",
        _ => "there is no Host",
    });
    let nothing_remains = submits && matches!(kind, QueueFull | Busy);
    if nothing_remains { problem.with(SubmitOutcome::NotAsked) } else { problem }
}

/// The values within the limit of count × length. JSON Schema cannot multiply, so this lists the largest pairs: for
/// each length, the largest count.
fn within_limit() -> Value {
    let steps = (MAX_CHARACTERS / MAX_LENGTH..=MAX_COUNT).filter(|count| {
        *count == MAX_COUNT || MAX_CHARACTERS / count != MAX_CHARACTERS / (count + 1)
    });
    let step = |count| {
        let length = MAX_CHARACTERS / count;
        json!({ "properties": { "count": { "maximum": count }, "length": { "maximum": length } } })
    };
    json!({
        "description": format!(
            "`count` × `length` is at most {MAX_CHARACTERS}. JSON Schema cannot multiply, so \
             `anyOf` lists the largest pairs"
        ),
        "anyOf": steps.map(step).collect::<Vec<_>>(),
    })
}

/// This description
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    tag = "description",
    responses(
        (status = 200, description = "The description of this API, in OpenAPI 3.1", body = Object,
         example = json!({ "openapi": "3.1.0", "info": { "title": "…", "version": "…" }, "paths": {} })),
    )
)]
pub(crate) async fn describe(uri: Uri) -> Result<impl IntoResponse, Problem> {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    let NoQuery {} = query(&uri)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()))
}
