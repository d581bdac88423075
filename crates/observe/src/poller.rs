//! Takes snapshots of the flow. Each needs a constant number of questions to the broker, whatever the load.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::{anyhow, ensure};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{ClusterInfo, PeerInfo, State};
use contract::facts::{self, Received, Stored};
use contract::queues::{self, Request};
use futures_util::future::try_join_all;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use workqueue::batch;
use workqueue::topology::{self, DeclareError};
use workqueue::{Bucket, Connection, Fact, JobId, Queue, dead_letters};

use crate::replicas::ReplicaRegistry;
use crate::round_trips::RoundTrips;
use crate::snapshot::{
    BrokerSnapshot, LaneSnapshot, LastRequest, QueueSnapshot, ReplicasSnapshot, Snapshot, Totals,
    rate,
};

/// The number of last requests in a snapshot.
const FOLLOWED: usize = 8;

/// The most round trips that a snapshot measures. They are a sample: at full speed there are thousands.
const MEASURED: usize = 50;

/// The number of successive snapshots in which a request has to be missing before it counts as missing.
const LASTING: usize = 3;

/// The time limit for a snapshot. After that the kind of the error is `Silent`.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes snapshots, and keeps the state that it needs to see changes.
#[derive(Debug)]
pub struct Poller {
    connection: Connection,
    replicas: ReplicaRegistry,
    round_trips: RoundTrips,
    earlier: Option<Previous>,
    /// The numbers of unplaced requests in the last snapshots, the newest last.
    unplaced: VecDeque<u64>,
    /// Whether bundles may wait in a queue.
    bundles_wait: bool,
}

/// The state at the last snapshot.
#[derive(Debug)]
struct Previous {
    at: Instant,
    /// For each queue, the numbers of all messages that have ever come in, and gone out.
    moved: Vec<(u64, u64)>,
    received: u64,
}

/// The reason for which there is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotErrorKind {
    /// The broker does not answer.
    Silent,
    /// The broker has no queues.
    Undeclared,
    /// The broker refuses the questions.
    Refused,
    /// The user lacks the permissions for the questions.
    Denied,
}

impl SnapshotErrorKind {
    /// The kind of this error of [`Poller::snapshot`].
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        match error.downcast_ref() {
            Some(DeclareError::Refused { source, .. }) => match source.error_code() {
                ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => Self::Undeclared,
                _ => Self::Refused,
            },
            Some(DeclareError::NoJetStream(_) | DeclareError::BrokerTooOld(_)) => Self::Refused,
            _ if error.is::<PermissionDenied>() => Self::Denied,
            _ => Self::Silent,
        }
    }
}

/// The broker did not answer because a permission is missing. Contains its message.
#[derive(Debug, thiserror::Error)]
#[error("the broker says: {0}")]
struct PermissionDenied(String);

impl Poller {
    /// Reads through this connection.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            replicas: ReplicaRegistry::default(),
            round_trips: RoundTrips::default(),
            earlier: None,
            unplaced: VecDeque::new(),
            bundles_wait: true,
        }
    }

    /// The replicas, even if the last snapshot failed.
    #[must_use]
    pub fn replicas(&self) -> ReplicasSnapshot {
        self.replicas.snapshot()
    }

    /// Takes a snapshot. This takes most of a second, the time for the replicas' answers.
    ///
    /// # Errors
    ///
    /// If the broker does not answer, or does not have the topology: see [`SnapshotErrorKind::of`].
    pub async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        let connected = self.connection.is_connected();
        ensure!(connected, "there is no connection to the broker; trying to restore it");
        let denied = self.connection.denied();
        if let Ok(snapshot) = timeout(PATIENCE, self.read()).await {
            return snapshot;
        }
        // The broker does not answer a denied question either.
        if self.connection.is_connected() && denied.has_changed().unwrap_or(false) {
            return Err(PermissionDenied(denied.borrow().clone()).into());
        }
        Err(anyhow!("the broker does not answer"))
    }

    async fn read(&mut self) -> anyhow::Result<Snapshot> {
        let asking = self.replicas.ask(self.connection.client());
        // Both to their end, because the replicas are shown even if there are no streams.
        let (asked, seen) = tokio::join!(asking, read_streams(&self.connection));
        asked?;
        let seen = seen?;
        let (dead_letters, recent_dead_letters) = (seen.dead_letters, seen.recent_dead_letters);
        let Streams {
            at, mut queues, schedules, moved, brokers, requested, stored, received, ..
        } = seen;
        if let Some(earlier) = &self.earlier {
            let seconds = at.duration_since(earlier.at).as_secs_f64();
            let pairs = queues.iter_mut().zip(moved.iter().zip(&earlier.moved));
            for (queue, (now, then)) in pairs {
                queue.arrival_rate = rate(now.0, then.0, seconds);
                queue.departure_rate = rate(now.1, then.1, seconds);
            }
        }
        let before = self.earlier.as_ref().map_or(received.last_sequence, |it| it.received);
        self.earlier = Some(Previous { at, moved, received: received.last_sequence });
        let last = self.follow(&requested, &received, before).await?;
        let pending = queues.iter().map(|queue| queue.waiting + queue.in_flight).sum();
        // A cancelled request is never marked as received, so only the audit can check the step after `stored`.
        let [_, requests, responses, _] = queues::ALL;
        let until_stored =
            queues.iter().filter(|it| [requests.stream, responses.stream].contains(&it.name));
        let pending_until_stored: u64 = until_stored.map(|it| it.waiting + it.in_flight).sum();
        // The number of requests in a bundle is not known, so only the audit can say whether one is missing.
        self.bundles_wait =
            self.replicas.send_bundles() || self.bundles_wait && pending_until_stored > 0;
        let pending_requests = if self.bundles_wait { u64::MAX } else { pending_until_stored };
        let all = Facts { requested: requested.subjects_count, stored: stored.subjects_count };
        let placed = pending_requests.saturating_add(recent_dead_letters);
        let unplaced = unplaced(all, seen.recent, placed);
        let of = [&requested, &stored, &received];
        let totals = Totals {
            requested: requested.last_sequence,
            stored: stored.last_sequence,
            received: received.last_sequence,
            dead_letters,
            pending,
            redelivered: queues.iter().map(|queue| queue.redelivered).sum(),
            missing: lasting(&mut self.unplaced, unplaced),
            written_twice: of.iter().map(|it| it.messages.saturating_sub(it.subjects_count)).sum(),
        };
        let latency = self.round_trips.latency();
        let replicas = self.replicas();
        Ok(Snapshot { queues, schedules, replicas, totals, brokers, latency, last })
    }

    /// Returns the last requests with their states, and measures a sample of the round trips that have ended since the
    /// last snapshot.
    async fn follow(
        &mut self,
        requested: &State,
        received: &State,
        measured: u64,
    ) -> anyhow::Result<Vec<LastRequest>> {
        let newest = async |bucket: Bucket, state: &State, count: usize, after: u64| {
            let first = state.last_sequence.saturating_sub(count as u64).max(after) + 1;
            if first > state.last_sequence {
                return anyhow::Ok(Vec::new());
            }
            let nats = self.connection.context();
            let (stream, subjects) = (bucket.stream, bucket.subjects());
            Ok(batch::from_sequence(nats, stream, &subjects, first, count).await?.0)
        };
        let (marks, requests) = tokio::try_join!(
            newest(facts::RECEIVED, received, MEASURED, measured),
            newest(facts::REQUESTED, requested, FOLLOWED, 0)
        )?;
        let marks: Vec<Received> = decoded(&marks).collect();
        let requests: Vec<Request> = decoded(&requests).collect();
        let ids: Vec<JobId> = requests.iter().map(|request| request.id).collect();
        // The facts of the shown requests first, in an answer of their own, because its size is limited and strings may
        // be large.
        let (mut stored, left): (HashMap<JobId, Stored>, u64) = self.facts(&ids).await?;
        let (received, _): (HashMap<JobId, Received>, u64) = self.facts(&ids).await?;
        let last = |request: &Request| {
            let (stored, received) = (stored.get(&request.id), received.get(&request.id));
            let unread = stored.is_none() && (left > 0 || received.is_some());
            LastRequest::new(request, stored, received, unread)
        };
        let last = requests.iter().rev().map(last).collect();
        let of_marks = marks.iter().map(|mark| mark.id);
        let others: Vec<JobId> = of_marks.filter(|id| !stored.contains_key(id)).collect();
        stored.extend(self.facts::<Stored>(&others).await?.0);
        for mark in &marks {
            if let Some(Stored::Strings(stored)) = stored.get(&mark.id) {
                self.round_trips.note(stored, mark);
            }
        }
        Ok(last)
    }

    /// The existing facts of these requests, and the number of facts that do not fit into the broker's answer.
    async fn facts<F: Fact>(&self, ids: &[JobId]) -> anyhow::Result<(HashMap<JobId, F>, u64)> {
        let subjects: Vec<String> = ids.iter().map(|id| F::BUCKET.subject(*id)).collect();
        let nats = self.connection.context();
        let (found, left) = batch::last_under_each(nats, F::BUCKET.stream, &subjects).await?;
        Ok((
            decoded(&found).filter_map(|fact: F| Some((fact.key().parse().ok()?, fact))).collect(),
            left,
        ))
    }
}

/// The states of the streams and consumers.
struct Streams {
    at: Instant,
    /// The queues without SCHEDULES.
    queues: Vec<QueueSnapshot>,
    schedules: QueueSnapshot,
    moved: Vec<(u64, u64)>,
    brokers: Vec<BrokerSnapshot>,
    requested: State,
    stored: State,
    received: State,
    /// The number of all dead letters.
    dead_letters: u64,
    /// The number of those that are no older than the oldest fact `requested`.
    recent_dead_letters: u64,
    /// The facts that are no older than the guarantees hold, unless all are.
    recent: Option<Facts>,
}

/// The numbers of requests with a fact `requested`, and with a fact `stored`.
#[derive(Clone, Copy)]
struct Facts {
    requested: u64,
    stored: u64,
}

/// Reads the state of each stream, until `stored` in the order in which a request passes through them. So a request that
/// moves on meanwhile is counted twice, and never missed. What has no place in this order is read beside it, because the
/// broker may be far away.
async fn read_streams(connection: &Connection) -> anyhow::Result<Streams> {
    let nats = connection.context();
    let bucket = async |bucket| anyhow::Ok(topology::bucket_state(nats, bucket).await?);
    let at = Instant::now();
    let [schedules, requests, responses, acknowledgments] = queues::ALL;
    let dead_letters = async {
        anyhow::Ok(topology::stream_state(nats, dead_letters::STREAM).await?.state.messages)
    };
    let (schedules, requested, dead_letters) =
        tokio::try_join!(queue(connection, schedules), bucket(facts::REQUESTED), dead_letters)?;
    let guard_time = topology::guard_time(&requested.config);
    let requested = requested.state;
    let oldest = Timestamp::from_nanosecond(requested.first_timestamp.unix_timestamp_nanos());
    // Without a fact the broker reports a time before the epoch.
    let oldest = oldest.unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH);
    // From each queue, because the account may have dead letters of other systems.
    let recent_dead_letters = async || {
        let counts = queues::ALL.map(async |queue| {
            let subjects = dead_letters::subject(queue.stream, ">");
            batch::count_since(nats, dead_letters::STREAM, &subjects, oldest).await
        });
        anyhow::Ok(try_join_all(counts).await?.into_iter().sum::<u64>())
    };
    let since = workqueue::now().checked_sub(guard_time).ok().filter(|since| *since > oldest);
    let recent = async |bucket: Bucket| match since {
        Some(since) => anyhow::Ok(Some(batch::count_since(nats, bucket.stream, ">", since).await?)),
        None => Ok(None),
    };
    // Before the queues, and again after them: a replayed message moves into a queue, a new dead letter comes from one.
    let (before, recent_requested) =
        tokio::try_join!(recent_dead_letters(), recent(facts::REQUESTED))?;
    let (requests, brokers) = read_queue(connection, requests).await?;
    let (responses, _) = read_queue(connection, responses).await?;
    let (stored, recent_stored, (acknowledgments, _), received, after) = tokio::try_join!(
        bucket(facts::STORED),
        recent(facts::STORED),
        read_queue(connection, acknowledgments),
        bucket(facts::RECEIVED),
        recent_dead_letters()
    )?;
    let recent_dead_letters = after.max(before);
    let (queues, moved) = [requests, responses, acknowledgments].into_iter().unzip();
    Ok(Streams {
        at,
        queues,
        schedules,
        moved,
        brokers,
        requested,
        stored: stored.state,
        received: received.state,
        dead_letters,
        recent_dead_letters,
        recent: recent_requested
            .zip(recent_stored)
            .map(|(requested, stored)| Facts { requested, stored }),
    })
}

/// A queue as it is now, without its rates.
///
/// # Errors
///
/// If the broker does not answer, or has no such queue.
pub async fn queue(connection: &Connection, queue: Queue) -> anyhow::Result<QueueSnapshot> {
    let ((snapshot, _), _) = read_queue(connection, queue).await?;
    Ok(snapshot)
}

/// A queue, the numbers of messages that have ever come in and gone out, and the brokers that keep it.
async fn read_queue(
    connection: &Connection,
    queue: Queue,
) -> anyhow::Result<((QueueSnapshot, (u64, u64)), Vec<BrokerSnapshot>)> {
    let state = topology::queue_state(connection.context(), queue).await?;
    let lanes = state.lanes.iter().filter(|_| queue.has_priorities());
    let (config, stored) = (&state.stream.config, &state.stream.state);
    let snapshot = QueueSnapshot {
        name: queue.stream,
        waiting: state.waiting(),
        in_flight: state.in_flight(),
        scheduled: state.scheduled(),
        limit: topology::limit(config),
        bytes: stored.bytes,
        max_bytes: config.max_bytes.try_into().ok(),
        full: topology::no_room(&state.stream).is_some(),
        redelivered: state.redelivered(),
        oldest_at: state.oldest_at(),
        paused_until: state.paused_until(),
        lanes: lanes
            .map(|(lane, consumer)| LaneSnapshot {
                priority: lane.priority,
                waiting: consumer.num_pending,
                in_flight: consumer.num_ack_pending as u64,
            })
            .collect(),
        ..QueueSnapshot::default()
    };
    let stream = &state.stream.state;
    let went = stream.last_sequence.saturating_sub(stream.messages);
    let brokers = state.stream.cluster.as_ref().map(brokers).unwrap_or_default();
    Ok(((snapshot, (stream.last_sequence, went)), brokers))
}

/// The brokers that keep a stream, by their names.
fn brokers(cluster: &ClusterInfo) -> Vec<BrokerSnapshot> {
    let leader = cluster.leader.iter().map(|name| (name.clone(), "leader"));
    let others = cluster.replicas.iter().map(|peer| {
        let state = match peer {
            PeerInfo { offline: true, .. } => "offline",
            PeerInfo { current: false, .. } => "behind",
            _ => "follower",
        };
        (peer.name.clone(), state)
    });
    let mut brokers: Vec<(String, &str)> =
        leader.chain(others).filter(|(name, _)| !name.is_empty()).collect();
    brokers.sort();
    // A single broker is no cluster.
    if brokers.len() < 2 {
        return Vec::new();
    }
    brokers.into_iter().map(|(name, state)| BrokerSnapshot { name, state }).collect()
}

fn decoded<F: Fact>(stored: &[batch::StoredMessage]) -> impl Iterator<Item = F> {
    stored.iter().filter_map(|message| F::from_body(&message.body).ok())
}

/// The number of requests that the counts do not account for, beside those that were placed elsewhere than in a bucket.
///
/// A fact `requested` that was created later than the fact `stored` of its request is left alone twice: when the other
/// is no longer recent, and when the other expires, an hour later. If it is less than an hour late, never both at once,
/// so the lower number is right.
///
/// A request that moved while it was counted was counted twice, and hides a missing one; so does an unasked one. So 0
/// proves nothing, and any other number is a reason to run the audit.
fn unplaced(all: Facts, recent: Option<Facts>, placed: u64) -> u64 {
    let of = |facts: Facts| facts.requested.saturating_sub(facts.stored.saturating_add(placed));
    recent.map_or(u64::MAX, of).min(of(all))
}

/// The lowest number of unplaced requests in the last snapshots. A request that only moved is placed in the next one.
fn lasting(last: &mut VecDeque<u64>, newest: u64) -> u64 {
    if last.len() == LASTING {
        last.pop_front();
    }
    last.push_back(newest);
    if last.len() < LASTING { 0 } else { last.iter().copied().min().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn located_requests_are_not_missing() {
        let all = Facts { requested: 10, stored: 4 };
        assert_eq!(unplaced(all, None, 6), 0);
        assert_eq!(unplaced(all, None, 5), 1);
        assert_eq!(unplaced(all, None, u64::MAX), 0);
    }

    #[test]
    fn request_is_missing_by_all_facts_and_by_the_recent_ones() {
        let unplaced = |all: [u64; 2], recent: [u64; 2]| {
            let [all, recent] =
                [all, recent].map(|[requested, stored]| Facts { requested, stored });
            unplaced(all, Some(recent), 0)
        };
        assert_eq!(unplaced([100, 99], [10, 9]), 1);
        // The fact `stored` of a request has expired, or is no longer among the recent ones.
        assert_eq!(unplaced([100, 99], [10, 10]), 0);
        assert_eq!(unplaced([100, 100], [10, 9]), 0);
    }

    #[test]
    fn requests_are_missing_after_several_snapshots() {
        let mut last = VecDeque::new();
        let seen = [5, 5, 5, 0, 2, 3, 4].map(|newest| lasting(&mut last, newest));
        assert_eq!(seen, [0, 0, 5, 0, 0, 0, 2]);
    }
}
