use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::background::Ended;
use crate::connect_error::{ClientEnded, ConnectError};
use crate::connection::Connection;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::producer::Producer;
use crate::topology::{DeclareError, Topology};

/// A service that is connected, and whose topology is declared on the broker.
#[derive(Clone, Debug)]
pub struct Running {
    /// Submits jobs, and creates and reads facts.
    pub producer: Producer,
    /// The connection to the broker.
    pub connection: Connection,
    /// Cancelled when the service has to stop. Cancelling it stops only this service.
    pub stopping: CancellationToken,
    /// Cancelled when a stopping service has no time left for its jobs in flight.
    pub abandoned: CancellationToken,
    pub(crate) topology: Arc<Topology>,
    pub(crate) facts_max_age: Duration,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    /// The first error that ends the service.
    pub(crate) failure: Arc<Mutex<Option<ServiceError>>>,
}

impl Running {
    /// Stops the service gracefully, because of this error.
    pub(crate) fn fail(&self, error: impl Into<ServiceError>) {
        let error = error.into();
        error!(%error, "the service cannot go on");
        self.failure().get_or_insert(error);
        self.stopping.cancel();
    }

    pub(crate) fn failure(&self) -> MutexGuard<'_, Option<ServiceError>> {
        self.failure.lock().expect("nothing panics while it holds this lock")
    }
}

/// Why a service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// It cannot listen on the address of the admin endpoint.
    #[error("cannot listen on {addr} (ADMIN_ADDR): {source}{}", hint(source))]
    Admin {
        /// The address.
        addr: SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// It cannot connect, and a retry does not help.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The streams on the broker are not those that the service needs, and waiting does not help.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// The client has panicked.
    #[error(transparent)]
    Client(#[from] ClientEnded),
    /// The client cannot subscribe to messages.
    #[error("cannot subscribe to the answers of the broker: {0}")]
    Subscribe(#[from] async_nats::SubscribeError),
    /// A background task ended before the service did.
    #[error(transparent)]
    Background(#[from] Ended),
}

/// A likely reason for the failure to listen on an address.
fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => "; another process listens there",
        ErrorKind::AddrNotAvailable => "; it is no address of this machine",
        _ => "",
    }
}
