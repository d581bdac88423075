//! The history of one request for the page.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use observe::history;
use serde_json::json;
use workqueue::chain;

use crate::dead_letters::view::DeadLetterDetails;
use crate::problem::{Problem, ProblemKind};
use crate::requests::view::RequestDetails;
use crate::requests::{input, json as answer};
use crate::settings::TRACE_ID;
use crate::state::Gateway;

/// The state of a request as in the API, the queues that it is in, and its dead letters in full.
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
) -> Result<Response, Problem> {
    let id = input::id(&uri)?;
    let queues = history::queues_with(gateway.connection()?, id).await;
    let queues = queues.map_err(|error| ProblemKind::BrokerAway.because(chain(&*error)))?;
    // Read last, so that a request that has moved on meanwhile is found.
    let found = gateway.reader()?.history(id).await?;
    let trace = match &gateway.settings.trace_url {
        Some(url) => {
            let trace = history::trace_of(gateway.connection()?, id).await;
            let trace = trace.map_err(|error| ProblemKind::BrokerAway.because(chain(&*error)))?;
            trace.map(|id| url.replace(TRACE_ID, &id))
        }
        None => None,
    };
    let letters: Vec<_> = found.dead_letters.iter().map(DeadLetterDetails::short).collect();
    Ok(answer(&json!({
        "queues": queues.iter().map(|queue| queue.stream).collect::<Vec<_>>(),
        "dead_letters": letters,
        "request": RequestDetails::new(id, found),
        "trace": trace,
    })))
}
