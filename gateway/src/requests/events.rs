//! Each change of the state of a request, as server-sent events, until it has come to its end.
//!
//! Each event has the tag of what it says for its id. So a client that comes back says what it has seen, and is told
//! with 204 that there will be no more, which keeps a browser from coming back for ever.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;
use workqueue::JobId;

use super::waiters::Listener;
use crate::etag::tag;
use crate::problem::Problem;
use crate::state::Gateway;

/// What a browser says of the last event that it has seen.
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Has a proxy hand on each event as it comes.
pub(crate) const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// How often to send something while nothing happens. A connection without anything for half a minute is closed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// When a client that was cut off is to come back.
const RETRY: Duration = Duration::from_secs(1);

/// An event: the state of a request.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes the events")]
pub(crate) struct RequestEvent {
    /// The tag of the state, as in the `ETag` of looking it up.
    id: String,
    /// When to come back if the connection is lost, in milliseconds.
    retry: u32,
    /// What looking it up would answer, as JSON.
    data: String,
}

/// The events of this request, for a client that has seen this one last.
pub(super) async fn follow(
    gateway: Arc<Gateway>,
    id: JobId,
    seen: Option<String>,
) -> Result<Response, Problem> {
    let place = gateway.waiters.follow()?;
    let reader = gateway.reader()?;
    let details = reader.details(id).await?;
    let has_ended = details.status.is_end();
    if has_ended && seen.is_some_and(|seen| seen == tag(&details.json())) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let listener = Listener::start(reader, id).await?;
    let stop = gateway.stop.clone().cancelled_owned();
    let follower = Follower { gateway, id, listener, told: None, has_ended: false, _place: place };
    let events = stream::unfold(follower, Follower::next).take_until(stop);
    Ok(([UNBUFFERED], Sse::new(events)).into_response())
}

/// A client that follows a request.
struct Follower {
    gateway: Arc<Gateway>,
    id: JobId,
    listener: Listener,
    /// The tag of what it was told last.
    told: Option<String>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// What to send next, when there is something.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.has_ended {
            return None;
        }
        let heartbeat = Instant::now() + HEARTBEAT;
        loop {
            // While the broker does not answer, the client waits.
            if let Ok(details) = self.gateway.reader().ok()?.details(self.id).await {
                let json = details.json();
                let tag = tag(&json);
                if self.told.as_ref() != Some(&tag) {
                    self.has_ended = details.status.is_end();
                    let event = Event::default().id(&tag).retry(RETRY);
                    let event = event.data(String::from_utf8_lossy(&json));
                    self.told = Some(tag);
                    return Some((Ok(event), self));
                }
            }
            if timeout_at(heartbeat, self.listener.next()).await.is_err() {
                return Some((Ok(Event::default().comment("")), self));
            }
        }
    }
}
