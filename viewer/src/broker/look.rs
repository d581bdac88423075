//! One look at the broker: a constant number of questions, however much there is.

use std::collections::HashMap;

use async_nats::jetstream::stream::State;
use contract::facts::{self, Bucket, Fact, Received};
use contract::queues::{self, Acknowledgment, Queue, Request};
use contract::{RequestId, dead_letters, topology};
use observe::batch::{self, Stored};
use tokio::time::Instant;
use worker::Connection;

use super::loops::Loops;
use super::replicas::Replicas;
use crate::picture::{Flow, Numbers, QueuePicture, Way};

/// How many of the last requests to follow.
const FOLLOWED: usize = 8;

/// How many of the last marks to measure in a look. A sample: at full speed there are thousands.
const MEASURED: usize = 50;

/// Looks at the broker, and remembers what it needs in order to see what has changed.
pub(super) struct Looker<'a> {
    connection: &'a Connection,
    replicas: Replicas,
    loops: Loops,
    earlier: Option<Earlier>,
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
        Self { connection, replicas: Replicas::default(), loops: Loops::default(), earlier: None }
    }

    pub(super) async fn look(&mut self) -> anyhow::Result<Flow> {
        let client = self.connection.client();
        let (asked, seen) =
            tokio::join!(self.replicas.ask(client), look_at_streams(self.connection));
        asked?;
        let Seen { at, mut queues, moved, requested, stored, received, dead_letters } = seen?;
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
        let (replicas, more_replicas) = self.replicas.picture();
        let pending = queues.iter().map(|queue| queue.waiting + queue.in_flight).sum();
        let of = [&requested, &stored, &received];
        let numbers = Numbers {
            requested: requested.last_sequence,
            stored: stored.last_sequence,
            received: received.last_sequence,
            dead_letters,
            pending,
            redelivered: queues.iter().map(|queue| queue.redelivered).sum(),
            missing: missing(
                requested.last_sequence,
                received.last_sequence,
                pending,
                dead_letters,
            ),
            twice: of.iter().map(|it| it.messages.saturating_sub(it.subjects_count)).sum(),
        };
        Ok(Flow {
            queues,
            replicas,
            more_replicas,
            requestors: self.replicas.working("requestor"),
            generators: self.replicas.working("generator"),
            numbers,
            latency: self.loops.latency(),
            last,
        })
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
        let of_marks = marks.iter().map(|mark| mark.id);
        let all_ids: Vec<RequestId> = ids.iter().copied().chain(of_marks).collect();
        let stored: HashMap<RequestId, Acknowledgment> = self.facts(&all_ids).await?;
        let received: HashMap<RequestId, Received> = self.facts(&ids).await?;
        for mark in &marks {
            if let Some(stored) = stored.get(&mark.id) {
                self.loops.note(mark.received_at.duration_since(stored.requested_at));
            }
        }
        let way = |request: &Request| {
            Way::new(request, stored.get(&request.id), received.get(&request.id))
        };
        Ok(requests.iter().rev().map(way).collect())
    }

    /// The facts about these requests, as far as there are some.
    async fn facts<F: Fact>(&self, ids: &[RequestId]) -> anyhow::Result<HashMap<RequestId, F>> {
        let subjects: Vec<String> = ids.iter().map(|id| F::BUCKET.subject(*id)).collect();
        let client = self.connection.client();
        let found = batch::last_under_each(client, F::BUCKET.stream, &subjects).await?;
        Ok(decoded(&found).map(|fact: F| (fact.id(), fact)).collect())
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
    dead_letters: u64,
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
    looked.push(look_at_queue(connection, requests).await?);
    looked.push(look_at_queue(connection, responses).await?);
    let stored = state(facts::STORED).await?;
    looked.push(look_at_queue(connection, acknowledgments).await?);
    let received = state(facts::RECEIVED).await?;
    let dead_letters = topology::stream_state(nats, dead_letters::STREAM).await?.state.messages;
    let (queues, moved) = looked.into_iter().unzip();
    Ok(Seen { at, queues, moved, requested, stored, received, dead_letters })
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

/// Requests of which the counts do not say where they are. What moved while it was counted was counted
/// twice, and hides as many; so did what was never asked for. None is not a proof, some is a reason to
/// audit.
fn missing(requested: u64, received: u64, pending: u64, dead_letters: u64) -> u64 {
    requested.saturating_sub(received + pending + dead_letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_missing_that_is_anywhere() {
        assert_eq!(missing(10, 4, 5, 1), 0);
        assert_eq!(missing(10, 4, 5, 0), 1);
        assert_eq!(missing(10, 10, 3, 2), 0);
    }

    #[test]
    fn a_rate_has_one_digit_behind_the_point() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(rate(103, 100, 2.0), 1.5));
        assert!(close(rate(0, 100, 1.0), 0.0));
    }
}
