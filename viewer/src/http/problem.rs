//! What goes wrong, as RFC 9457 has it.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::ask::Outcome;

/// Why a request is not answered as it was asked.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
    outcome: Option<Outcome>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), outcome: None }
    }

    /// The same, with what became of what was asked for, as far as that is known.
    pub(super) fn with(self, outcome: Option<Outcome>) -> Self {
        Self { outcome, ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, detail, outcome } = self;
        let title = status.canonical_reason().unwrap_or("Error");
        let mut body = json!({ "status": status.as_u16(), "title": title, "detail": detail });
        if let Some(outcome) = outcome {
            body["outcome"] = json!(outcome);
        }
        let headers = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, headers, body.to_string()).into_response()
    }
}
