//! The audit: reads what a deployment has written down, and says what was lost or doubled.

mod ledger;
mod read;
mod verdict;

pub use verdict::{Redelivered, Verdict};

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use contract::topology::DeclareError;
use contract::{queues, topology};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use ledger::{Ledger, Seen, Standing};

/// How often to look whether the queues are empty.
const PAUSE: Duration = Duration::from_millis(100);

/// For how long the broker may fail to answer: a cluster whose leader has died elects another one.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many suspects to look at a second time at once.
const SECOND_LOOKS: usize = 32;

/// Judges a deployment. If something is pending, waits for at most `wait` until nothing is.
///
/// # Errors
///
/// Where the broker does not answer for half a minute, or has no topology of ours to read.
pub async fn audit(nats: &Context, wait: Duration) -> anyhow::Result<Verdict> {
    let deadline = Instant::now() + wait;
    let mut answered = Instant::now();
    loop {
        match look(nats, deadline).await {
            Ok(verdict) if verdict.pending == 0 || Instant::now() >= deadline => {
                return Ok(verdict);
            }
            Ok(_) => answered = Instant::now(),
            Err(error) if is_final(&error) || answered.elapsed() >= PATIENCE => return Err(error),
            Err(error) => tracing::info!("reading it again from the beginning: {error:#}"),
        }
        sleep(PAUSE).await;
    }
}

/// Waits until the queues are empty, or the deadline has come, and judges.
async fn look(nats: &Context, deadline: Instant) -> anyhow::Result<Verdict> {
    while !queues_are_empty(nats).await? && Instant::now() < deadline {
        sleep(PAUSE).await;
    }
    judge(nats).await
}

/// Whether the broker has answered, and will not answer otherwise a moment later.
fn is_final(error: &anyhow::Error) -> bool {
    let answer = error.downcast_ref::<DeclareError>();
    answer.is_some_and(|answer| !matches!(answer, DeclareError::Unavailable { .. }))
}

async fn queues_are_empty(nats: &Context) -> anyhow::Result<bool> {
    for queue in queues::ALL {
        if topology::stream_state(nats, queue.stream).await?.state.messages > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn judge(nats: &Context) -> anyhow::Result<Verdict> {
    let facts_max_age = topology::facts_max_age(nats).await?;
    let mut ledger = read::everything(nats).await?;
    // Requests are accepted while one reads, and messages move: nothing is called unasked or lost
    // before it was looked for again.
    let accepted = async |id: &str, seen| read::accepted(nats, id, seen).await;
    look_again(&mut ledger, Standing::Unasked, facts_max_age, accepted).await?;
    let anywhere = async |id: &str, _seen| read::one(nats, id).await;
    look_again(&mut ledger, Standing::Lost, facts_max_age, anywhere).await?;
    let mut verdict = Verdict::default();
    for (id, standing) in ledger.standings(worker::now(), facts_max_age) {
        verdict.count(id, standing);
    }
    for queue in queues::ALL {
        verdict.redelivered.push(redelivered(nats, queue).await?);
    }
    Ok(verdict)
}

/// Looks a second time at all requests that stand so.
async fn look_again(
    ledger: &mut Ledger,
    standing: Standing,
    facts_max_age: Duration,
    look: impl AsyncFn(&str, Seen) -> anyhow::Result<Seen>,
) -> anyhow::Result<()> {
    let suspects: Vec<(String, Seen)> = ledger.standing(standing, worker::now(), facts_max_age);
    let mut looks = stream::iter(suspects)
        .map(async |(id, seen)| {
            let seen = look(&id, seen).await?;
            anyhow::Ok((id, seen))
        })
        .buffer_unordered(SECOND_LOOKS);
    while let Some((id, seen)) = looks.try_next().await? {
        ledger.replace(id, seen);
    }
    Ok(())
}

async fn redelivered(nats: &Context, queue: queues::Queue) -> anyhow::Result<Redelivered> {
    let (_, consumer) = topology::queue_state(nats, queue)
        .await
        .with_context(|| format!("cannot count the deliveries of {}", queue.stream))?;
    // Both figures are of one moment, so that it holds under load, too. What the consumer has been
    // sent once is all that the stream had up to the sequence that it has come to.
    let delivered = consumer.delivered;
    let beyond = delivered.consumer_sequence.saturating_sub(delivered.stream_sequence);
    Ok(Redelivered { queue: queue.stream, deliveries: beyond })
}
