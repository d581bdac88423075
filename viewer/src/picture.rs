//! What is shown: the newest picture of the flow, and the last five minutes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use contract::facts::Received;
use contract::queues::{Acknowledgment, Request};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

/// How many points of the past are kept: five minutes, one a second.
pub(crate) const POINTS: usize = 300;

/// How many characters of a string, or of a name that anybody may choose, are shown.
const SHOWN: usize = 48;

/// A moment of one queue.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct QueuePicture {
    pub(crate) name: &'static str,
    /// Messages that nobody has taken yet.
    pub(crate) waiting: u64,
    /// Messages that were delivered and are not settled yet.
    pub(crate) in_flight: u64,
    /// The most that it holds, if there is a limit.
    pub(crate) limit: Option<u64>,
    /// Messages a second that come in, and that go out.
    pub(crate) come: f64,
    pub(crate) go: f64,
    pub(crate) redelivered: u64,
}

/// A replica that has announced itself.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ReplicaPicture {
    /// requestor or generator.
    pub(crate) side: &'static str,
    pub(crate) id: String,
    pub(crate) instance: String,
    pub(crate) version: String,
    /// starting, ready, stopping, or silent where it does not answer any more.
    pub(crate) state: &'static str,
    /// Deliveries a second that it settles.
    pub(crate) rate: f64,
    pub(crate) in_flight: u64,
}

/// How many there are in all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Numbers {
    pub(crate) requested: u64,
    pub(crate) stored: u64,
    pub(crate) received: u64,
    pub(crate) dead_letters: u64,
    pub(crate) pending: u64,
    pub(crate) redelivered: u64,
    /// Of the requests that are remembered: neither received, nor in a queue, nor among the dead letters,
    /// as far as the counts of several looks say.
    pub(crate) missing: u64,
    /// Facts that were written a second time.
    pub(crate) twice: u64,
}

/// How long a loop takes, of a sample of the last ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) loops: usize,
    /// Those that ended before they began, by clocks that differ.
    pub(crate) backwards: usize,
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
}

/// One of the last requests, and how far it has come.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Way {
    id: String,
    count: u32,
    requested_at: Timestamp,
    requestor: String,
    string: Option<String>,
    /// Its strings are too large to be read once a second, so nobody has looked what is stored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unread: bool,
    generator: Option<String>,
    generated_at: Option<Timestamp>,
    stored_by: Option<String>,
    stored_at: Option<Timestamp>,
    marked_by: Option<String>,
    received_at: Option<Timestamp>,
}

impl Way {
    pub(crate) fn new(
        request: &Request,
        stored: Option<&Acknowledgment>,
        received: Option<&Received>,
        unread: bool,
    ) -> Self {
        let string = stored.and_then(|stored| stored.values.as_slice().first());
        Self {
            id: request.id.to_string(),
            count: request.amount.count(),
            requested_at: request.requested_at,
            requestor: shortened(&request.requestor),
            unread,
            string: string.map(|string| shortened(string)),
            generator: stored.map(|stored| shortened(&stored.generator)),
            generated_at: stored.map(|stored| stored.generated_at),
            stored_by: stored.map(|stored| shortened(&stored.requestor)),
            stored_at: stored.map(|stored| stored.stored_at),
            marked_by: received.map(|received| shortened(&received.marked_by)),
            received_at: received.map(|received| received.received_at),
        }
    }
}

/// The beginning of a text that may be long.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Who is there.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct There {
    pub(crate) replicas: Vec<ReplicaPicture>,
    /// Replicas of each side for which there is no room in the picture.
    pub(crate) more_requestors: usize,
    pub(crate) more_generators: usize,
    /// Replicas that work, of each side.
    pub(crate) requestors: usize,
    pub(crate) generators: usize,
}

/// Why there is nothing new to see.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    pub(crate) words: String,
}

/// What has to be done about trouble depends on what kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The broker is not there, or says nothing.
    Silent,
    /// It is there, and nobody has declared the queues.
    Undeclared,
    /// It is there, and does not say what it is asked.
    Refused,
}

/// What was seen of the flow in one look.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Flow {
    pub(crate) queues: Vec<QueuePicture>,
    #[serde(flatten)]
    pub(crate) there: There,
    pub(crate) numbers: Numbers,
    pub(crate) latency: Latency,
    pub(crate) last: Vec<Way>,
}

/// The newest picture.
#[derive(Serialize)]
struct Picture<'a> {
    at: i64,
    /// Why there is nothing new to see, if so.
    trouble: Option<&'a Trouble>,
    /// What was seen last.
    flow: Option<&'a Flow>,
    point: &'a Point,
}

/// A second of the past, as small as can be.
#[derive(Clone, Debug, Serialize)]
struct Point {
    /// Which second it is, counted from the start of the viewer.
    n: u64,
    /// When, in milliseconds.
    at: i64,
    /// Of each queue: waiting, in flight, in and out a second; nothing where the broker was silent.
    queues: Option<Vec<(u64, u64, f64, f64)>>,
    requestors: usize,
    generators: usize,
}

/// The pictures, for whoever looks.
pub(crate) struct Pictures {
    newest: watch::Sender<Arc<str>>,
    past: Mutex<Past>,
}

#[derive(Default)]
struct Past {
    points: VecDeque<Point>,
    taken: u64,
    last: Option<Flow>,
}

impl Default for Pictures {
    fn default() -> Self {
        Self { newest: watch::Sender::new("".into()), past: Mutex::default() }
    }
}

impl Pictures {
    /// Notes what was seen, or why nothing was, and shows it to all.
    pub(crate) fn take(&self, at: Timestamp, seen: Result<Flow, Trouble>) {
        let mut past = self.past.lock().expect("nothing panics while it holds this lock");
        let past = &mut *past;
        let at = at.as_millisecond();
        let (flow, trouble) = match seen {
            Ok(flow) => (Some(flow), None),
            Err(trouble) => (None, Some(trouble)),
        };
        let queues = flow.as_ref().map(|flow| {
            let queues = flow.queues.iter();
            queues.map(|queue| (queue.waiting, queue.in_flight, queue.come, queue.go)).collect()
        });
        past.taken += 1;
        let point = Point {
            n: past.taken,
            at,
            queues,
            requestors: flow.as_ref().map_or(0, |flow| flow.there.requestors),
            generators: flow.as_ref().map_or(0, |flow| flow.there.generators),
        };
        if past.points.len() == POINTS {
            past.points.pop_front();
        }
        past.points.push_back(point.clone());
        if flow.is_some() {
            past.last = flow;
        }
        let flow = past.last.as_ref();
        let picture = Picture { at, trouble: trouble.as_ref(), flow, point: &point };
        self.newest.send_replace(json(&picture));
    }

    /// Notes who is there, while nothing else can be seen.
    pub(crate) fn meet(&self, there: There) {
        let mut past = self.past.lock().expect("nothing panics while it holds this lock");
        past.last.get_or_insert_default().there = there;
    }

    /// The newest picture, and each that comes, as JSON.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<str>> {
        self.newest.subscribe()
    }

    /// The last five minutes, as JSON.
    pub(crate) fn history(&self) -> Arc<str> {
        json(&self.past.lock().expect("nothing panics while it holds this lock").points)
    }
}

/// Something of the page's in JSON.
pub(crate) fn json(value: &impl Serialize) -> Arc<str> {
    serde_json::to_string(value).expect("nothing of the page's can fail to become JSON").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(pictures: &Pictures) -> Vec<serde_json::Value> {
        serde_json::from_str(&pictures.history()).unwrap()
    }

    #[test]
    fn the_past_is_no_longer_than_five_minutes() {
        let pictures = Pictures::default();
        for _ in 0..POINTS + 10 {
            pictures.take(workqueue::now(), Ok(Flow::default()));
        }
        let points = points(&pictures);
        assert_eq!(points.len(), POINTS);
        assert_eq!(points[0]["n"], 11);
    }

    #[test]
    fn while_the_broker_is_silent_the_last_picture_stays_and_the_past_has_a_gap() {
        let pictures = Pictures::default();
        let there = There { requestors: 1, ..There::default() };
        let flow = Flow { there, queues: vec![QueuePicture::default()], ..Flow::default() };
        pictures.take(workqueue::now(), Ok(flow));
        let trouble = Trouble { kind: Kind::Silent, words: "no broker".to_owned() };
        pictures.take(workqueue::now(), Err(trouble));
        let newest: serde_json::Value = serde_json::from_str(&pictures.watch().borrow()).unwrap();
        assert_eq!(newest["trouble"]["kind"], "silent");
        assert_eq!(newest["trouble"]["words"], "no broker");
        assert_eq!(newest["flow"]["requestors"], 1);
        let points = points(&pictures);
        assert!(points[0]["queues"].is_array());
        assert!(points[1]["queues"].is_null());
        assert_eq!(points[1]["requestors"], 0);
    }

    #[test]
    fn what_anybody_may_choose_is_not_shown_without_end() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ü".repeat(100)).chars().count(), SHOWN + 1);
    }
}
