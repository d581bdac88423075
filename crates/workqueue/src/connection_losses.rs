//! Logs which command helps where a message breaks the connection again and again.
//!
//! The client learns nothing of a message that it cannot read, only that the connection is lost. What
//! tells it from a broker that comes and goes: it happens again soon, while a message is redelivered.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;

use async_nats::jetstream::consumer::PullConsumer;
use tokio::time::Instant;
use tracing::warn;

use crate::Queue;
use crate::connection::Connection;

/// Two losses within this many `ACK_WAIT`s are suspicious. With several replicas, each takes the message
/// only now and then.
const SUSPICIOUS: u32 = 10;

/// Watches the connection for as long as it is awaited, and logs that once.
pub(crate) async fn watch(
    connection: &Connection,
    consumer: &PullConsumer,
    queue: Queue,
) -> Infallible {
    let ack_wait = consumer.cached_info().config.ack_wait;
    let mut last_loss: Option<Instant> = None;
    let mut times = connection.times_connected();
    loop {
        connection.reconnected(times).await;
        times = connection.times_connected();
        let Some(Ok(info)) = connection.ask(pin!(consumer.get_info())).await else { continue };
        if info.num_redelivered == 0 {
            continue;
        }
        let before = last_loss.replace(Instant::now());
        if before.is_some_and(|before| before.elapsed() < ack_wait * SUSPICIOUS) {
            warn!(
                queue = queue.stream,
                redelivered = info.num_redelivered,
                "lost the connection again while a message was redelivered, which the client library may \
                 be unable to read; run `decoupled declare --watch`, which moves it to the dead letters"
            );
            return pending().await;
        }
    }
}
