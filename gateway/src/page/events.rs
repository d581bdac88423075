//! The updates of the timeline, as server-sent events.
//!
//! A slow tab misses some updates: it gets the newest one whenever it has room for one. So no updates pile up here.

use std::convert::Infallible;
use std::future;
use std::sync::Arc;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, Sse};
use futures_util::stream::{self, select};
use futures_util::{Stream, StreamExt};
use serde_json::json;
use tokio::sync::watch;

use crate::metrics::GaugeGuard;
use crate::requests::events::UNBUFFERED;
use crate::state::Gateway;
use crate::timeline::json as shown;

/// The name of an event, and its data as JSON.
type PageEvent = (&'static str, Arc<str>);

pub(super) async fn events(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    let (mut updates, mut audits) = (gateway.timeline.watch(), gateway.audit.watch());
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": gateway.settings.instance,
        "control": gateway.settings.control_nats().is_some(),
        "lab": gateway.settings.lab,
    });
    let first = [
        ("about", shown(&about)),
        // Read after the watch on the updates has begun, so that none is missed in between.
        ("history", gateway.timeline.history()),
        ("audit", shown(&*audits.borrow_and_update())),
        ("snapshot", updates.borrow_and_update().clone()),
    ];
    let later = select(
        changes(audits, |audit| ("audit", shown(audit))),
        changes(updates, |update| ("snapshot", update.clone())),
    );
    let tab = GaugeGuard::new(&gateway.metrics.tabs);
    let stop = gateway.stop.clone().cancelled_owned();
    let events =
        stream::iter(first).chain(later).take_until(stop).filter_map(move |(name, data)| {
            let _open = &tab;
            gateway.metrics.sent_bytes.inc_by(data.len() as u64);
            // The data is empty before the first snapshot.
            let event = (!data.is_empty())
                .then(|| Ok::<_, Infallible>(Event::default().event(name).data(data)));
            future::ready(event)
        });
    ([UNBUFFERED], Sse::new(events))
}

/// The watched value, after each change.
fn changes<T>(
    watched: watch::Receiver<T>,
    tell: fn(&T) -> PageEvent,
) -> impl Stream<Item = PageEvent> {
    stream::unfold(watched, move |mut watched| async move {
        watched.changed().await.ok()?;
        let told = tell(&watched.borrow_and_update());
        Some((told, watched))
    })
}
