//! A snapshot of the flow each second, for all open pages, and the last five minutes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use observe::snapshot::{QueueSnapshot, ReplicasSnapshot};
use observe::{Poller, Snapshot, SnapshotErrorKind};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::{info, warn};
use workqueue::{Connection, NatsSettings, chain};

use crate::metrics::GatewayMetrics;

/// The number of points that are kept: five minutes, one a second.
const POINTS: usize = 300;

/// The interval of the snapshots.
const INTERVAL: Duration = Duration::from_secs(1);

/// An update, which each page gets each second.
#[derive(Serialize)]
struct Update<'a> {
    at: i64,
    /// The reason if there is no new snapshot.
    trouble: Option<&'a Explained>,
    /// The last snapshot.
    flow: Option<&'a Snapshot>,
    point: &'a Point,
}

/// The reason for which there is no snapshot.
#[derive(Clone, Debug, Serialize)]
struct Explained {
    kind: SnapshotErrorKind,
    words: String,
}

/// Waiting, in flight, in and out a second, and whether it is paused, and full.
type QueuePoint = (u64, u64, f64, f64, bool, bool);

/// The numbers of a second.
#[derive(Clone, Debug, Serialize)]
struct Point {
    /// The number of the second since the start of the gateway.
    n: u64,
    /// The time in milliseconds.
    at: i64,
    /// For each queue, unless the broker did not answer.
    queues: Option<Vec<QueuePoint>>,
    /// For the queue SCHEDULES.
    schedules: Option<QueuePoint>,
    requestors: usize,
    generators: usize,
}

/// The newest snapshot, and the points before it.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    newest: watch::Sender<Arc<str>>,
    past: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    points: VecDeque<Point>,
    taken: u64,
    last: Option<Snapshot>,
}

impl Timeline {
    /// Records a snapshot, or the reason for which there is none, and sends it to all pages.
    fn note(&self, at: Timestamp, seen: Result<Snapshot, Explained>) {
        let mut past = self.past();
        let past = &mut *past;
        let at = at.as_millisecond();
        let (flow, trouble) = match seen {
            Ok(flow) => (Some(flow), None),
            Err(trouble) => (None, Some(trouble)),
        };
        past.taken += 1;
        let point = |it: &QueueSnapshot| {
            (
                it.waiting,
                it.in_flight,
                it.arrival_rate,
                it.departure_rate,
                it.paused_until.is_some(),
                it.full,
            )
        };
        let queues = flow.as_ref().map(|flow| flow.queues.iter().map(point).collect());
        let schedules = flow.as_ref().map(|flow| point(&flow.schedules));
        let point = Point {
            n: past.taken,
            at,
            queues,
            schedules,
            requestors: flow.as_ref().map_or(0, |flow| flow.replicas.requestors),
            generators: flow.as_ref().map_or(0, |flow| flow.replicas.generators),
        };
        if past.points.len() == POINTS {
            past.points.pop_front();
        }
        past.points.push_back(point.clone());
        past.last = flow.or(past.last.take());
        let flow = past.last.as_ref();
        let update = Update { at, trouble: trouble.as_ref(), flow, point: &point };
        self.newest.send_replace(json(&update));
    }

    /// Records the replicas, while the rest of the snapshot fails.
    fn note_replicas(&self, replicas: ReplicasSnapshot) {
        self.past().last.get_or_insert_default().replicas = replicas;
    }

    /// The newest update, and each later one, as JSON.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<str>> {
        self.newest.subscribe()
    }

    /// The last snapshot, unless a later one has failed.
    pub(crate) fn current(&self) -> Option<Snapshot> {
        let past = self.past();
        past.points.back()?.queues.as_ref()?;
        past.last.clone()
    }

    /// The last five minutes, as JSON.
    pub(crate) fn history(&self) -> Arc<str> {
        json(&self.past().points)
    }

    fn past(&self) -> MutexGuard<'_, History> {
        self.past.lock().expect("nothing panics while it holds this lock")
    }
}

/// The JSON that is sent to a page.
pub(crate) fn json(value: &impl Serialize) -> Arc<str> {
    serde_json::to_string(value).expect("nothing of the page's can fail to become JSON").into()
}

/// Records each second that no broker answers, or its `refusal`, until this is dropped.
pub(crate) async fn wait(
    timeline: &Timeline,
    nats: &NatsSettings,
    refusal: impl Fn() -> Option<String>,
) -> Infallible {
    // Without the password that the address may contain.
    let broker = nats.broker();
    let words = format!("no broker answers at {broker} yet");
    let mut seconds = interval_at(Instant::now() + INTERVAL, INTERVAL);
    loop {
        seconds.tick().await;
        let trouble = Explained { kind: SnapshotErrorKind::Silent, words: words.clone() };
        timeline.note(workqueue::now(), Err(refused(refusal()).unwrap_or(trouble)));
    }
}

/// The reason for the page, if the broker refuses the credentials of this gateway.
fn refused(refusal: Option<String>) -> Option<Explained> {
    refusal.map(|words| Explained { kind: SnapshotErrorKind::Refused, words })
}

/// Takes a snapshot each second, and records it, or the reason for which there is none, such as the broker's `refusal`.
pub(crate) async fn poll(
    timeline: &Timeline,
    metrics: &GatewayMetrics,
    connection: &Connection,
    refusal: impl Fn() -> Option<String>,
) -> Infallible {
    let mut seconds = interval(INTERVAL);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poller = Poller::new(connection);
    let mut saw = true;
    loop {
        seconds.tick().await;
        let seen = poller.snapshot().await;
        metrics.snapshots.inc();
        match &seen {
            Err(error) => {
                metrics.failed_snapshots.inc();
                if saw {
                    warn!("no snapshot: {}", chain(&**error));
                }
            }
            Ok(_) if !saw => info!("the broker answers"),
            Ok(_) => {}
        }
        saw = seen.is_ok();
        let seen = seen.map_err(|error| {
            let kind = SnapshotErrorKind::of(&error);
            if kind != SnapshotErrorKind::Silent {
                timeline.note_replicas(poller.replicas());
            }
            refused(refusal()).unwrap_or_else(|| Explained { kind, words: chain(&*error) })
        });
        timeline.note(workqueue::now(), seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(timeline: &Timeline) -> Vec<serde_json::Value> {
        serde_json::from_str(&timeline.history()).unwrap()
    }

    #[test]
    fn history_has_the_last_five_minutes() {
        let timeline = Timeline::default();
        for _ in 0..POINTS + 10 {
            timeline.note(workqueue::now(), Ok(Snapshot::default()));
        }
        let points = points(&timeline);
        assert_eq!(points.len(), POINTS);
        assert_eq!(points[0]["n"], 11);
    }

    #[test]
    fn last_snapshot_stays_while_the_broker_is_silent() {
        let timeline = Timeline::default();
        let replicas = ReplicasSnapshot { requestors: 1, ..ReplicasSnapshot::default() };
        let queues = vec![QueueSnapshot::default()];
        timeline.note(workqueue::now(), Ok(Snapshot { replicas, queues, ..Snapshot::default() }));
        assert!(timeline.current().is_some());
        let trouble = Explained { kind: SnapshotErrorKind::Silent, words: "no broker".to_owned() };
        timeline.note(workqueue::now(), Err(trouble));
        assert!(timeline.current().is_none());
        let newest: serde_json::Value = serde_json::from_str(&timeline.watch().borrow()).unwrap();
        assert_eq!(newest["trouble"]["kind"], "silent");
        assert_eq!(newest["trouble"]["words"], "no broker");
        assert_eq!(newest["flow"]["requestors"], 1);
        let points = points(&timeline);
        assert!(points[0]["queues"].is_array());
        assert!(points[1]["queues"].is_null());
        assert_eq!(points[1]["requestors"], 0);
    }
}
