//! Declaring the topology, with patience.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use contract::topology::{self, DeclareError, Limits, Topology};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::connection::Connection;
use crate::said::Said;

/// The first ceiling of the time between two tries to declare the topology, and the highest.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Declares the topology, and tries until the broker answers.
pub(crate) async fn declare(
    connection: &Connection,
    limits: &Limits,
) -> Result<Topology, DeclareError> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut said = Said::default();
    loop {
        let declaring = pin!(topology::declare(connection.context(), limits));
        let declared = tokio::select! {
            declared = connection.ask(declaring) => declared,
            refusal = connection.creation_refused() => {
                if said.is_news(&refusal) {
                    warn!(
                        refusal,
                        "something is missing that this user may not create; waiting for \
                         `decoupled declare`"
                    );
                }
                None
            }
        };
        match declared {
            Some(Ok(topology)) => {
                for object in &topology.created {
                    info!(object, "created");
                }
                for difference in &topology.differences {
                    warn!(%difference, "running on with the broker's limit");
                }
                return Ok(topology);
            }
            Some(Err(error)) if !matches!(error, DeclareError::Unavailable { .. }) => {
                return Err(error);
            }
            Some(Err(error)) if said.is_news(&error) => {
                warn!(%error, "cannot declare the topology yet; trying again");
            }
            Some(Err(_)) | None => {}
        }
        backoff.wait().await;
    }
}

/// Declares the topology again whenever a publisher finds no stream to publish to: somebody may have
/// deleted it, or the broker may have come back with an empty store.
pub(crate) async fn repair(connection: Connection, limits: Limits, missing: Arc<Notify>) {
    let mut said = Said::default();
    loop {
        missing.notified().await;
        match declare(&connection, &limits).await {
            Ok(_) => said.forget(),
            Err(error) if said.is_news(&error) => {
                error!(%error, "cannot declare again what is missing");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY.1).await;
    }
}
