//! Clients that ask for strings, at once, later, and again and again, and cancel some of what they ask for, as
//! clients of the gateway do. They note what they are told, which has to stay true.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use contract::Amount;
use contract::facts::{REQUESTED, Stored};
use contract::queues::{DueRequest, Request, SCHEDULES};
use jiff::Timestamp;
use requestor::Rate;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use workqueue::topology::{self, Limits};
use workqueue::{
    Connection, Fact, JobId, Metrics, Priority, Producer, Recurrence, Settings, Trace, now,
    read_fact, reading,
};

/// How many there are. Each waits for one answer at a time.
const CLIENTS: usize = 4;

/// How long a client waits before it asks for something else.
const PAUSE: Duration = Duration::from_millis(100);

/// Each time that it has asked that often, a client cancels what it asked for.
const CANCELLED: usize = 3;

/// How far a request is on its way when it is cancelled: up to three times that.
const ON_THE_WAY: Duration = Duration::from_millis(1);

/// How long the last answers may take. Only a broker that does not come back needs so long.
const LIMIT: Duration = Duration::from_mins(2);

/// Each time that it has asked that often, it asks for something that is due a little later, and cancels every other
/// one of these: before, when, or after it is due.
const LATER: usize = 5;
const DELAY: Duration = Duration::from_millis(300);

/// How many characters of an id say when its job was made.
const TIME: usize = "019cadd3-8896".len();

/// The schedule of what is asked for again and again, each second, and in whose name.
const SCHEDULE: &str = "chaos";

/// A schedule fires again within so long, whatever breaks: no fault lasts nearly as long.
const FIRES_WITHIN: Duration = Duration::from_secs(30);

/// What a client was told: what is true of a request that it cancelled, that one is accepted for later, or that the
/// schedule stands since then.
enum Promise {
    Cancelled(JobId, Stored),
    Later(JobId),
    Scheduled(Timestamp),
}

/// The clients.
pub(super) struct Clients {
    connection: Connection,
    producer: Producer,
    asking: JoinSet<anyhow::Result<Vec<Promise>>>,
    stop: CancellationToken,
}

impl Clients {
    /// Starts them, once everything is declared with so many copies; none, where nothing is to be asked for.
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

    /// Has them stop asking, and waits for the last answers.
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
        // It may be electing a leader.
        let unscheduling = async {
            while self.producer.unschedule::<DueRequest>(SCHEDULE).await.is_err() {
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, unscheduling).await.context("the broker does not remove the schedule")?;
        let unscheduled = now();
        // Requests for later are due soon, and the requestors are still there to ask for them.
        let nats = self.connection.context();
        let falling_due = async {
            while !topology::stream_state(nats, SCHEDULES.stream)
                .await
                .is_ok_and(|schedules| schedules.state.messages == 0)
            {
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, falling_due).await.context("what was asked for later stays in SCHEDULES")?;
        Ok(Answers { connection: self.connection, told, unscheduled })
    }
}

/// What the clients were told.
pub(super) struct Answers {
    connection: Connection,
    told: Vec<Promise>,
    /// When there was no schedule any more.
    unscheduled: Timestamp,
}

impl Answers {
    /// Which of the answers are not true, each in a sentence.
    pub(super) async fn untrue(self) -> anyhow::Result<Vec<String>> {
        let mut untrue = Vec::new();
        for told in &self.told {
            match told {
                Promise::Cancelled(id, told) => {
                    let key = id.to_string();
                    let stored: Option<Stored> = read_fact(&self.connection, &key).await?;
                    if stored.as_ref() != Some(told) {
                        untrue.push(format!("a client was told {told:?}; there is {stored:?}"));
                    }
                }
                Promise::Later(id) => {
                    let key = id.to_string();
                    if read_fact::<Request>(&self.connection, &key).await?.is_none() {
                        untrue.push(format!("{id} was accepted for later, and never asked for"));
                    }
                }
                Promise::Scheduled(since) => {
                    untrue.extend(misfired(&self.firings().await?, *since, self.unscheduled));
                }
            }
        }
        Ok(untrue)
    }

    /// The requests that the schedule has asked for.
    async fn firings(&self) -> anyhow::Result<Vec<JobId>> {
        let mut firings = Vec::new();
        let nats = self.connection.context();
        reading::each(nats, REQUESTED.stream, &REQUESTED.subjects(), |_sequence, message| {
            if let Ok(request) = Request::from_body(&message.payload)
                && request.requestor == SCHEDULE
            {
                firings.push(request.id);
            }
        })
        .await?;
        Ok(firings)
    }
}

/// The faults of these requests of a schedule that stood in this time: a firing twice, or none again.
fn misfired(requests: &[JobId], since: Timestamp, until: Timestamp) -> Vec<String> {
    let mut firings: BTreeMap<_, Vec<JobId>> = BTreeMap::new();
    for id in requests {
        // Without the time, it is derived from the firing alone.
        firings.entry(id.to_string().split_off(TIME)).or_default().push(*id);
    }
    let doubled = firings.values().filter(|requests| requests.len() > 1);
    let mut wrong: Vec<_> = doubled.map(|ids| format!("fired twice: {ids:?}")).collect();
    let last = requests.iter().map(|id| id.made_at()).max().unwrap_or(since).max(since);
    let silent = until.duration_since(last).unsigned_abs();
    if silent > FIRES_WITHIN {
        wrong.push(format!("the schedule has not fired for {silent:?}"));
    }
    wrong
}

/// Has something asked for again and again, once the broker takes the schedule.
async fn recur(producer: Producer) -> anyhow::Result<Vec<Promise>> {
    let due = DueRequest::new(Amount::new(1, 16)?, SCHEDULE);
    let each = Recurrence::Every(Duration::from_secs(1));
    while producer.schedule(SCHEDULE, &each, &due).await.is_err() {
        sleep(PAUSE).await;
    }
    Ok(vec![Promise::Scheduled(now())])
}

/// Asks for one request after another, and cancels some of them: at once, or when they are well on their way.
async fn ask(
    producer: Producer,
    connection: Connection,
    number: usize,
    stop: CancellationToken,
) -> anyhow::Result<Vec<Promise>> {
    let amount = Amount::new(1, 16)?;
    let name = format!("client-{number}");
    let mut told = Vec::new();
    for asked in number.. {
        if stop.is_cancelled() {
            break;
        }
        let priority = Priority::ALL[asked % Priority::ALL.len()];
        let request = Request::new(JobId::new(), amount, &name, now());
        let request = Request { priority, ..request };
        // While the queue is full it waits, like any client that comes again.
        if requestor::submit(&producer, &request, &Trace::default(), &stop).await.is_err() {
            break;
        }
        if asked % CANCELLED == 0 {
            sleep(ON_THE_WAY * u32::try_from(asked % 4)?).await;
            let stored = requestor::cancel(&producer, &connection, request.id, None, &name).await?;
            told.push(Promise::Cancelled(request.id, stored));
        }
        if asked % LATER == 0 {
            let at = now() + DELAY;
            let due = DueRequest { not_before: Some(at), ..DueRequest::new(amount, &name) };
            let id = producer.submit_later(&due, at).await?;
            told.push(Promise::Later(id));
            if asked % (2 * LATER) == 0 {
                sleep(DELAY * u32::try_from(asked % 3)?).await;
                let stored =
                    requestor::cancel(&producer, &connection, id, Some(due), &name).await?;
                told.push(Promise::Cancelled(id, stored));
            }
        }
        sleep(PAUSE).await;
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_that_fires_twice_or_no_more_is_told() {
        let id = |second: i64, firing: u32| -> JobId {
            let millis = format!("{:012x}", second * 1000);
            let (high, low) = millis.split_at(8);
            format!("{high}-{low}-7000-8000-{firing:012}").parse().unwrap()
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let fired = [id(101, 1), id(102, 2), id(103, 3)];
        assert_eq!(misfired(&fired, at(100), at(110)), [""; 0]);
        let twice = misfired(&[fired[0], fired[1], id(104, 2)], at(100), at(110));
        assert!(twice.len() == 1 && twice[0].starts_with("fired twice"), "{twice:?}");
        let silent = misfired(&fired, at(100), at(134));
        assert_eq!(silent, ["the schedule has not fired for 31s"]);
        assert_eq!(misfired(&[], at(100), at(131)).len(), 1);
        assert_eq!(misfired(&[], at(100), at(129)), [""; 0]);
    }
}
