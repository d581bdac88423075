//! Logs two states of a consumer that only the broker has: it is paused, or one of its messages breaks the connection
//! repeatedly. Notices when its `ACK_WAIT` is changed, or the `FACTS_MAX_AGE` of the buckets.
//!
//! For a message that the client cannot read, it only notices a lost connection. The difference from a broker that
//! stops and starts: the loss repeats soon, while a message is redelivered.

use std::pin::pin;
use std::time::Duration;

use async_nats::jetstream::consumer::{Info, PullConsumer};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::commands;
use crate::queue::Lane;
use crate::running::Running;
use crate::topology::{facts_max_age, paused_until};

/// Two losses within this many `ACK_WAIT`s are suspicious. With several replicas, each gets the message only from time
/// to time.
const SUSPICIOUS: u32 = 10;

/// How often the broker is asked whether a consumer of a queue is paused, one lane after another.
const INTERVAL: Duration = Duration::from_secs(10);

/// Watches a consumer as long as it is awaited, or until its `ACK_WAIT` has changed, or the time for which facts
/// prevent a second effect. Returns that time.
pub(crate) async fn watch(
    Running { connection, topology, .. }: &Running,
    consumer: &PullConsumer,
    lane: Lane,
    max_age: Duration,
) -> Duration {
    let ack_wait = consumer.cached_info().config.ack_wait;
    let lanes = u32::try_from(lane.queue.lanes().count()).unwrap_or(1);
    let queue = lane.queue.stream;
    let (mut last_loss, mut is_told) = (None::<Instant>, false);
    // A pause at the start was logged with the declaration.
    let mut pause = paused_until(consumer.cached_info());
    let mut times = connection.times_connected();
    loop {
        let lost = timeout(INTERVAL * lanes, connection.reconnected(times)).await.is_ok();
        times = connection.times_connected();
        let Some(Ok(info)) = connection.ask(pin!(consumer.get_info())).await else { continue };
        let now = paused_until(&info);
        match now {
            Some(until) if now != pause => {
                warn!(queue, %until, "the consumer is paused; nothing is delivered until then");
            }
            None if pause.is_some() => info!(queue, "the consumer is no longer paused"),
            _ => {}
        }
        pause = now;
        if info.config.ack_wait != ack_wait {
            info!(queue, was = ?ack_wait, is = ?info.config.ack_wait, "ACK_WAIT has changed; binding again");
            return max_age;
        }
        let asking = facts_max_age(connection.context(), &topology.buckets);
        // With no time at all every job would count as expired. A service does not start with such buckets either.
        if let Some(Ok(is)) = connection.ask(pin!(asking)).await
            && is != max_age
            && !is.is_zero()
        {
            info!(queue, was = ?max_age, ?is, "FACTS_MAX_AGE has changed; binding again");
            return is;
        }
        let Info { num_redelivered: redelivered, .. } = info;
        if !lost || redelivered == 0 {
            continue;
        }
        let before = last_loss.replace(Instant::now());
        if !is_told && before.is_some_and(|before| before.elapsed() < ack_wait * SUSPICIOUS) {
            is_told = true;
            warn!(
                queue,
                redelivered,
                "lost the connection again while a message was redelivered, which the client library may \
                 be unable to read; run {}, which moves it to the dead letters",
                commands::reconcile()
            );
        }
    }
}
