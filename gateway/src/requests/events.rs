//! The changes of the state of a request, as server-sent events, until the request has come to its end.
//!
//! The id of an event is the tag of its content, so a client that reconnects sends the tag of the last event that it
//! got. If no event can follow, the answer is 204, after which a browser does not reconnect again.

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

/// The header with the id of the last event that a browser got.
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Makes a proxy pass on each event at once.
pub(crate) const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// The interval of comments while the state does not change. A connection without data for half a minute is closed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The time after which a client reconnects.
const RETRY: Duration = Duration::from_secs(1);

/// An event: the state of a request.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes the events")]
pub(crate) struct RequestEvent {
    /// The tag of the state, as in the `ETag` of looking it up.
    id: String,
    /// The time after which to reconnect, in milliseconds.
    retry: u32,
    /// The answer of `GET /requests/{id}`, as JSON.
    data: String,
}

/// The events of this request after the last event that the client got.
pub(super) async fn follow(
    gateway: Arc<Gateway>,
    id: JobId,
    seen: Option<String>,
) -> Result<Response, Problem> {
    let place = gateway.waiters.follow()?;
    let reader = gateway.reader()?;
    let details = reader.details(id).await?;
    if details.status.is_end() && seen.as_ref() == Some(&tag(&details.json())) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let listener = Listener::start(reader, id).await?;
    let stop = gateway.stop.clone().cancelled_owned();
    let follower =
        RequestFollower { gateway, id, listener, last: seen, has_ended: false, _place: place };
    let events = stream::unfold(follower, RequestFollower::next).take_until(stop);
    Ok(([UNBUFFERED], Sse::new(events)).into_response())
}

/// A client that follows a request.
struct RequestFollower {
    gateway: Arc<Gateway>,
    id: JobId,
    listener: Listener,
    /// The tag of the last event that the client got.
    last: Option<String>,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

impl RequestFollower {
    /// Waits for the next event, or for the time of a comment.
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
                if self.last.as_ref() != Some(&tag) {
                    self.has_ended = details.status.is_end();
                    let event = Event::default().id(&tag).retry(RETRY);
                    let event = event.data(String::from_utf8_lossy(&json));
                    self.last = Some(tag);
                    return Some((Ok(event), self));
                }
            }
            if timeout_at(heartbeat, self.listener.next()).await.is_err() {
                return Some((Ok(Event::default().comment("")), self));
            }
        }
    }
}
