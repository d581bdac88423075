//! The HTTP API: strings can be asked for and looked up from outside.
//!
//! ```text
//! server     connections, all bounded
//! guard      keeps pages of other sites away
//! router     the routes; what is wrong is always a problem
//! input      reads what is sent, strictly
//! ask        accepted, refused or unknown, within a second
//! status     how far a request has come, and waiting for it
//! openapi    all of this for programs
//! ```
//!
//! It answers from the moment that the process runs, also while there is no broker.

mod ask;
mod guard;
mod input;
mod metrics;
mod openapi;
mod problem;
mod router;
mod server;
mod status;
mod wait;

pub(crate) use wait::Waiting;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use contract::{facts, queues};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;
use worker::Service;

use ask::Asker;
use metrics::Metrics;
use problem::{Kind, Problem};
use status::Reader;

/// How many may ask at a time, and how many look something up: about as many as the broker answers
/// within some milliseconds.
const SLOTS: usize = 64;

/// How many lists are read at a time. Each of them reads a lot.
const LISTS: usize = 2;

/// How many may wait at a time, which leaves half of the connections to those who do not.
const PLACES: usize = 64;

/// The API, while it is being served. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    api: Arc<Api>,
    server: AbortOnDropHandle<()>,
}

/// What the routes share.
#[derive(Debug)]
struct Api {
    addr: SocketAddr,
    /// Set once there is a connection to the broker, with all that is needed declared on it.
    broker: OnceLock<Broker>,
    waiting: Arc<Waiting>,
    metrics: Metrics,
    closing: CancellationToken,
}

/// What asks the broker.
#[derive(Debug)]
struct Broker {
    asker: Asker,
    reader: Reader,
}

impl Api {
    fn reader(&self) -> Result<&Reader, Problem> {
        let broker = self.broker.get();
        let away = || Kind::BrokerAway.because("there is no connection to the broker yet");
        broker.map(|broker| &broker.reader).ok_or_else(away)
    }
}

impl Serving {
    /// Listens on this address. Until [`Serving::connect`] the answer is that the broker is away.
    ///
    /// # Errors
    ///
    /// Where the address cannot be listened on.
    pub(crate) async fn start(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        info!(%addr, "API listens");
        let api = Arc::new(Api {
            addr,
            broker: OnceLock::new(),
            waiting: Arc::default(),
            metrics: Metrics::default(),
            closing: CancellationToken::new(),
        });
        let router = router::router(Arc::clone(&api));
        let server = tokio::spawn(server::serve(listener, router, api.closing.clone()));
        Ok(Self { api, server: AbortOnDropHandle::new(server) })
    }

    /// Where to say that something is stored.
    pub(crate) fn waiting(&self) -> Arc<Waiting> {
        Arc::clone(&self.api.waiting)
    }

    /// Has it work for this service from now on, as this instance.
    pub(crate) fn connect(&self, service: &Service, instance: &str) {
        service.register_metrics(|registry| self.api.metrics.register(registry));
        let (requested, stored) = (service.facts(facts::REQUESTED), service.facts(facts::STORED));
        let connection = service.connection();
        let asker = Asker {
            connection: connection.clone(),
            requests: service.publisher(queues::REQUESTS),
            idempotency: service.facts(facts::IDEMPOTENCY),
            requested: requested.clone(),
            stored: stored.clone(),
            instance: instance.to_owned(),
            facts_max_age: service.facts_max_age(),
            slots: Semaphore::new(SLOTS),
        };
        let reader = Reader {
            connection: connection.clone(),
            requested,
            stored,
            received: service.facts(facts::RECEIVED),
            readers: Semaphore::new(SLOTS),
            lists: Semaphore::new(LISTS),
            places: Semaphore::new(PLACES),
        };
        self.api.broker.set(Broker { asker, reader }).expect("it is connected once");
    }

    /// Takes no more connections, tells those who wait how far it has come, and ends once everybody has
    /// an answer, or at `abandon`.
    pub(crate) async fn close(self, abandon: &CancellationToken) {
        self.api.closing.cancel();
        let _ = abandon.run_until_cancelled(self.server).await;
    }
}
