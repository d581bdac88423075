//! Errors, as problem details (RFC 9457). Each kind has a status and a name of its own.

use std::fmt;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of every problem.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// The kinds of problems, in the order of their statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProblemKind {
    Invalid,
    Foreign,
    NotAllowed,
    NoRoute,
    NoRequest,
    NoDeadLetter,
    NoSchedule,
    NoQueue,
    Method,
    Slow,
    KeyTaken,
    KeyExpired,
    Cursor,
    Conflict,
    TooLarge,
    MediaType,
    Expectation,
    Impossible,
    Refused,
    Coding,
    QueueFull,
    BrokerAway,
    Busy,
}

impl ProblemKind {
    /// The status, the name, and the title.
    pub(crate) fn parts(self) -> (StatusCode, &'static str, &'static str) {
        let (status, name, title) = match self {
            Self::Invalid => (400, "invalid", "The request is invalid"),
            Self::Foreign => (403, "foreign", "Pages of other sites may not send requests"),
            Self::NotAllowed => (403, "not-allowed", "This deployment does not allow it"),
            Self::NoRoute => (404, "no-route", "There is no such route"),
            Self::NoRequest => (404, "no-request", "There is no such request"),
            Self::NoDeadLetter => (404, "no-dead-letter", "There is no such dead letter"),
            Self::NoSchedule => (404, "no-schedule", "There is no such schedule"),
            Self::NoQueue => (404, "no-queue", "There is no such queue"),
            Self::Method => (405, "method", "The route has no such method"),
            Self::Slow => (408, "slow", "The body did not come in time"),
            Self::KeyTaken => (409, "key-taken", "The key belongs to another request"),
            Self::KeyExpired => (409, "key-expired", "The key is too old"),
            Self::Cursor => (409, "cursor", "The cursor is not of this list"),
            Self::Conflict => (409, "conflict", "It cannot be done at this moment"),
            Self::TooLarge => (413, "too-large", "The body is too large"),
            Self::MediaType => (415, "media-type", "The body is not JSON"),
            Self::Expectation => (417, "expectation", "The expectation cannot be met"),
            Self::Impossible => (422, "impossible", "There is no such time"),
            Self::Refused => (500, "refused", "The broker refuses"),
            Self::Coding => (501, "coding", "The transfer coding is not supported"),
            Self::QueueFull => (503, "queue-full", "The queue is full"),
            Self::BrokerAway => (503, "broker-away", "The broker does not answer"),
            Self::Busy => (503, "busy", "The gateway is busy"),
        };
        (StatusCode::from_u16(status).expect("each kind has a valid status"), name, title)
    }

    /// A problem of this kind, with the detail of this occurrence.
    pub(crate) fn because(self, detail: impl fmt::Display) -> Problem {
        let (status, name, title) = self.parts();
        Problem {
            kind: format!("openapi.json#{name}"),
            title,
            status: status.as_u16(),
            detail: detail.to_string(),
            outcome: None,
        }
    }
}

/// The outcome of a request that was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SubmitOutcome {
    /// The broker has stored nothing of this request.
    NotAsked,
    /// The request may have been accepted. With the same Idempotency-Key it is safe to try again.
    Unknown,
}

/// An error, by RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// The kind of problem, as an address relative to that of the request.
    #[serde(rename = "type")]
    kind: String,
    /// The kind of problem, for people.
    title: &'static str,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// The detail of this occurrence, for people.
    detail: String,
    /// The outcome of a submission, if the request was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    outcome: Option<SubmitOutcome>,
}

impl Problem {
    /// The same problem as the answer at this path. It is relative, because a proxy may serve the gateway under a
    /// sub-path.
    pub(crate) fn at(self, path: &str) -> Self {
        let depth = path.matches('/').count().saturating_sub(1);
        Self { kind: "../".repeat(depth) + &self.kind, ..self }
    }

    /// The same, with the outcome of the request.
    pub(crate) fn with(self, outcome: SubmitOutcome) -> Self {
        Self { outcome: Some(outcome), ..self }
    }

    /// The detail of this occurrence, for people.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The body of the answer.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("a problem can always become JSON")
    }
}

/// The seconds after which to try again. If the queue drains at all, it has room by then.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).expect("each kind has a valid status");
        let kind = [(header::CONTENT_TYPE, PROBLEM_JSON), (header::CACHE_CONTROL, "no-store")];
        let mut response = (status, kind, self.json()).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        // The rest of the body was not read, so this connection cannot carry another request.
        if matches!(
            status,
            StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::EXPECTATION_FAILED
                | StatusCode::NOT_IMPLEMENTED
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self);
        response
    }
}
