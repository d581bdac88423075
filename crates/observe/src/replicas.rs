//! Asks all replicas to announce themselves, and remembers their answers for a while.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use bytes::Bytes;
use contract::queues::{self, REQUESTS};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::snapshot::{ReplicaSnapshot, ReplicasSnapshot, SHOWN_CHARACTERS, rate, shortened};

/// The question to all services.
const QUESTION: &str = "$SRV.STATS";

/// The time for the answers. A later answer does not count.
const LISTEN: Duration = Duration::from_millis(600);

/// The limits for the number of answers, the size of an answer, and the size of the id in it.
const MOST_ANSWERS: usize = 2000;
const MOST_BYTES: usize = 8 * 1024;
const MOST_ID_BYTES: usize = 64;

/// The times without an answer after which a replica counts as silent, and after which it is forgotten.
const SILENT: Duration = Duration::from_millis(1800);
const GONE: Duration = Duration::from_secs(10);

/// The most replicas that are remembered, and the most of each service that are shown.
const MOST: usize = 1000;
const SHOWN: usize = 24;

/// The names under which the services announce themselves.
const SERVICES: [&str; 2] = ["requestor", "generator"];

/// All replicas that have announced themselves.
#[derive(Debug, Default)]
pub(crate) struct ReplicaRegistry {
    /// By their ids. Names are not unique: another client may use the same one.
    known: HashMap<String, KnownReplica>,
}

#[derive(Debug)]
struct KnownReplica {
    /// Its last announcement, with its full name: two shortened names could be equal.
    last: ReplicaSnapshot,
    heard_at: Instant,
    /// The number of deliveries of each queue that it has settled.
    settled: BTreeMap<String, u64>,
    asked: u64,
    /// The number of publishes for which each stream had no room.
    full: HashMap<String, u64>,
    sends_bundles: bool,
}

/// The part of a replica's answer that the snapshot uses.
#[derive(Deserialize)]
struct ReplicaStats {
    name: String,
    id: String,
    version: String,
    #[serde(default)]
    metadata: HashMap<String, String>,
    #[serde(default)]
    endpoints: Vec<ReplicaEndpoint>,
    #[serde(default)]
    publishes: HashMap<String, ReplicaPublishes>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReplicaPublishes {
    confirmed: u64,
    full: u64,
}

#[derive(Deserialize)]
struct ReplicaEndpoint {
    #[serde(default)]
    name: String,
    #[serde(default)]
    num_requests: u64,
    #[serde(default)]
    data: Value,
}

impl ReplicaRegistry {
    /// Asks all replicas, and listens for their answers.
    pub(crate) async fn ask(&mut self, client: &Client) -> anyhow::Result<()> {
        let what = "cannot ask for replicas";
        let inbox = client.new_inbox();
        let mut heard = client.subscribe(inbox.clone()).await.context(what)?;
        // The broker drops all further answers to this inbox.
        heard.unsubscribe_after(MOST_ANSWERS as u64).await.context(what)?;
        client.publish_with_reply(QUESTION, inbox, Bytes::new()).await.context(what)?;
        let end = Instant::now() + LISTEN;
        while let Ok(Some(answer)) = timeout_at(end, heard.next()).await {
            self.note(&answer.payload, Instant::now());
        }
        self.known.retain(|_, replica| !replica.is_gone());
        Ok(())
    }

    /// Whether one of them may put several requests into a message.
    pub(crate) fn send_bundles(&self) -> bool {
        self.known.values().any(|known| known.sends_bundles)
    }

    /// Records an answer. Any client may have sent it, so it is not trusted.
    fn note(&mut self, answer: &[u8], at: Instant) {
        if answer.len() > MOST_BYTES {
            return;
        }
        let Ok(reply) = serde_json::from_slice::<ReplicaStats>(answer) else { return };
        let Some(service) = SERVICES.into_iter().find(|service| *service == reply.name) else {
            return;
        };
        if reply.id.len() > MOST_ID_BYTES {
            return;
        }
        let instance = reply.metadata.get("instance").unwrap_or(&reply.id).clone();
        let sends_bundles = reply.metadata.get("bundle_limit").is_some_and(|limit| limit != "1");
        let settled = reply.endpoints.iter();
        let settled: BTreeMap<String, u64> =
            settled.filter_map(|it| Some((known_stream(&it.name)?, it.num_requests))).collect();
        let in_flight_by_queue: BTreeMap<String, u64> = reply
            .endpoints
            .iter()
            .filter_map(|it| Some((known_stream(&it.name)?, it.data["in_flight"].as_u64()?)))
            .filter(|(_, in_flight)| *in_flight > 0)
            .collect();
        let in_flight = reply.endpoints.iter().filter_map(|it| it.data["in_flight"].as_u64());
        let in_flight = in_flight.fold(0, u64::saturating_add);
        let asked = reply.publishes.get(REQUESTS.stream).map_or(0, |counts| counts.confirmed);
        let full = reply
            .publishes
            .iter()
            .filter_map(|(stream, counts)| Some((known_stream(stream)?, counts.full)));
        let full: HashMap<String, u64> = full.collect();
        let before = self.known.remove(&reply.id);
        let (mut settle_rates, mut request_rate, mut full_streams) =
            (BTreeMap::new(), 0.0, Vec::new());
        if let Some(before) = before {
            let seconds = at.duration_since(before.heard_at).as_secs_f64();
            let settles_of = |(queue, now): (&String, &u64)| {
                let then = before.settled.get(queue).unwrap_or(now);
                (queue.clone(), rate(*now, *then, seconds))
            };
            settle_rates = settled.iter().map(settles_of).collect();
            request_rate = rate(asked, before.asked, seconds);
            let waits = |(stream, now): (&String, &u64)| {
                (now > before.full.get(stream).unwrap_or(now)).then(|| stream.clone())
            };
            full_streams = full.iter().filter_map(waits).collect();
            full_streams.sort();
        }
        // A restarted replica replaces its silent predecessor of the same name. A replica that still answers stays:
        // another client may use its name.
        self.known.retain(|_, known| {
            known.last.service != service || known.last.instance != instance || !known.is_silent()
        });
        if self.known.len() >= MOST {
            return;
        }
        let state = match reply.metadata.get("state").map(String::as_str) {
            Some("stopping") => "stopping",
            Some("starting") => "starting",
            _ => "ready",
        };
        let (id, version) = (reply.id.clone(), shortened(&reply.version, SHOWN_CHARACTERS));
        let last = ReplicaSnapshot {
            service,
            id,
            instance,
            version,
            state,
            settle_rates,
            in_flight,
            in_flight_by_queue,
            request_rate,
            full_streams,
        };
        let known = KnownReplica { last, heard_at: at, settled, asked, full, sends_bundles };
        self.known.insert(reply.id, known);
    }

    /// The number of replicas of a service that work, or are starting.
    fn working(&self, service: &str) -> usize {
        let of_service = self.known.values().filter(|replica| replica.last.service == service);
        of_service.filter(|it| !it.is_silent() && it.last.state != "stopping").count()
    }

    /// The first replicas of each service by name, and the numbers of the others.
    pub(crate) fn snapshot(&self) -> ReplicasSnapshot {
        let mut replicas = Vec::new();
        let [more_requestors, more_generators] = SERVICES.map(|service| {
            let of_service = self.known.values().filter(|replica| replica.last.service == service);
            let mut of_service: Vec<&KnownReplica> = of_service.collect();
            of_service.sort_by_key(|replica| (&replica.last.instance, &replica.last.id));
            replicas.extend(of_service.iter().take(SHOWN).map(|replica| replica.snapshot()));
            of_service.len().saturating_sub(SHOWN)
        });
        let [requestors, generators] = SERVICES.map(|service| self.working(service));
        ReplicasSnapshot { replicas, more_requestors, more_generators, requestors, generators }
    }
}

impl KnownReplica {
    /// Whether it is forgotten. A replica that announced its stop is forgotten as soon as it is silent.
    fn is_gone(&self) -> bool {
        let patience = if self.last.state == "stopping" { SILENT } else { GONE };
        self.heard_at.elapsed() > patience
    }

    fn is_silent(&self) -> bool {
        self.heard_at.elapsed() > SILENT
    }

    fn snapshot(&self) -> ReplicaSnapshot {
        let mut snapshot = self.last.clone();
        snapshot.instance = shortened(&snapshot.instance, SHOWN_CHARACTERS);
        if self.is_silent() {
            (snapshot.state, snapshot.request_rate) = ("silent", 0.0);
            snapshot.settle_rates.clear();
            snapshot.full_streams.clear();
        }
        snapshot
    }
}

/// The name, if it is that of a queue. An answer may contain any number of other names.
fn known_stream(name: &str) -> Option<String> {
    queues::ALL.iter().any(|queue| queue.stream == name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::advance;

    use super::*;

    fn note(replicas: &mut ReplicaRegistry, id: &str, instance: &str, state: &str, settled: u64) {
        let answer = json!({
            "name": "generator", "id": id, "version": "1.2.3",
            "metadata": { "instance": instance, "state": state },
            "endpoints": [{ "name": "REQUESTS", "num_requests": settled, "data": { "in_flight": 2 } }],
        });
        replicas.note(answer.to_string().as_bytes(), Instant::now());
    }

    fn states(replicas: &ReplicaRegistry) -> Vec<(String, &'static str)> {
        let shown = replicas.snapshot().replicas;
        shown.into_iter().map(|replica| (replica.instance, replica.state)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_replica_does_not_count_as_working() {
        let mut replicas = ReplicaRegistry::default();
        note(&mut replicas, "1", "a", "ready", 10);
        advance(Duration::from_secs(1)).await;
        note(&mut replicas, "1", "a", "ready", 30);
        let shown = replicas.snapshot().replicas;
        assert!((shown[0].settle_rates["REQUESTS"] - 20.0).abs() < 1e-6, "{shown:?}");
        assert_eq!(replicas.working("generator"), 1);
        advance(Duration::from_secs(2)).await;
        assert_eq!(states(&replicas), [("a".to_owned(), "silent")]);
        assert_eq!(replicas.working("generator"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn replica_has_its_rate_its_jobs_and_the_queues_it_waits_for() {
        let mut replicas = ReplicaRegistry::default();
        for (confirmed, full) in [(100, 7), (120, 9), (120, 9)] {
            let answer = json!({
                "name": "requestor", "id": "1", "version": "1.2.3",
                "endpoints": [
                    { "name": "RESPONSES", "data": { "in_flight": 2 } },
                    { "name": "OTHERS", "data": { "in_flight": 3 } },
                ],
                "publishes": { "REQUESTS": { "confirmed": confirmed, "full": full } },
            });
            replicas.note(answer.to_string().as_bytes(), Instant::now());
            let shown = replicas.snapshot().replicas.remove(0);
            assert_eq!(shown.in_flight_by_queue, BTreeMap::from([("RESPONSES".to_owned(), 2)]));
            let waits: &[&str] = if full == 9 && confirmed == 120 && shown.request_rate > 0.0 {
                &["REQUESTS"]
            } else {
                &[]
            };
            assert_eq!(shown.full_streams, waits);
            advance(Duration::from_secs(1)).await;
        }
        let shown = replicas.snapshot().replicas.remove(0);
        assert!(shown.request_rate.abs() < 1e-6, "{shown:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn successor_replaces_a_stopped_replica() {
        let mut replicas = ReplicaRegistry::default();
        note(&mut replicas, "1", "a", "stopping", 10);
        assert_eq!(states(&replicas), [("a".to_owned(), "stopping")]);
        assert_eq!(replicas.working("generator"), 0);
        advance(Duration::from_secs(2)).await;
        note(&mut replicas, "2", "a", "ready", 0);
        assert_eq!(states(&replicas), [("a".to_owned(), "ready")]);
    }

    #[tokio::test(start_paused = true)]
    async fn answering_replica_is_not_replaced_by_its_namesake() {
        let mut replicas = ReplicaRegistry::default();
        let long = "a".repeat(100);
        note(&mut replicas, "1", &long, "ready", 10);
        note(&mut replicas, "2", &long, "stopping", 0);
        note(&mut replicas, "3", &format!("{long}b"), "ready", 0);
        let states: Vec<_> = states(&replicas).into_iter().map(|(_, state)| state).collect();
        assert_eq!(states, ["ready", "stopping", "ready"]);
    }

    #[tokio::test(start_paused = true)]
    async fn huge_numbers_are_capped_and_huge_answers_ignored() {
        let mut replicas = ReplicaRegistry::default();
        let endpoint = json!({ "num_requests": u64::MAX, "data": { "in_flight": i64::MAX } });
        let mut answer = json!({
            "name": "generator", "id": "1", "version": "1",
            "endpoints": [endpoint, endpoint, endpoint],
        });
        replicas.note(answer.to_string().as_bytes(), Instant::now());
        assert_eq!(replicas.snapshot().replicas[0].in_flight, u64::MAX);
        for (id, version) in [("2", "x".repeat(MOST_BYTES)), (&"x".repeat(65), String::new())] {
            answer["id"] = id.into();
            answer["version"] = version.into();
            replicas.note(answer.to_string().as_bytes(), Instant::now());
        }
        assert_eq!(replicas.known.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn invalid_answers_are_ignored_and_their_number_is_limited() {
        let mut replicas = ReplicaRegistry::default();
        for answer in ["", "{}", "null", r#"{"name":"other","id":"1","version":"1"}"#] {
            replicas.note(answer.as_bytes(), Instant::now());
        }
        assert_eq!(states(&replicas), []);
        for number in 0..2 * MOST {
            note(&mut replicas, &number.to_string(), &number.to_string(), "ready", 0);
        }
        let snapshot = replicas.snapshot();
        assert_eq!((snapshot.replicas.len(), snapshot.more_generators), (SHOWN, MOST - SHOWN));
        assert_eq!(snapshot.more_requestors, 0);
    }
}
