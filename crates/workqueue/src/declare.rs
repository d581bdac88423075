//! Declares the topology and binds to a consumer, with retries.

use std::pin::pin;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::ConsumerErrorKind;
use tracing::warn;

use crate::backoff::Backoff;
use crate::commands;
use crate::connect_error::ClientEnded;
use crate::connect_options::RETRY;
use crate::connection::Connection;
use crate::log_once::LogOnce;
use crate::queue::Lane;
use crate::topology::{self, DeclareError, Declared, Limits, Topology};

/// Declares the topology, and retries until the broker answers.
pub(crate) async fn declare(
    connection: &Connection,
    topology: &Topology,
    limits: &Limits,
) -> Result<Declared, DeclareError> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut logged = LogOnce::default();
    loop {
        let (context, known) = (connection.context(), connection.known());
        let declaring = pin!(topology::declare(context, known, topology, limits));
        let declared = tokio::select! {
            declared = connection.ask(declaring) => declared,
            reason = connection.creation_refused() => {
                if logged.is_first(&reason) {
                    warn!(
                        reason,
                        "a stream or consumer is missing and this user may not create it; waiting for {}",
                        commands::declare()
                    );
                }
                None
            }
        };
        match declared {
            Some(Ok(declared)) => {
                declared.log(&mut logged);
                return Ok(declared);
            }
            Some(Err(error)) if !matches!(error, DeclareError::Unavailable { .. }) => {
                return Err(error);
            }
            Some(Err(error)) if logged.is_first(&error) => {
                warn!(%error, "cannot declare the topology yet; trying again");
            }
            None if connection.has_ended() => return Err(ClientEnded.into()),
            Some(Err(_)) | None => {}
        }
        backoff.wait().await;
    }
}

/// Binds to the consumer of a lane, and retries until the broker answers. Returns `None` if the consumer does not
/// exist.
pub(crate) async fn bind(connection: &Connection, lane: Lane) -> Option<PullConsumer> {
    let (stream, consumer) = (lane.queue.stream, lane.consumer());
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut logged = LogOnce::default();
    loop {
        let bind = connection.context().get_consumer_from_stream(&consumer, stream);
        match connection.ask(pin!(bind)).await {
            Some(Ok(bound)) => return Some(bound),
            Some(Err(error)) => match error.kind() {
                ConsumerErrorKind::JetStream(answer)
                    if [ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND]
                        .contains(&answer.error_code()) =>
                {
                    return None;
                }
                _ if logged.is_first(&error) => {
                    warn!(%error, stream, consumer, "cannot bind yet; retrying");
                }
                _ => {}
            },
            None => {}
        }
        backoff.wait().await;
    }
}
