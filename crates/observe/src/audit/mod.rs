//! The audit: reads the records of a deployment, and finds the lost and the doubled requests.

mod evidence;
mod ledger;
mod memory;
mod read;
mod verdict;

pub use verdict::{Ids, Paused, Redelivered, Verdict};

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use contract::{facts, queues};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};
use tracing::warn;
use workqueue::topology::{self, DeclareError};
use workqueue::{LogOnce, chain};

use evidence::{Evidence, Requestors};
use ledger::{JudgedFact, Ledger, Seen, Standing};

/// The pause between two checks whether the queues are empty.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest time without an answer of the broker: a cluster may have to elect a new leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// The number of answers that may each fail after a longer time than that. Each may have been answered until shortly
/// before its end.
const LONG_ANSWERS: u32 = 3;

/// The time for the new leader of a stream to apply the messages that its predecessor confirmed. Before that, it answers
/// as if they were not there.
const CATCH_UP: Duration = Duration::from_secs(2);

/// The shortest pause between two verdicts, and its ratio to the time that a verdict takes: each reads all records.
const LOOKS: (Duration, u32) = (Duration::from_secs(1), 10);

/// Judges a deployment. If requests are pending, it waits for at most `wait` until none is, or until a verdict is not
/// clean.
///
/// # Errors
///
/// If the broker does not answer for half a minute, or does not have the topology.
pub async fn audit(nats: &Context, wait: Duration) -> anyhow::Result<Verdict> {
    let deadline = Instant::now() + wait;
    let mut pause = LOOKS.0;
    loop {
        drained(nats, deadline.saturating_duration_since(Instant::now()).min(pause)).await?;
        let begun = Instant::now();
        let verdict = patiently(async || judge(nats).await).await?;
        if verdict.pending == 0 || !verdict.is_clean() || Instant::now() >= deadline {
            return Ok(verdict);
        }
        pause = LOOKS.0.max(begun.elapsed() * LOOKS.1);
        sleep(PAUSE).await;
    }
}

/// Waits for at most `wait` until the queues are empty. Returns the number of messages that are still in them.
///
/// # Errors
///
/// As [`audit`].
pub async fn drained(nats: &Context, wait: Duration) -> anyhow::Result<u64> {
    let deadline = Instant::now() + wait;
    loop {
        let left = patiently(async || left_in_queues(nats).await).await?;
        if left == 0 || Instant::now() >= deadline {
            return Ok(left);
        }
        sleep(PAUSE).await;
    }
}

async fn left_in_queues(nats: &Context) -> anyhow::Result<u64> {
    let mut left = 0;
    let [schedules, queues @ ..] = queues::ALL;
    for queue in queues {
        left += topology::stream_state(nats, queue.stream).await?.state.messages;
    }
    // A schedule may wait for a month.
    let schedules = topology::queue_state(nats, schedules).await?;
    Ok(left + schedules.waiting() + schedules.in_flight())
}

/// Repeats the whole question if the broker does not answer: a cluster may be electing a leader.
async fn patiently<T>(ask: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    // From the first silence on, because a whole question may take longer than that.
    let (mut limit, mut long_answers) = (None, 0);
    let mut logged = LogOnce::default();
    loop {
        let begun = Instant::now();
        let answer = ask().await;
        if begun.elapsed() > PATIENCE && long_answers < LONG_ANSWERS {
            // The silence before it had ended.
            (limit, long_answers) = (None, long_answers + 1);
        }
        match answer {
            Err(error)
                if !is_final(&error)
                    && Instant::now() < *limit.get_or_insert_with(|| Instant::now() + PATIENCE) =>
            {
                let reason = chain(&*error);
                if logged.is_first(&reason) {
                    warn!(reason, "no answer yet; asking again for up to {PATIENCE:?}");
                }
                sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Whether this is an answer of the broker that a repetition does not change.
fn is_final(error: &anyhow::Error) -> bool {
    let answer = error.chain().find_map(|cause| cause.downcast_ref::<DeclareError>());
    answer.is_some_and(|answer| !matches!(answer, DeclareError::Unavailable { .. }))
}

async fn judge(nats: &Context) -> anyhow::Result<Verdict> {
    // The audit compares ages, and this machine's clock may be wrong.
    workqueue::compare_clocks(nats, facts::REQUESTED.stream).await?;
    let facts_max_age = topology::facts_max_age(nats, &facts::ALL).await?;
    let mut requestors = Requestors::default();
    let mut ledger = read::everything(nats, None, &mut requestors).await?;
    // While this reads, requests are accepted and messages move. So each unasked or lost request is read again before it
    // counts as such.
    let accepted = async |id: &str, mut seen: Seen| {
        read::read_fact(nats, JudgedFact::Requested, id, &mut seen).await?;
        // Perhaps it was the id of a bundle that was settled before it could be read.
        Ok((!seen.is_only_in_a_queue() || read::is_in_a_queue(nats, id).await?).then_some(seen))
    };
    look_again(&mut ledger, Standing::Unasked, facts_max_age, accepted).await?;
    for pause in [Duration::ZERO, CATCH_UP] {
        let now = workqueue::now();
        let mut all = ledger.iter();
        if !all.any(|(id, seen)| seen.standing(id, now, facts_max_age) == Standing::Lost) {
            break;
        }
        sleep(pause).await;
        let bundled = read::bundled(nats, &ledger).await?;
        let anywhere = async |id: &str, _seen| {
            let mut all = read::everything(nats, Some(id), &mut Requestors::default()).await?;
            let mut seen = all.remove(id).unwrap_or_default();
            seen.in_a_bundle = bundled.contains(id);
            Ok(Some(seen))
        };
        look_again(&mut ledger, Standing::Lost, facts_max_age, anywhere).await?;
    }
    let mut verdict = Verdict::default();
    let mut evidence = Evidence::of(requestors);
    let now = workqueue::now();
    for (id, seen) in &ledger {
        let standing = seen.standing(id, now, facts_max_age);
        verdict.count(id, standing);
        evidence.note(id, standing);
    }
    // Read last, so that a store that was replaced meanwhile is found.
    evidence.memories = read::memories(nats).await?;
    verdict.remembers_since = evidence.since();
    verdict.cannot_tell = evidence.doubt(workqueue::now(), facts_max_age);
    for queue in queues::ALL {
        let state = topology::queue_state(nats, queue)
            .await
            .with_context(|| format!("cannot count the deliveries of {}", queue.stream))?;
        let queue = queue.stream;
        let deliveries = state.redelivered().max(0).cast_unsigned();
        verdict.redelivered.push(Redelivered { queue, deliveries });
        verdict.paused.extend(state.paused_until().map(|until| Paused { queue, until }));
    }
    Ok(verdict)
}

/// Reads all requests of this standing a second time. Drops those that are none.
async fn look_again(
    ledger: &mut Ledger,
    standing: Standing,
    facts_max_age: Duration,
    look: impl AsyncFn(&str, Seen) -> anyhow::Result<Option<Seen>>,
) -> anyhow::Result<()> {
    let now = workqueue::now();
    // The second observations replace the first ones.
    let suspects =
        ledger.extract_if(.., |id, seen| seen.standing(id, now, facts_max_age) == standing);
    let suspects: Vec<(String, Seen)> = suspects.collect();
    let mut looks = stream::iter(suspects)
        .map(async |(id, seen)| {
            let seen = look(&id, seen).await?;
            anyhow::Ok((id, seen))
        })
        .buffer_unordered(read::AT_A_TIME);
    while let Some((id, seen)) = looks.try_next().await? {
        ledger.extend(seen.map(|seen| (id, seen)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::{anyhow, ensure};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn long_question_that_meets_a_second_silence_is_repeated() {
        let asked = Cell::new(0);
        let answer = patiently(async || {
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                sleep(PATIENCE * 2).await;
            }
            ensure!(asked.get() > 2, "the broker does not answer");
            Ok(asked.get())
        });
        assert_eq!(answer.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn question_that_is_never_answered_ends() {
        for time in [Duration::ZERO, PATIENCE * 2] {
            let answer = patiently(async || {
                sleep(time).await;
                Err::<(), _>(anyhow!("the broker does not answer"))
            });
            answer.await.unwrap_err();
        }
    }
}
