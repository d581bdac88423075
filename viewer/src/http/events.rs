//! Each picture as it is taken, as server-sent events.
//!
//! A tab that takes them slowly misses pictures, and nothing piles up here: it gets the newest whenever it
//! has room for one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::sse::{Event, Sse};
use futures_util::{Stream, stream};
use serde_json::json;
use tokio::sync::watch;

use crate::Viewer;
use crate::metrics::Metrics;

/// What one tab still has to be told.
struct Tab {
    viewer: Arc<Viewer>,
    pictures: watch::Receiver<Arc<str>>,
    audits: watch::Receiver<Arc<str>>,
    first: VecDeque<(&'static str, Arc<str>)>,
}

impl Tab {
    fn new(viewer: Arc<Viewer>) -> Self {
        let mut pictures = viewer.pictures.watch();
        let mut audits = viewer.audit.watch();
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "api": viewer.settings.api_url.is_some(),
            "replay": viewer.settings.replay_nats().is_some(),
        });
        let first = VecDeque::from([
            ("about", about.to_string().into()),
            // After the pictures are watched: none is missed in between.
            ("history", viewer.pictures.history()),
            ("audit", audits.borrow_and_update().clone()),
            ("picture", pictures.borrow_and_update().clone()),
        ]);
        viewer.metrics.tabs.inc();
        Self { viewer, pictures, audits, first }
    }

    /// What to tell next, once there is something. Nothing where the viewer stops.
    async fn next(&mut self) -> Option<(&'static str, Arc<str>)> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        tokio::select! {
            () = self.viewer.stop.cancelled() => None,
            changed = self.audits.changed() => {
                changed.ok()?;
                Some(("audit", self.audits.borrow_and_update().clone()))
            }
            changed = self.pictures.changed() => {
                changed.ok()?;
                Some(("picture", self.pictures.borrow_and_update().clone()))
            }
        }
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let Metrics { tabs, .. } = &self.viewer.metrics;
        tabs.dec();
    }
}

pub(super) async fn events(
    State(viewer): State<Arc<Viewer>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold(Tab::new(viewer), async |mut tab| {
        let (name, data) = loop {
            match tab.next().await? {
                // Before the first look.
                (_, data) if data.is_empty() => {}
                told => break told,
            }
        };
        tab.viewer.metrics.sent_bytes.inc_by(data.len() as u64);
        Some((Ok(Event::default().event(name).data(data)), tab))
    }))
}
