//! Evaluates the check of a step with each snapshot, until it holds.
//!
//! The id of an event is the baseline of the step, so a client that reconnects, to any replica, sends it back.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::check::{Check, since, variables};
use super::{no_lesson, numbered};
use crate::input::path;
use crate::problem::Problem;
use crate::requests::events::{LAST_EVENT_ID, UNBUFFERED};
use crate::state::Gateway;

/// The events of a step: `state` with each snapshot, and `done` at the end.
pub(super) async fn follow(
    State(gateway): State<Arc<Gateway>>,
    step: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (lesson, step) = path(step)?;
    let lesson = lesson.parse().ok().and_then(numbered);
    let found = lesson.zip(step.parse().ok()).and_then(|(lesson, step)| lesson.step(step));
    let check = found.filter(|it| !it.lab_only).and_then(|it| it.check.as_ref());
    let check = check.ok_or_else(no_lesson)?;
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    let was = last.and_then(|id| check.restore(id));
    let mut updates = gateway.timeline.watch();
    updates.mark_changed();
    let follower = StepFollower { check, updates, was, is_done: false };
    let stopped = gateway.stop.clone().cancelled_owned();
    let events = stream::unfold(follower, StepFollower::next).take_until(stopped);
    Ok(([UNBUFFERED], Sse::new(events)).into_response())
}

/// A page, or the lab, that follows a step.
struct StepFollower {
    check: &'static Check,
    updates: watch::Receiver<Arc<str>>,
    /// The baseline: what the check compares with, from the beginning of the step.
    was: Option<Map<String, Value>>,
    is_done: bool,
}

impl StepFollower {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        while !self.is_done {
            self.updates.changed().await.ok()?;
            let update = self.updates.borrow_and_update().clone();
            let update = serde_json::from_str(&update).unwrap_or_default();
            let Some(now) = variables(&update) else { continue };
            let Some(was) = self.was.take().or_else(|| self.check.baseline(&now)) else { continue };
            let now = since(&was, now);
            // A test evaluates each part of each check.
            self.is_done = self.check.holds(&now).unwrap_or(false);
            let data = json!({ "at": update["at"], "saw": self.check.saw(&now) }).to_string();
            let name = if self.is_done { "done" } else { "state" };
            let event = Event::default().event(name).id(json!(was).to_string()).data(data);
            self.was = Some(was);
            return Some((Ok(event), self));
        }
        None
    }
}
