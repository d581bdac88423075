//! Announces this replica by the service protocol of NATS (`$SRV`), so that a client of the broker
//! can list the replicas: the gateway does, and so does `nats micro list`.
//!
//! It only answers requests, and costs nothing otherwise. Nothing depends on it: the service works without it, such as
//! when its user may not subscribe.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;

use async_nats::Message;
use futures_util::StreamExt;
use futures_util::stream::select_all;
use jiff::Timestamp;
use serde::Serialize;
use tracing::{debug, warn};

use crate::clock::now;
use crate::connection::Connection;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::settings::Settings;

/// The prefix of the subjects of the protocol.
const PREFIX: &str = "$SRV";

/// The requests that it answers.
const VERBS: [&str; 3] = [PING, INFO, STATS];
const PING: &str = "PING";
const INFO: &str = "INFO";
const STATS: &str = "STATS";

/// The announcement of a replica.
#[derive(Debug)]
pub(crate) struct Announcement {
    name: &'static str,
    version: &'static str,
    id: String,
    instance: String,
    host: String,
    bundle_limit: String,
    started: Timestamp,
    queues: Vec<Queue>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// The fields that all answers share.
#[derive(Serialize)]
struct Identity<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'static str,
    id: &'a str,
    version: &'static str,
    metadata: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
struct Info<'a> {
    #[serde(flatten)]
    identity: Identity<'a>,
    description: &'static str,
    endpoints: Vec<Endpoint>,
}

#[derive(Serialize)]
struct Stats<'a> {
    #[serde(flatten)]
    identity: Identity<'a>,
    started: Timestamp,
    endpoints: Vec<EndpointStats>,
    /// The streams that it publishes to. The protocol has no such field, and its clients ignore unknown fields.
    publishes: BTreeMap<&'static str, Publishes>,
}

/// The number of publishes to one stream, by result.
#[derive(Serialize)]
struct Publishes {
    confirmed: u64,
    full: u64,
}

/// A queue that this replica takes jobs from, in the form of an endpoint of the protocol.
#[derive(Serialize)]
struct Endpoint {
    name: &'static str,
    subject: String,
    queue_group: &'static str,
}

#[derive(Serialize)]
struct EndpointStats {
    #[serde(flatten)]
    endpoint: Endpoint,
    num_requests: u64,
    num_errors: u64,
    last_error: &'static str,
    /// In nanoseconds.
    processing_time: u64,
    average_processing_time: u64,
    data: Data,
}

#[derive(Serialize)]
struct Data {
    in_flight: i64,
}

impl Announcement {
    pub(crate) fn new(
        name: &'static str,
        version: &'static str,
        settings: &Settings,
        queues: Vec<Queue>,
        health: &Arc<Health>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            name,
            version,
            id: format!("{:016x}", rand::random::<u64>()),
            instance: settings.instance.clone(),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            bundle_limit: settings.bundle_limit.to_string(),
            started: now(),
            queues,
            health: Arc::clone(health),
            metrics: Arc::clone(metrics),
        }
    }

    /// The name of the service.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The sources of its answers.
    pub(crate) fn reads(&self) -> (Arc<Health>, Arc<Metrics>) {
        (Arc::clone(&self.health), Arc::clone(&self.metrics))
    }

    /// Answers each request, as long as it runs.
    pub(crate) async fn serve(self, connection: Connection) {
        let client = connection.client();
        let mut questions = Vec::new();
        for subject in self.subjects() {
            match client.subscribe(subject).await {
                Ok(subscription) => questions.push(subscription),
                Err(error) => {
                    warn!(%error, "cannot subscribe to $SRV; service discovery will not list this replica");
                }
            }
        }
        let mut questions = select_all(questions);
        while let Some(Message { subject, reply, .. }) = questions.next().await {
            let (Some(reply), Some(answer)) = (reply, self.answer(&subject)) else { continue };
            if let Err(error) = client.publish(reply, answer.into()).await {
                debug!(%error, "could not answer a service discovery request");
            }
        }
        // The client has ended. Other tasks handle that.
        pending::<()>().await;
    }

    /// The subjects to listen to: requests to all services, to those of this name, and to this replica.
    fn subjects(&self) -> impl Iterator<Item = String> {
        let Self { name, id, .. } = self;
        let of_this_name = [format!("{PREFIX}.*.{name}"), format!("{PREFIX}.*.{name}.{id}")];
        VERBS.into_iter().map(|verb| format!("{PREFIX}.{verb}")).chain(of_this_name)
    }

    /// The answer to a request under this subject, if the subject belongs to the protocol.
    fn answer(&self, subject: &str) -> Option<Vec<u8>> {
        let verb = subject.split('.').nth(1)?;
        let answer = match verb {
            PING => serde_json::to_vec(&self.identity("io.nats.micro.v1.ping_response")),
            INFO => serde_json::to_vec(&self.info()),
            STATS => serde_json::to_vec(&self.stats()),
            _ => return None,
        };
        answer.ok()
    }

    fn identity(&self, kind: &'static str) -> Identity<'_> {
        let metadata = BTreeMap::from([
            ("instance", self.instance.as_str()),
            ("host", self.host.as_str()),
            ("bundle_limit", self.bundle_limit.as_str()),
            ("state", self.health.state()),
        ]);
        Identity { kind, name: self.name, id: &self.id, version: self.version, metadata }
    }

    fn info(&self) -> Info<'_> {
        Info {
            identity: self.identity("io.nats.micro.v1.info_response"),
            description: "Takes messages from queues; its endpoints are the queues",
            endpoints: self.each_queue(endpoint),
        }
    }

    fn stats(&self) -> Stats<'_> {
        let stats = |queue: Queue| {
            let metrics = self.metrics.of(queue);
            let settled = metrics.settled_so_far();
            let processing_time = metrics.handled_nanoseconds();
            EndpointStats {
                endpoint: endpoint(queue),
                num_requests: settled,
                num_errors: metrics.failed_so_far(),
                last_error: "",
                processing_time,
                average_processing_time: processing_time.checked_div(settled).unwrap_or_default(),
                data: Data { in_flight: metrics.in_flight_now() },
            }
        };
        Stats {
            identity: self.identity("io.nats.micro.v1.stats_response"),
            started: self.started,
            endpoints: self.each_queue(stats),
            publishes: self.publishes(),
        }
    }

    fn publishes(&self) -> BTreeMap<&'static str, Publishes> {
        let publishers = self.metrics.publishers();
        let counts = publishers.iter().map(|(stream, metrics)| {
            let (confirmed, full) = (metrics.confirmed.get(), metrics.full.get());
            (*stream, Publishes { confirmed, full })
        });
        counts.collect()
    }

    fn each_queue<T>(&self, what: impl Fn(Queue) -> T) -> Vec<T> {
        self.queues.iter().copied().map(what).collect()
    }
}

fn endpoint(queue: Queue) -> Endpoint {
    Endpoint {
        name: queue.stream,
        subject: queue.subjects().join(", "),
        queue_group: queue.consumer,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::spans::Span;

    const REQUESTS: Queue = Queue::new("REQUESTS", "requests").consumer("generator");

    fn announcement() -> Announcement {
        let (health, metrics) = (Arc::default(), Metrics::new("test"));
        let settings = Settings { instance: "generator-1".to_owned(), ..Settings::from_env() };
        Announcement::new("generator", "1.2.3", &settings, vec![REQUESTS], &health, &metrics)
    }

    fn answer(announcement: &Announcement, subject: &str) -> Value {
        serde_json::from_slice(&announcement.answer(subject).expect("an answer")).unwrap()
    }

    #[test]
    fn replica_announces_its_name_and_its_queues() {
        let announcement = announcement();
        let ping = answer(&announcement, "$SRV.PING");
        assert_eq!(ping["type"], "io.nats.micro.v1.ping_response");
        assert_eq!(ping["name"], "generator");
        assert_eq!(ping["version"], "1.2.3");
        assert_eq!(ping["metadata"]["instance"], "generator-1");
        assert_eq!(ping["metadata"]["bundle_limit"], "1");
        let info = answer(&announcement, "$SRV.INFO.generator");
        assert_eq!(info["id"], ping["id"]);
        assert_eq!(
            info["endpoints"],
            json!([{ "name": "REQUESTS", "subject": "requests.>", "queue_group": "generator" }])
        );
    }

    #[test]
    fn replica_counts_its_settlements() {
        let announcement = announcement();
        let metrics = announcement.metrics.of(REQUESTS);
        let _in_flight = [(); 3].map(|()| metrics.in_flight());
        metrics.settled(&metrics.acks, Duration::from_millis(10), &Span::default());
        metrics.settled(&metrics.naks, Duration::from_millis(30), &Span::default());
        let stats = answer(&announcement, "$SRV.STATS.generator.any");
        assert_eq!(stats["type"], "io.nats.micro.v1.stats_response");
        let endpoint = &stats["endpoints"][0];
        assert_eq!(endpoint["num_requests"], 2);
        assert_eq!(endpoint["num_errors"], 1);
        assert_eq!(endpoint["average_processing_time"], 20_000_000);
        assert_eq!(endpoint["data"]["in_flight"], 3);
    }

    #[test]
    fn replica_counts_its_publishes_by_stream() {
        let announcement = announcement();
        assert_eq!(answer(&announcement, "$SRV.STATS")["publishes"], json!({}));
        let metrics = announcement.metrics.publishes_to("RESPONSES");
        metrics.confirmed.inc_by(3);
        metrics.full.inc();
        let publishes = &answer(&announcement, "$SRV.STATS")["publishes"];
        assert_eq!(*publishes, json!({ "RESPONSES": { "confirmed": 3, "full": 1 } }));
    }

    #[test]
    fn replica_announces_that_it_stops() {
        let announcement = announcement();
        assert_eq!(answer(&announcement, "$SRV.STATS")["metadata"]["state"], "starting");
        announcement.health.set_connected(true);
        announcement.health.set_started();
        assert_eq!(answer(&announcement, "$SRV.STATS")["metadata"]["state"], "ready");
        announcement.health.set_stopping();
        assert_eq!(answer(&announcement, "$SRV.STATS")["metadata"]["state"], "stopping");
    }

    #[test]
    fn unknown_question_has_no_answer() {
        for subject in ["", "$SRV", "$SRV.", "$SRV.SCHEMA", "$SRV.ping", "$SRV..generator"] {
            assert_eq!(announcement().answer(subject), None, "{subject}");
        }
    }
}
