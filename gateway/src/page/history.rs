//! The history of one request, with all that the page shows of it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use observe::{RequestHistory, history};
use serde_json::{Value, json};
use workqueue::{JobId, Queue};

use super::dead_letters::shown as dead_letter;
use crate::problem::{Kind, Problem};
use crate::requests::json as answer;
use crate::state::Gateway;

/// How many of a request's strings are shown.
const STRINGS: usize = 20;

pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let id = uri.path().rsplit('/').next().unwrap_or_default();
    let id: JobId = id.parse().map_err(|error| Kind::Invalid.because(error))?;
    // What moves on meanwhile is seen in its history, which is read last.
    let queues = history::queues_with(gateway.connection()?, id).await;
    let queues = queues.map_err(|error| Kind::BrokerAway.because(format_args!("{error:#}")))?;
    let history = gateway.reader()?.history(id).await?;
    Ok(answer(&shown(id, &history, &queues)))
}

fn shown(id: JobId, history: &RequestHistory, queues: &[Queue]) -> Value {
    let RequestHistory { requested, stored, received, dead_letters } = history;
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
        "dead_letters": dead_letters.iter().map(dead_letter).collect::<Vec<_>>(),
    })
}
