//! Who is there: asks all replicas to announce themselves, and remembers for a while who did.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::picture::{ReplicaPicture, shortened};

/// Whom to ask: everybody.
const QUESTION: &str = "$SRV.STATS";

/// How long to listen for answers. One that comes later counts the next time.
const LISTEN: Duration = Duration::from_millis(400);

/// After how long without an answer a replica is shown as silent, and when it is forgotten.
const SILENT: Duration = Duration::from_millis(1800);
const GONE: Duration = Duration::from_secs(10);

/// How many replicas to remember, and how many of each side to show.
const MOST: usize = 1000;
const SHOWN: usize = 24;

/// The sides, as they announce themselves.
const SIDES: [&str; 2] = ["requestor", "generator"];

/// All replicas that have announced themselves.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    answers: Option<Answers>,
    known: HashMap<String, Replica>,
}

#[derive(Debug)]
struct Answers {
    inbox: String,
    heard: Subscriber,
}

#[derive(Debug)]
struct Replica {
    side: &'static str,
    instance: String,
    version: String,
    state: &'static str,
    heard_at: Instant,
    settled: u64,
    rate: f64,
    in_flight: u64,
}

/// What a replica answers, as far as it is shown.
#[derive(Deserialize)]
struct Stats {
    name: String,
    id: String,
    version: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    instance: Option<String>,
    state: Option<String>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default)]
    num_requests: u64,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    in_flight: i64,
}

impl Replicas {
    /// Asks who is there, and listens for a moment.
    pub(super) async fn ask(&mut self, client: &Client) -> anyhow::Result<()> {
        let what = "cannot ask who is there";
        let Answers { inbox, heard } = if let Some(answers) = &mut self.answers {
            answers
        } else {
            let inbox = client.new_inbox();
            let heard = client.subscribe(inbox.clone()).await.context(what)?;
            self.answers.insert(Answers { inbox, heard })
        };
        let inbox = inbox.clone();
        client.publish_with_reply(QUESTION, inbox, Bytes::new()).await.context(what)?;
        let end = Instant::now() + LISTEN;
        let mut answers = Vec::new();
        while let Ok(Some(answer)) = timeout_at(end, heard.next()).await {
            answers.push((Instant::now(), answer.payload));
        }
        for (at, answer) in answers {
            self.note(&answer, at);
        }
        self.known.retain(|_, replica| replica.heard_at.elapsed() < GONE);
        Ok(())
    }

    /// Notes an answer. Anybody may have given it, so it may be anything.
    fn note(&mut self, answer: &[u8], at: Instant) {
        let Ok(stats) = serde_json::from_slice::<Stats>(answer) else { return };
        let Some(side) = SIDES.into_iter().find(|side| *side == stats.name) else { return };
        let instance = shortened(stats.metadata.instance.as_deref().unwrap_or(&stats.id));
        let settled = stats.endpoints.iter().map(|endpoint| endpoint.num_requests).sum();
        let in_flight = stats.endpoints.iter().filter_map(|it| it.data.as_ref());
        let in_flight = in_flight.map(|data| u64::try_from(data.in_flight).unwrap_or(0)).sum();
        let before = self.known.remove(&stats.id);
        let rate = before.map_or(0.0, |before| {
            let seconds = at.duration_since(before.heard_at).as_secs_f64();
            super::look::rate(settled, before.settled, seconds)
        });
        // One that was started again under the same name takes the place of the one that is gone.
        self.known.retain(|_, known| known.side != side || known.instance != instance);
        if self.known.len() >= MOST {
            return;
        }
        let standing = match stats.metadata.state.as_deref() {
            Some("stopping") => "stopping",
            Some("starting") => "starting",
            _ => "ready",
        };
        let version = shortened(&stats.version);
        let replica = Replica {
            side,
            instance,
            version,
            state: standing,
            heard_at: at,
            settled,
            rate,
            in_flight,
        };
        self.known.insert(stats.id, replica);
    }

    /// How many of a side are at work, or about to be.
    pub(super) fn working(&self, side: &str) -> usize {
        let working = |replica: &&Replica| replica.side == side && replica.works();
        self.known.values().filter(working).count()
    }

    /// All replicas by their names, and how many more there are than have room.
    pub(super) fn picture(&self) -> (Vec<ReplicaPicture>, usize) {
        let mut shown = Vec::new();
        for side in SIDES {
            let of_side = self.known.values().filter(|replica| replica.side == side);
            let mut of_side: Vec<&Replica> = of_side.collect();
            of_side.sort_by(|a, b| a.instance.cmp(&b.instance));
            shown.extend(of_side.into_iter().take(SHOWN).map(Replica::picture));
        }
        let more = self.known.len() - shown.len();
        (shown, more)
    }
}

impl Replica {
    fn is_silent(&self) -> bool {
        self.heard_at.elapsed() > SILENT
    }

    fn works(&self) -> bool {
        !self.is_silent() && self.state != "stopping"
    }

    fn picture(&self) -> ReplicaPicture {
        ReplicaPicture {
            side: self.side,
            instance: self.instance.clone(),
            version: self.version.clone(),
            state: if self.is_silent() { "silent" } else { self.state },
            rate: if self.is_silent() { 0.0 } else { self.rate },
            in_flight: self.in_flight,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::advance;

    use super::*;

    fn note(replicas: &mut Replicas, id: &str, instance: &str, state: &str, settled: u64) {
        let answer = json!({
            "name": "generator", "id": id, "version": "1.2.3",
            "metadata": { "instance": instance, "state": state },
            "endpoints": [{ "num_requests": settled, "data": { "in_flight": 2 } }],
        });
        replicas.note(answer.to_string().as_bytes(), Instant::now());
    }

    fn states(replicas: &Replicas) -> Vec<(String, &'static str)> {
        let (shown, _) = replicas.picture();
        shown.into_iter().map(|replica| (replica.instance, replica.state)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_falls_silent_turns_grey_and_does_not_work() {
        let mut replicas = Replicas::default();
        note(&mut replicas, "1", "a", "ready", 10);
        advance(Duration::from_secs(1)).await;
        note(&mut replicas, "1", "a", "ready", 30);
        let (shown, _) = replicas.picture();
        assert!((shown[0].rate - 20.0).abs() < 1e-6, "{shown:?}");
        assert_eq!(replicas.working("generator"), 1);
        advance(Duration::from_secs(2)).await;
        assert_eq!(states(&replicas), [("a".to_owned(), "silent")]);
        assert_eq!(replicas.working("generator"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stops_says_so_and_its_successor_takes_its_place() {
        let mut replicas = Replicas::default();
        note(&mut replicas, "1", "a", "stopping", 10);
        assert_eq!(states(&replicas), [("a".to_owned(), "stopping")]);
        assert_eq!(replicas.working("generator"), 0);
        note(&mut replicas, "2", "a", "ready", 0);
        assert_eq!(states(&replicas), [("a".to_owned(), "ready")]);
    }

    #[tokio::test(start_paused = true)]
    async fn any_answer_is_borne_and_any_number_of_them() {
        let mut replicas = Replicas::default();
        for answer in ["", "{}", "null", r#"{"name":"other","id":"1","version":"1"}"#] {
            replicas.note(answer.as_bytes(), Instant::now());
        }
        assert_eq!(states(&replicas), []);
        for number in 0..2 * MOST {
            note(&mut replicas, &number.to_string(), &number.to_string(), "ready", 0);
        }
        let (shown, more) = replicas.picture();
        assert_eq!((shown.len(), more), (SHOWN, MOST - SHOWN));
    }
}
