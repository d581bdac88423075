//! One consumer of a service, for as long as the service runs.

use std::pin::pin;
use std::sync::Arc;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::ConsumerErrorKind;
use contract::queues::Queue;
use contract::topology::Limits;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::declare::{RETRY, declare};
use super::{ServiceError, connection_losses, in_background};
use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::consumer::{self, End, Handler, Rules};
use crate::crew::Crew;
use crate::health::Health;
use crate::said::Said;

/// What keeps a queue consumed: binds to its consumer, and declares that again where it is gone.
pub(super) struct QueueConsumer {
    pub(super) connection: Connection,
    pub(super) limits: Limits,
    pub(super) rules: Rules,
    pub(super) health: Arc<Health>,
    pub(super) stop: CancellationToken,
}

impl QueueConsumer {
    /// Consumes until the service stops. Where the consumer goes missing on the broker, it is
    /// declared again, with all that went with it.
    pub(super) async fn run<H: Handler>(mut self, handler: Arc<H>) -> Result<(), ServiceError> {
        let queue = self.rules.queue;
        let mut crew = Crew::new(queue.stream);
        loop {
            let Some(bound) = self.stop.run_until_cancelled(self.bind()).await else { break };
            let Some(bound) = bound else {
                warn!(queue = queue.stream, "the consumer is gone; declaring it again");
                let declared = declare(&self.connection, &self.limits);
                let Some(declared) = self.stop.run_until_cancelled(declared).await else { break };
                let topology = declared?;
                self.rules.ack_wait = topology.ack_wait(queue);
                self.rules.facts_max_age = topology.facts_max_age();
                continue;
            };
            self.health.set_bound(queue, true);
            let rules = Arc::new(self.rules.clone());
            let Self { connection, stop, .. } = &self;
            let _losses = in_background(connection_losses::watch(
                connection.clone(),
                bound.clone(),
                queue,
                rules.ack_wait,
            ));
            let consumed = consumer::consume(connection, bound, &rules, &handler, stop, &mut crew);
            match consumed.await? {
                End::Stopped => return Ok(()),
                End::Gone => self.health.set_bound(queue, false),
            }
        }
        crew.finish().await;
        Ok(())
    }

    /// The consumer, or nothing where it is not there.
    async fn bind(&self) -> Option<PullConsumer> {
        let Queue { stream, consumer, .. } = self.rules.queue;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut said = Said::default();
        loop {
            let bind = self.connection.context().get_consumer_from_stream(consumer, stream);
            match self.connection.ask(pin!(bind)).await {
                Some(Ok(bound)) => return Some(bound),
                Some(Err(error)) => match error.kind() {
                    ConsumerErrorKind::JetStream(answer)
                        if [ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND]
                            .contains(&answer.error_code()) =>
                    {
                        return None;
                    }
                    _ if said.is_news(&error) => {
                        warn!(%error, stream, consumer, "cannot bind yet; trying again");
                    }
                    _ => {}
                },
                None => {}
            }
            backoff.wait().await;
        }
    }
}
