//! A look at the flow: what the queues hold, how fast it moves, and the last strings on their way.
//! All of it is read from the broker, so that it goes on whoever is down.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use contract::facts::{self, Bucket, Fact, Received};
use contract::queues::{self, Acknowledgment, Queue, Request};
use contract::{dead_letters, topology};
use tokio::time::Instant;

use crate::reading::last_under;

/// How many of the last requests to follow.
const FOLLOWED: u64 = 5;

/// A moment of the flow.
#[derive(Clone, Debug)]
pub struct Flow {
    at: Instant,
    /// The queues, in the order in which a request passes through them.
    pub queues: Vec<QueueFlow>,
    /// Requests that were accepted.
    pub requested: u64,
    /// Requests whose strings are stored.
    pub stored: u64,
    /// Requests whose strings are marked as received.
    pub received: u64,
    /// Messages that were given up.
    pub dead_letters: u64,
    /// The last requests, the newest first.
    pub last: Vec<Followed>,
}

/// A moment of one queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueFlow {
    /// Which queue it is.
    pub queue: Queue,
    /// Messages that nobody has taken yet.
    pub waiting: u64,
    /// Messages that were delivered and are not settled yet.
    pub in_flight: u64,
    /// Messages that have ever come in.
    came: u64,
    /// Messages that have ever gone out.
    went: u64,
}

/// Messages a second, in and out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Messages that came in.
    pub come: f64,
    /// Messages that went out.
    pub go: f64,
}

/// One of the last requests, and how far it has come.
#[derive(Clone, Debug)]
pub struct Followed {
    /// What was asked, when and by whom.
    pub request: Request,
    /// What was stored, when and by whom, if it was.
    pub stored: Option<Acknowledgment>,
    /// What was marked as received, when and by whom, if it was.
    pub received: Option<Received>,
}

impl Flow {
    /// Looks at what the broker has now.
    ///
    /// # Errors
    ///
    /// Where the broker does not answer, or has no topology of ours to read.
    pub async fn look(nats: &Context) -> anyhow::Result<Self> {
        let mut queues = Vec::new();
        for queue in queues::ALL {
            let (stream, consumer) = topology::queue_state(nats, queue).await?;
            let (stream, in_flight) = (stream.state, consumer.num_ack_pending as u64);
            queues.push(QueueFlow {
                queue,
                waiting: stream.messages.saturating_sub(in_flight),
                in_flight,
                came: stream.last_sequence,
                went: stream.last_sequence.saturating_sub(stream.messages),
            });
        }
        let facts = async |bucket: Bucket| -> anyhow::Result<_> {
            Ok(topology::bucket_state(nats, bucket).await?.state)
        };
        let requested = facts(facts::REQUESTED).await?;
        Ok(Self {
            at: Instant::now(),
            queues,
            stored: facts(facts::STORED).await?.messages,
            received: facts(facts::RECEIVED).await?.messages,
            dead_letters: topology::stream_state(nats, dead_letters::STREAM).await?.state.messages,
            last: follow(nats, requested.last_sequence).await?,
            requested: requested.messages,
        })
    }

    /// How fast each queue has moved since an earlier moment.
    #[must_use]
    pub fn rates_since(&self, earlier: &Self) -> Vec<Rates> {
        let seconds = self.at.duration_since(earlier.at).max(Duration::from_millis(1));
        #[expect(clippy::cast_precision_loss, reason = "it is shown without fractions")]
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds.as_secs_f64();
        let pairs = self.queues.iter().zip(&earlier.queues);
        pairs
            .map(|(now, then)| Rates {
                come: rate(now.came, then.came),
                go: rate(now.went, then.went),
            })
            .collect()
    }
}

async fn follow(nats: &Context, last: u64) -> anyhow::Result<Vec<Followed>> {
    let bucket = facts::REQUESTED;
    let stream = nats.get_stream_no_info(bucket.stream).await.context("cannot follow requests")?;
    let mut followed = Vec::new();
    for sequence in (last.saturating_sub(FOLLOWED - 1).max(1)..=last).rev() {
        // A bucket may have gaps, and may be empty.
        let Ok(message) = stream.get_raw_message(sequence).await else { continue };
        let Ok(request) = <Request as Fact>::decode(&message.payload) else { continue };
        followed.push(Followed {
            stored: fact(nats, &request).await?,
            received: fact(nats, &request).await?,
            request,
        });
    }
    Ok(followed)
}

async fn fact<F: Fact>(nats: &Context, request: &Request) -> anyhow::Result<Option<F>> {
    let found = last_under(nats, F::BUCKET.stream, &F::BUCKET.subject(request.id)).await?;
    Ok(found.and_then(|message| F::decode(&message.payload).ok()))
}
