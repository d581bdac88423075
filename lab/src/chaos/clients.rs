//! Clients that make immediate, delayed and recurring requests, and cancel some of them, as clients of the gateway do.
//! They record the answers, which have to stay true.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use contract::Amount;
use contract::facts::Stored;
use contract::queues::{DueRequest, Request, SCHEDULES};
use jiff::Timestamp;
use requestor::Rate;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use workqueue::topology::{self, Limits};
use workqueue::{
    Connection, JobId, Metrics, Priority, Producer, PublishError, Recurrence, Settings, Trace, now,
    read_fact,
};

use crate::stored_facts::each_fact;

/// The number of clients. Each waits for one answer at a time.
const CLIENTS: usize = 4;

/// The pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(100);

/// The most requests a second of all clients together, the delayed and the recurring ones included.
pub(super) const MOST_A_SECOND: f64 = 50.0;

/// A client cancels each third of its requests.
const CANCELLED: usize = 3;

/// The time from a request to its cancellation is up to three times this.
const ON_THE_WAY: Duration = Duration::from_millis(1);

/// The time limit for the last answers. Only a broker that stays away reaches it.
const LIMIT: Duration = Duration::from_mins(2);

/// With each fifth request a client makes another one that is due a little later, and cancels every other one of these:
/// before, when, or after it is due.
const LATER: usize = 5;
const DELAY: Duration = Duration::from_millis(300);

/// The number of characters at the beginning of an id that encode its time.
const TIME: usize = "019cadd3-8896".len();

/// The name of the schedule, which fires each second, and the requestor of its requests.
const SCHEDULE: &str = "chaos";

/// The time limits for the first firing of the schedule and for each later one, besides the longest fault. The first one
/// is short, so that a short run finds a schedule that never fires. Between two firings the broker may be killed several
/// times, and a slow machine needs some time for each restart.
const FIRES_WITHIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// An answer to a client: the acceptance of a request, the decision about a cancelled one, or the time at which the
/// schedule was set.
enum ClientAnswer {
    Accepted(JobId),
    Cancelled(JobId, Stored),
    Scheduled(Timestamp),
}

/// The clients.
pub(super) struct Clients {
    connection: Connection,
    producer: Producer,
    asking: JoinSet<anyhow::Result<Vec<ClientAnswer>>>,
    stop: CancellationToken,
}

impl Clients {
    /// Starts the clients, or none at a rate of zero. They need the topology, declared with this many copies.
    pub(super) fn start(connection: &Connection, copies: usize, rate: Rate) -> Self {
        let clients = if rate == Rate::Zero { 0 } else { CLIENTS };
        let limits = Limits { replicas: copies, ..Settings::from_env().limits };
        let stop = CancellationToken::new();
        let metrics = Metrics::new("clients");
        let producer = Producer::new(connection, limits, CLIENTS, &metrics);
        let mut asking = JoinSet::new();
        for number in 0..clients {
            asking.spawn(ask(producer.clone(), connection.clone(), number, stop.clone()));
        }
        if clients > 0 {
            asking.spawn(recur(producer.clone()));
        }
        Self { connection: connection.clone(), producer, asking, stop }
    }

    /// Stops the clients, and waits for the last answers.
    pub(super) async fn stop(mut self) -> anyhow::Result<Answers> {
        self.stop.cancel();
        let mut told = Vec::new();
        let all = async {
            while let Some(answers) = self.asking.join_next().await {
                told.extend(answers??);
            }
            anyhow::Ok(())
        };
        timeout(LIMIT, all).await.context("the broker does not answer the clients")??;
        // Repeated, because a cluster may be electing a leader.
        let unscheduling = async {
            while self.producer.unschedule::<DueRequest>(SCHEDULE).await.is_err() {
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, unscheduling).await.context("the broker does not remove the schedule")?;
        let unscheduled = now();
        // The delayed requests are due soon, and the requestors still run and submit them.
        let nats = self.connection.context();
        let falling_due = async {
            while !topology::stream_state(nats, SCHEDULES.stream)
                .await
                .is_ok_and(|schedules| schedules.state.messages == 0)
            {
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, falling_due).await.context("delayed requests stay in SCHEDULES")?;
        Ok(Answers { connection: self.connection, told, unscheduled })
    }
}

/// The answers to the clients.
pub(super) struct Answers {
    connection: Connection,
    told: Vec<ClientAnswer>,
    /// When the schedule was removed.
    unscheduled: Timestamp,
}

impl Answers {
    /// The answers that are not true, each as a sentence, after faults of at most this length.
    pub(super) async fn untrue(self, longest: Duration) -> anyhow::Result<Vec<String>> {
        let mut untrue = Vec::new();
        for told in &self.told {
            match told {
                ClientAnswer::Cancelled(id, told) => {
                    let key = id.to_string();
                    let stored: Option<Stored> = read_fact(&self.connection, &key).await?;
                    if stored.as_ref() != Some(told) {
                        untrue.push(format!("a client was told {told:?}; there is {stored:?}"));
                    }
                }
                ClientAnswer::Accepted(id) => {
                    let key = id.to_string();
                    if read_fact::<Request>(&self.connection, &key).await?.is_none() {
                        untrue.push(format!("{id} was accepted, and there is no record of it"));
                    }
                }
                ClientAnswer::Scheduled(since) => {
                    let firings = self.firings().await?;
                    untrue.extend(misfired(&firings, *since, self.unscheduled, longest));
                }
            }
        }
        Ok(untrue)
    }

    /// The requests of the schedule.
    async fn firings(&self) -> anyhow::Result<Vec<JobId>> {
        let mut firings = Vec::new();
        each_fact(&self.connection, |request: Request, _| {
            if request.requestor == SCHEDULE {
                firings.push(request.id);
            }
        })
        .await?;
        Ok(firings)
    }
}

/// The faults of a schedule that was set for this time: a firing with two requests, or a time without a firing that is
/// too long, even if a fault lasted for `longest`.
fn misfired(
    requests: &[JobId],
    since: Timestamp,
    until: Timestamp,
    longest: Duration,
) -> Vec<String> {
    let mut firings: BTreeMap<_, Vec<JobId>> = BTreeMap::new();
    for id in requests {
        // The rest of the id is derived from the firing alone.
        firings.entry(id.to_string().split_off(TIME)).or_default().push(*id);
    }
    let doubled = firings.values().filter(|requests| requests.len() > 1);
    let mut wrong: Vec<_> = doubled.map(|ids| format!("fired twice: {ids:?}")).collect();
    let fired = requests.iter().map(|id| id.made_at()).filter(|at| *at > since);
    let mut times: Vec<Timestamp> = fired.chain([since, until]).collect();
    times.sort_unstable();
    let limit = longest + if times.len() == 2 { FIRES_WITHIN.0 } else { FIRES_WITHIN.1 };
    let silent = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unsigned_abs());
    let silent = silent.filter(|silent| *silent > limit);
    wrong.extend(silent.map(|silent| format!("the schedule has not fired for {silent:?}")));
    wrong
}

/// Sets the schedule, as soon as the broker accepts it.
async fn recur(producer: Producer) -> anyhow::Result<Vec<ClientAnswer>> {
    let due = DueRequest::new(Amount::new(1, 16)?, SCHEDULE);
    let each = Recurrence::Every(Duration::from_secs(1));
    while producer.schedule(SCHEDULE, &each, &due).await.is_err() {
        sleep(PAUSE).await;
    }
    Ok(vec![ClientAnswer::Scheduled(now())])
}

/// Makes one request after another, and cancels some of them: at once, or while they are on their way.
async fn ask(
    producer: Producer,
    connection: Connection,
    number: usize,
    stop: CancellationToken,
) -> anyhow::Result<Vec<ClientAnswer>> {
    let amount = Amount::new(1, 16)?;
    let name = format!("client-{number}");
    let mut told = Vec::new();
    for asked in number.. {
        if stop.is_cancelled() {
            break;
        }
        // Of each priority some are cancelled, and some are not.
        let priority = Priority::ALL[asked / CANCELLED % Priority::ALL.len()];
        let request = Request::new(JobId::new(), amount, &name, now());
        let request = Request { priority, ..request };
        // While the queue is full, it waits, like a client that tries again.
        match requestor::submit(&producer, &request, &Trace::default(), &stop).await {
            Err(PublishError::Full(_)) => break,
            submitted => submitted?,
        }
        told.push(ClientAnswer::Accepted(request.id));
        if asked % CANCELLED == 0 {
            sleep(ON_THE_WAY * u32::try_from(asked % 4)?).await;
            let stored = requestor::cancel(&producer, &connection, request.id, None, &name).await?;
            told.push(ClientAnswer::Cancelled(request.id, stored));
        }
        if asked % LATER == 0 {
            let at = now() + DELAY;
            let due = DueRequest { not_before: Some(at), ..DueRequest::new(amount, &name) };
            let id = producer.submit_later(&due, at).await?;
            told.push(ClientAnswer::Accepted(id));
            if asked % (2 * LATER) == 0 {
                sleep(DELAY * u32::try_from(asked % 3)?).await;
                let stored =
                    requestor::cancel(&producer, &connection, id, Some(due), &name).await?;
                told.push(ClientAnswer::Cancelled(id, stored));
            }
        }
        sleep(PAUSE).await;
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use contract::facts::REQUESTED;
    use testkit::broker::{Broker, BrokerOptions};
    use testkit::eventually::eventually;
    use workqueue::NatsSettings;

    use super::*;

    #[test]
    fn second_firing_and_a_silent_schedule_are_faults() {
        let id = |second: i64, firing: u32| -> JobId {
            let millis = format!("{:012x}", second * 1000);
            let (high, low) = millis.split_at(8);
            format!("{high}-{low}-7000-8000-{firing:012}").parse().unwrap()
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let longest = Duration::from_secs(2);
        let fired = [id(101, 1), id(102, 2), id(103, 3)];
        assert_eq!(misfired(&fired, at(100), at(110), longest), [""; 0]);
        let twice = misfired(&[fired[0], fired[1], id(104, 2)], at(100), at(110), longest);
        assert!(twice.len() == 1 && twice[0].starts_with("fired twice"), "{twice:?}");
        let silent = misfired(&fired, at(100), at(136), longest);
        assert_eq!(silent, ["the schedule has not fired for 33s"]);
        let resumed = misfired(&[fired[0], id(140, 4)], at(100), at(141), longest);
        assert_eq!(resumed, ["the schedule has not fired for 39s"]);
        assert_eq!(misfired(&[], at(100), at(108), longest), ["the schedule has not fired for 8s"]);
        assert_eq!(misfired(&[], at(100), at(107), longest), [""; 0]);
    }

    #[tokio::test]
    async fn accepted_request_without_its_fact_is_untrue() {
        let broker = Broker::start(BrokerOptions::default()).await.unwrap();
        let connection = observe::connect(&NatsSettings::at(broker.url()), "test").await.unwrap();
        let limits = Settings::from_env().limits;
        let producer = Producer::new(&connection, limits, CLIENTS, &Metrics::new("test"));
        let stop = CancellationToken::new();
        // The first request of this client is neither cancelled nor followed by a delayed one.
        let asking = tokio::spawn(ask(producer, connection.clone(), 1, stop.clone()));
        let nats = connection.context();
        eventually("a request is accepted", async || {
            match topology::bucket_state(nats, REQUESTED).await {
                Ok(state) if state.state.messages > 0 => Ok(()),
                state => Err(state.map(|state| state.state.messages)),
            }
        })
        .await;
        stop.cancel();
        let told = asking.await.unwrap().unwrap();
        nats.get_stream(REQUESTED.stream).await.unwrap().purge().await.unwrap();
        let answers = Answers { connection, told, unscheduled: now() };
        let untrue = answers.untrue(Duration::ZERO).await.unwrap();
        assert!(untrue[0].ends_with("was accepted, and there is no record of it"), "{untrue:?}");
    }
}
