//! One look at the broker: a constant number of questions, however much there is.

use std::collections::{HashMap, VecDeque};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::State;
use contract::facts::{self, Bucket, Fact, Received};
use contract::queues::{self, Acknowledgment, Queue, Request};
use contract::topology::DeclareError;
use contract::{RequestId, dead_letters, topology};
use jiff::Timestamp;
use observe::batch::{self, Stored};
use tokio::time::Instant;
use workqueue::Connection;

use super::loops::Loops;
use super::replicas::Replicas;
use crate::picture::{Flow, Kind, Numbers, QueuePicture, There, Way};

/// How many of the last requests to follow.
const FOLLOWED: usize = 8;

/// How many of the last marks to measure in a look. A sample: at full speed there are thousands.
const MEASURED: usize = 50;

/// In how many looks one after another something has to be missing before that is said.
const LASTING: usize = 3;

/// Looks at the broker, and remembers what it needs in order to see what has changed.
pub(super) struct Looker<'a> {
    connection: &'a Connection,
    replicas: Replicas,
    loops: Loops,
    earlier: Option<Earlier>,
    /// What the counts of the last looks could not place, the newest last.
    unplaced: VecDeque<u64>,
}

/// What was seen at the last look.
struct Earlier {
    at: Instant,
    /// Of each queue: messages that have ever come in, and gone out.
    moved: Vec<(u64, u64)>,
    received: u64,
}

impl<'a> Looker<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self {
            connection,
            replicas: Replicas::default(),
            loops: Loops::default(),
            earlier: None,
            unplaced: VecDeque::new(),
        }
    }

    /// Who is there, also where the rest cannot be seen.
    pub(super) fn there(&self) -> There {
        self.replicas.there()
    }

    /// What kind of trouble this error is.
    pub(super) fn kind(&self, error: &anyhow::Error) -> Kind {
        match error.downcast_ref() {
            Some(DeclareError::Refused { source, .. }) => match source.error_code() {
                ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => Kind::Undeclared,
                _ => Kind::Refused,
            },
            Some(DeclareError::NoJetStream(_) | DeclareError::BrokerTooOld(_)) => Kind::Refused,
            // It carries messages, and does not say what it is asked.
            _ if self.replicas.answer() => Kind::Refused,
            _ => Kind::Silent,
        }
    }

    pub(super) async fn look(&mut self) -> anyhow::Result<Flow> {
        let client = self.connection.client();
        let (asked, seen) =
            tokio::join!(self.replicas.ask(client), look_at_streams(self.connection));
        asked?;
        let Seen { at, mut queues, moved, requested, stored, received, dead_letters, given_up } =
            seen?;
        if let Some(earlier) = &self.earlier {
            let seconds = at.duration_since(earlier.at).as_secs_f64();
            let pairs = queues.iter_mut().zip(moved.iter().zip(&earlier.moved));
            for (queue, (now, then)) in pairs {
                queue.come = rate(now.0, then.0, seconds);
                queue.go = rate(now.1, then.1, seconds);
            }
        }
        let before = self.earlier.as_ref().map_or(received.last_sequence, |look| look.received);
        self.earlier = Some(Earlier { at, moved, received: received.last_sequence });
        let last = self.follow(&requested, &received, before).await?;
        let pending = queues.iter().map(|queue| queue.waiting + queue.in_flight).sum();
        let unplaced =
            unplaced(requested.subjects_count, received.subjects_count, pending, given_up);
        let of = [&requested, &stored, &received];
        let numbers = Numbers {
            requested: requested.last_sequence,
            stored: stored.last_sequence,
            received: received.last_sequence,
            dead_letters,
            pending,
            redelivered: queues.iter().map(|queue| queue.redelivered).sum(),
            missing: lasting(&mut self.unplaced, unplaced),
            twice: of.iter().map(|it| it.messages.saturating_sub(it.subjects_count)).sum(),
        };
        Ok(Flow { queues, there: self.there(), numbers, latency: self.loops.latency(), last })
    }

    /// The last requests with what has become of them; and measures the loops that have come to their
    /// end since the last look, or as many of them as there is time for.
    async fn follow(
        &mut self,
        requested: &State,
        received: &State,
        measured: u64,
    ) -> anyhow::Result<Vec<Way>> {
        let newest = async |bucket: Bucket, state: &State, count: usize, after: u64| {
            let first = state.last_sequence.saturating_sub(count as u64).max(after) + 1;
            if first > state.last_sequence {
                return Ok(Vec::new());
            }
            let client = self.connection.client();
            batch::from_sequence(client, bucket.stream, &bucket.subjects(), first, count).await
        };
        let marks = newest(facts::RECEIVED, received, MEASURED, measured).await?;
        let marks: Vec<Received> = decoded(&marks).collect();
        let requests = newest(facts::REQUESTED, requested, FOLLOWED, 0).await?;
        let requests: Vec<Request> = decoded(&requests).collect();
        let ids: Vec<RequestId> = requests.iter().map(|request| request.id).collect();
        // Those that are shown first, and alone: an answer has an end, and strings may be large.
        let (mut stored, left): (HashMap<RequestId, Acknowledgment>, u64) =
            self.facts(&ids).await?;
        let (received, _): (HashMap<RequestId, Received>, u64) = self.facts(&ids).await?;
        let way = |request: &Request| {
            let (stored, received) = (stored.get(&request.id), received.get(&request.id));
            let unread = stored.is_none() && (left > 0 || received.is_some());
            Way::new(request, stored, received, unread)
        };
        let ways = requests.iter().rev().map(way).collect();
        let of_marks = marks.iter().map(|mark| mark.id);
        let others: Vec<RequestId> = of_marks.filter(|id| !stored.contains_key(id)).collect();
        stored.extend(self.facts::<Acknowledgment>(&others).await?.0);
        for mark in &marks {
            if let Some(stored) = stored.get(&mark.id) {
                self.loops.note(mark.received_at.duration_since(stored.requested_at));
            }
        }
        Ok(ways)
    }

    /// The facts about these requests, as far as there are some; and how many more there are than the
    /// broker says at a time.
    async fn facts<F: Fact>(
        &self,
        ids: &[RequestId],
    ) -> anyhow::Result<(HashMap<RequestId, F>, u64)> {
        let subjects: Vec<String> = ids.iter().map(|id| F::BUCKET.subject(*id)).collect();
        let client = self.connection.client();
        let (found, left) = batch::last_under_each(client, F::BUCKET.stream, &subjects).await?;
        Ok((decoded(&found).map(|fact: F| (fact.id(), fact)).collect(), left))
    }
}

/// What the streams and consumers say of themselves.
struct Seen {
    at: Instant,
    queues: Vec<QueuePicture>,
    moved: Vec<(u64, u64)>,
    requested: State,
    stored: State,
    received: State,
    /// All dead letters, and those that are no older than the oldest request that is remembered.
    dead_letters: u64,
    given_up: u64,
}

/// Looks at all there is, in the order in which a request passes through it. So what moves on in the
/// meantime is counted twice, and never missed.
async fn look_at_streams(connection: &Connection) -> anyhow::Result<Seen> {
    let nats = connection.context();
    let state = async |bucket| anyhow::Ok(topology::bucket_state(nats, bucket).await?.state);
    let at = Instant::now();
    let [requests, responses, acknowledgments] = queues::ALL;
    let mut looked = Vec::with_capacity(queues::ALL.len());
    let requested = state(facts::REQUESTED).await?;
    let oldest = Timestamp::from_nanosecond(requested.first_timestamp.unix_timestamp_nanos());
    // Where there is none the broker says a time before all others.
    let oldest = oldest.unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH);
    let dead_letters = topology::stream_state(nats, dead_letters::STREAM).await?.state.messages;
    let given_up = async || {
        let (stream, subjects) = (contract::dead_letters::STREAM, contract::dead_letters::SUBJECTS);
        batch::count_since(connection.client(), stream, subjects, oldest).await
    };
    // Before the queues, and after them: one that is replayed goes back, one that dies comes from there.
    let before = given_up().await?;
    looked.push(look_at_queue(connection, requests).await?);
    looked.push(look_at_queue(connection, responses).await?);
    let stored = state(facts::STORED).await?;
    looked.push(look_at_queue(connection, acknowledgments).await?);
    let received = state(facts::RECEIVED).await?;
    let given_up = given_up().await?.max(before);
    let (queues, moved) = looked.into_iter().unzip();
    Ok(Seen { at, queues, moved, requested, stored, received, dead_letters, given_up })
}

/// A queue, and how many messages have ever come in and gone out.
async fn look_at_queue(
    connection: &Connection,
    queue: Queue,
) -> anyhow::Result<(QueuePicture, (u64, u64))> {
    let (stream, consumer) = topology::queue_state(connection.context(), queue).await?;
    let (state, delivered) = (&stream.state, consumer.delivered);
    let in_flight = consumer.num_ack_pending as u64;
    let picture = QueuePicture {
        name: queue.stream,
        waiting: state.messages.saturating_sub(in_flight),
        in_flight,
        limit: u64::try_from(stream.config.max_messages).ok(),
        redelivered: delivered.consumer_sequence.saturating_sub(delivered.stream_sequence),
        ..QueuePicture::default()
    };
    let went = state.last_sequence.saturating_sub(state.messages);
    Ok((picture, (state.last_sequence, went)))
}

fn decoded<F: Fact>(stored: &[Stored]) -> impl Iterator<Item = F> {
    stored.iter().filter_map(|message| F::decode(&message.body).ok())
}

/// How many a second, to one digit behind the point.
#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
pub(super) fn rate(now: u64, then: u64, seconds: f64) -> f64 {
    (now.saturating_sub(then) as f64 / seconds.max(0.001) * 10.0).round() / 10.0
}

/// Requests of which the counts do not say where they are: of those that are remembered, all of one age.
/// What moved while it was counted was counted twice, and hides as many; so does what was never asked
/// for. None is not a proof, some is a reason to audit.
fn unplaced(requested: u64, received: u64, pending: u64, given_up: u64) -> u64 {
    requested.saturating_sub(received.saturating_add(pending).saturating_add(given_up))
}

/// As many as each of the last looks could not place: one that was only on its way is placed by the next.
fn lasting(looks: &mut VecDeque<u64>, newest: u64) -> u64 {
    if looks.len() == LASTING {
        looks.pop_front();
    }
    looks.push_back(newest);
    if looks.len() < LASTING { 0 } else { looks.iter().copied().min().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_missing_that_is_anywhere() {
        assert_eq!(unplaced(10, 4, 5, 1), 0);
        assert_eq!(unplaced(10, 4, 5, 0), 1);
        assert_eq!(unplaced(10, 10, u64::MAX, 2), 0);
    }

    #[test]
    fn only_what_several_looks_cannot_place_is_missing() {
        let mut looks = VecDeque::new();
        let seen = [5, 5, 5, 0, 2, 3, 4].map(|newest| lasting(&mut looks, newest));
        assert_eq!(seen, [0, 0, 5, 0, 0, 0, 2]);
    }

    #[test]
    fn a_rate_has_one_digit_behind_the_point() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(rate(103, 100, 2.0), 1.5));
        assert!(close(rate(0, 100, 1.0), 0.0));
    }
}
