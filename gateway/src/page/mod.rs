//! The page, and the endpoints that it has besides the API.
//!
//! | path | content |
//! | --- | --- |
//! | `/` and the files beside it | the page ([`files`]) |
//! | `/api/events` | the updates, as server-sent events ([`events`]) |
//! | `/api/history` | the last five minutes |
//! | `/api/requests/{id}` | the whole history of one request ([`history`]) |
//! | `POST /api/audit` | the button of the page |

mod events;
mod files;
mod history;

pub(crate) use files::is_file;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;

use crate::input::{Empty, Json};
use crate::problem::{Problem, ProblemKind};
use crate::requests::json as answer;
use crate::state::Gateway;

/// The routes of the page.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/events", get(events::events))
        .route("/api/history", get(last_minutes))
        .route("/api/requests/{id}", get(history::show))
        .route("/api/audit", post(begin_audit))
        .merge(files::routes())
}

async fn last_minutes(State(gateway): State<Arc<Gateway>>) -> Response {
    let history = gateway.timeline.history().to_string();
    ([(header::CONTENT_TYPE, "application/json")], history).into_response()
}

async fn begin_audit(
    State(gateway): State<Arc<Gateway>>,
    Json(Empty {}): Json<Empty>,
) -> Result<impl IntoResponse, Problem> {
    if gateway.audit.begin() {
        // Only the pages of this replica show the result.
        let begun = json!({ "instance": gateway.settings.instance });
        Ok((StatusCode::ACCEPTED, answer(&begun)))
    } else {
        Err(ProblemKind::Conflict.because("an audit is running already"))
    }
}
