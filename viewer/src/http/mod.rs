//! The page, and what it asks for.
//!
//! | path | what |
//! | --- | --- |
//! | `/` and the files beside it | the page ([`files`]) |
//! | `/api/events` | each picture as it is taken, as server-sent events ([`events`]) |
//! | `/api/history` | the last five minutes |
//! | `/api/requests/{id}` | one request's whole life |
//! | `/api/dead-letters` | what was given up |
//! | `POST /api/ask`, `/api/audit`, `/api/dead-letters/…` | what somebody has asked for |
//!
//! Whoever reaches its port may ask, so everything that a client can make it hold is bounded. Whoever
//! asks in the name of another site is refused ([`guard`]).

mod events;
mod files;
mod guard;
mod letters;
mod problem;
mod requests;
mod serve;

pub(crate) use serve::serve;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use workqueue::Connection;

use crate::Viewer;
use problem::Problem;

fn router(viewer: Arc<Viewer>) -> Router {
    Router::new()
        .route("/api/events", get(events::events))
        .route("/api/history", get(history))
        .route("/api/requests/{id}", get(requests::life))
        .route("/api/ask", post(requests::ask))
        .route("/api/audit", post(begin_audit))
        .route("/api/dead-letters", get(letters::list))
        .route("/api/dead-letters/replay", post(letters::replay_all))
        .route("/api/dead-letters/{sequence}/replay", post(letters::replay))
        .fallback(get(files::file))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&viewer), guard::guard))
        .with_state(viewer)
}

async fn history(State(viewer): State<Arc<Viewer>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], viewer.pictures.history().to_string())
        .into_response()
}

async fn begin_audit(State(viewer): State<Arc<Viewer>>) -> Result<StatusCode, Problem> {
    if viewer.audit.begin() {
        Ok(StatusCode::ACCEPTED)
    } else {
        Err(Problem::new(StatusCode::CONFLICT, "an audit is running already"))
    }
}

/// The connection, or why nothing can be read.
fn connected(viewer: &Viewer) -> Result<&Connection, Problem> {
    let connection = viewer.connection.get().filter(|connection| connection.is_connected());
    connection.ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "there is no connection to the broker")
    })
}

/// What cannot be read from the broker at this moment.
fn unreadable(error: &anyhow::Error) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, format!("{error:#}"))
}

/// The value of a parameter in the query, if it is there.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(found, value)| (found == name).then_some(value))
}
