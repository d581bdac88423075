//! The HTTP API: strings can be asked for and looked up from outside.
//!
//! ```text
//! server     connections, all bounded
//! activity   which of them nobody waits for
//! http       what HTTP asks of a request
//! guard      keeps pages of other sites away
//! router     the routes; what is wrong is always a problem
//! input      reads what is sent, strictly
//! ask        accepted, refused or unknown, within a second
//! status     how far a request has come, and waiting for it
//! list       the same for the newest requests
//! openapi    all of this for programs
//! ```
//!
//! It answers from the moment that the process runs, also while there is no broker.

mod activity;
mod ask;
mod guard;
mod http;
mod input;
mod list;
mod metrics;
mod openapi;
mod problem;
mod router;
mod server;
mod status;
mod wait;

pub(crate) use wait::Waiting;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use contract::{facts, queues};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;
use workqueue::Service;

use ask::Asker;
use metrics::Metrics;
use problem::{Kind, Problem};
use status::Reader;

/// Where the API is, unless somebody says otherwise.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);

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
    /// The names that it may be reached under.
    hosts: Vec<String>,
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

/// Listens on this address, and says on which it does. Without one it is the usual one; where that is
/// taken, any port will do, so that several requestors can run on one machine without a word.
///
/// # Errors
///
/// The address that cannot be listened on, and why.
pub(crate) async fn listen(
    addr: Option<SocketAddr>,
) -> Result<(TcpListener, SocketAddr), (SocketAddr, io::Error)> {
    let wanted = addr.unwrap_or(USUAL);
    let listener = match TcpListener::bind(wanted).await {
        Err(taken) if addr.is_none() && taken.kind() == io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::new(USUAL.ip(), 0)).await
        }
        listener => listener,
    };
    let listener = listener.map_err(|error| (wanted, error))?;
    let addr = listener.local_addr().map_err(|error| (wanted, error))?;
    info!(%addr, "API listens");
    Ok((listener, addr))
}

impl Serving {
    /// Answers whoever connects. Until [`Serving::connect`] the answer is that the broker is away.
    pub(crate) fn start(listener: TcpListener, addr: SocketAddr, hosts: &[String]) -> Self {
        let hosts = hosts.iter().filter(|host| !host.is_empty()).cloned().collect();
        let api = Arc::new(Api {
            addr,
            hosts,
            broker: OnceLock::new(),
            waiting: Arc::default(),
            metrics: Metrics::default(),
            closing: CancellationToken::new(),
        });
        let router = router::router(Arc::clone(&api));
        let server = tokio::spawn(server::serve(listener, router, api.closing.clone()));
        Self { api, server: AbortOnDropHandle::new(server) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_the_usual_port_is_taken_any_will_do_and_one_that_was_asked_for_is_missed() {
        // By this test, or by somebody else on this machine.
        let _taken = TcpListener::bind(USUAL).await;
        let (_listener, addr) = listen(None).await.unwrap();
        assert_ne!(addr.port(), USUAL.port());
        let (missed, error) = listen(Some(addr)).await.unwrap_err();
        assert_eq!((missed, error.kind()), (addr, io::ErrorKind::AddrInUse));
    }
}
