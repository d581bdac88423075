//! Each update of the timeline, as server-sent events.
//!
//! A tab that takes them slowly misses some, and nothing piles up here: it gets the newest whenever it has
//! room for one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, Sse};
use futures_util::{Stream, stream};
use serde_json::json;
use tokio::sync::watch;

use crate::state::Gateway;

/// What one tab still has to be told.
struct Tab {
    gateway: Arc<Gateway>,
    updates: watch::Receiver<Arc<str>>,
    audits: watch::Receiver<Arc<str>>,
    first: VecDeque<(&'static str, Arc<str>)>,
}

impl Tab {
    fn new(gateway: Arc<Gateway>) -> Self {
        let mut updates = gateway.timeline.watch();
        let mut audits = gateway.audit.watch();
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "replay": gateway.settings.replay_nats().is_some(),
        });
        let first = VecDeque::from([
            ("about", about.to_string().into()),
            // After the updates are watched: none is missed in between.
            ("history", gateway.timeline.history()),
            ("audit", audits.borrow_and_update().clone()),
            ("picture", updates.borrow_and_update().clone()),
        ]);
        gateway.metrics.tabs.inc();
        Self { gateway, updates, audits, first }
    }

    /// What to tell next, once there is something. Nothing where the gateway stops.
    async fn next(&mut self) -> Option<(&'static str, Arc<str>)> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        tokio::select! {
            () = self.gateway.stop.cancelled() => None,
            changed = self.audits.changed() => {
                changed.ok()?;
                Some(("audit", self.audits.borrow_and_update().clone()))
            }
            changed = self.updates.changed() => {
                changed.ok()?;
                Some(("picture", self.updates.borrow_and_update().clone()))
            }
        }
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        self.gateway.metrics.tabs.dec();
    }
}

pub(super) async fn events(
    State(gateway): State<Arc<Gateway>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold(Tab::new(gateway), async |mut tab| {
        let (name, data) = loop {
            match tab.next().await? {
                // Before the first snapshot.
                (_, data) if data.is_empty() => {}
                told => break told,
            }
        };
        tab.gateway.metrics.sent_bytes.inc_by(data.len() as u64);
        Some((Ok(Event::default().event(name).data(data)), tab))
    }))
}
