//! One request's whole life, and asking for a new one.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use contract::{Amount, RequestId};
use observe::life::Life;
use serde::Deserialize;
use serde_json::{Value, json};

use super::letters::shown;
use super::problem::Problem;
use super::{connected, unreadable};
use crate::Viewer;
use crate::ask::{self, Answer, Outcome};

/// How many of a request's strings are shown.
const STRINGS: usize = 20;

#[derive(Deserialize)]
struct Wish {
    count: u32,
    length: u32,
    /// The same for each try of one wish, and never another's.
    key: String,
}

pub(super) async fn life(
    State(viewer): State<Arc<Viewer>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: RequestId =
        id.parse().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("{error}")))?;
    let connection = connected(&viewer)?;
    let life = Life::look(connection.context(), id).await.map_err(|error| unreadable(&error))?;
    Ok(axum::response::Response::builder()
        .header("content-type", "application/json")
        .body(told(id, &life).to_string().into())
        .expect("the header is sound"))
}

fn told(id: RequestId, life: &Life) -> Value {
    let Life { requested, stored, received, queues, dead_letters } = life;
    let strings = stored.as_ref().map(|stored| stored.values.as_slice());
    json!({
        "id": id.to_string(),
        "requested": requested.as_ref().map(|request| json!({
            "at": request.requested_at,
            "by": request.requestor,
            "count": request.amount.count(),
            "length": request.amount.length(),
        })),
        "generated": stored.as_ref().map(|stored| json!({
            "at": stored.generated_at,
            "by": stored.generator,
        })),
        "stored": stored.as_ref().map(|stored| json!({
            "at": stored.stored_at,
            "by": stored.requestor,
        })),
        "received": received.as_ref().map(|received| json!({
            "at": received.received_at,
            "by": received.marked_by,
            "same": stored.as_ref().is_none_or(|stored| stored.values == received.values),
        })),
        "strings": strings.map(|strings| strings.iter().take(STRINGS).collect::<Vec<_>>()),
        "more_strings": strings.map_or(0, |strings| strings.len().saturating_sub(STRINGS)),
        "queues": queues.iter().map(|queue| queue.stream).collect::<Vec<_>>(),
        "dead_letters": dead_letters.iter().map(shown).collect::<Vec<_>>(),
    })
}

pub(super) async fn ask(
    State(viewer): State<Arc<Viewer>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let Some(api) = &viewer.settings.api_url else {
        let detail = "this viewer knows of no API to ask; API_URL says where it is";
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let invalid = |error: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error);
    let wish: Wish = serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
    let amount =
        Amount::new(wish.count, wish.length).map_err(|error| invalid(error.to_string()))?;
    // What is more than a key of the page's may not be said in a header.
    if wish.key.is_empty()
        || wish.key.len() > 64
        || !wish.key.bytes().all(|it| it.is_ascii_alphanumeric())
    {
        return Err(invalid("the key has 1 to 64 letters and digits".to_owned()));
    }
    match ask::ask(api, amount, &wish.key).await {
        Ok(Answer::Accepted(id)) => {
            let headers = [("content-type", "application/json")];
            let body = json!({ "id": id.to_string() }).to_string();
            Ok((StatusCode::ACCEPTED, headers, body).into_response())
        }
        Ok(Answer::Refused(status, why, outcome)) => {
            let refused = status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE;
            let status = if refused { status } else { StatusCode::BAD_GATEWAY };
            Err(Problem::new(status, format!("the API refuses: {why}")).with(outcome))
        }
        // It may have heard it, and only its answer is lost.
        Err(error) => Err(unreadable(&error).with(Some(Outcome::Unknown))),
    }
}
