//! The gateway: the HTTP API and the web page, one program on one port.
//!
//! ```text
//! router      the routes; each request passes guard, and is counted in metrics
//!   requests      the API: submit, reader, list, waiters, events; input of requests, view of answers
//!   schedules     the API: recurring requests
//!   queues        the API: their content; pause, resume
//!   dead_letters  the API: lists, counts by reason, replay, discard
//!   openapi       its description
//!   page          the page: its files, events and the history of one request
//!   lessons       the course: its lessons, and the checks of their steps over the flow
//! input       bodies and queries; etag answers 304 if the client already has the content
//! timeline    a snapshot of the flow each second, and the last five minutes; flow_metrics has the last snapshot
//! audit       the verdict, on demand
//! settings    flags and environment
//! state       shared by the routes
//! problem     errors for clients (RFC 9457)
//! ```
//!
//! It needs only the broker: either service may be away, or both. One task reads for all browsers, with a constant
//! number of questions a second. A slow browser gets fewer events, so no events pile up.

mod audit;
mod dead_letters;
mod etag;
mod flow_metrics;
mod guard;
mod input;
pub mod lessons;
mod metrics;
mod openapi;
mod page;
mod problem;
mod queues;
mod requests;
mod router;
mod schedules;
mod settings;
mod state;
mod timeline;

pub use settings::{GatewaySettings, LabAddress, Switch};

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use contract::queues::REQUESTS;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use workqueue::topology::DeclareError;
use workqueue::{
    ClientEnded, ClockWatch, ConnectError, Connection, Metrics, Producer, Report, http,
};

use flow_metrics::FlowMetrics;
use metrics::GatewayMetrics;
use problem::{PROBLEM_JSON, ProblemKind};
use requests::reader::RequestReader;
use requests::submit::Submissions;
use state::{Gateway, Operator};

/// The address without `GATEWAY_ADDR`.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// A page keeps one connection for the events, and opens others for a moment. A request takes some 30 kB, and the answer
/// with a list up to some megabytes, until its client has read it.
const LIMITS: http::ServerLimits = http::ServerLimits {
    overloaded: || {
        // Without an outcome: this request is not read, and it may have a key under which an earlier one was accepted.
        let detail = "too many clients wait for an answer; this request was not read";
        (PROBLEM_JSON, ProblemKind::Busy.because(detail).json())
    },
    ..http::ServerLimits::OF_A_PAGE
};

/// The time limit for open answers once the gateway stops.
const DRAIN: Duration = Duration::from_secs(20);

/// Why the gateway cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It cannot listen on an address.
    #[error(
        "cannot listen on {addr} ({setting}): {source}; with {setting}=127.0.0.1:0 it takes \
         a free port"
    )]
    Listen {
        /// The setting.
        setting: &'static str,
        /// The address.
        addr: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The connection failed, and a retry does not help.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The topology on the broker differs, and waiting does not help.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// The client has panicked.
    #[error(transparent)]
    Client(#[from] ClientEnded),
}

/// Runs the gateway until `stop` is cancelled. It listens first, and then tries to connect until it succeeds: without a
/// broker, the page says so.
///
/// # Errors
///
/// See [`GatewayError`].
pub async fn run(settings: GatewaySettings, stop: &CancellationToken) -> Result<(), GatewayError> {
    // Ends all tasks that are started here, however this function ends.
    let stop = stop.child_token();
    let _end = stop.clone().drop_guard();
    let metrics = Metrics::new("gateway");
    let timeline = Arc::<timeline::Timeline>::default();
    let flow = Box::new(FlowMetrics(Arc::clone(&timeline)));
    metrics.with_registry(|registry| registry.register_collector(flow));
    let (addr, gateway_addr) = (settings.admin_addr, settings.gateway_addr);
    let gateway = Arc::new(Gateway {
        settings,
        metrics: metrics.with_registry(GatewayMetrics::new),
        timeline,
        audit: audit::Audit::default(),
        reader: OnceLock::new(),
        submissions: OnceLock::new(),
        clock: Mutex::default(),
        refused: Arc::default(),
        waiters: requests::waiters::Waiters::default(),
        reasons: dead_letters::counts::Counts::default(),
        operator: OnceLock::new(),
        stop: stop.clone(),
    });
    let report = GatewayReport { metrics: Arc::clone(&metrics), gateway: Arc::clone(&gateway) };
    // Ends the admin endpoint, once the open answers are drained: until then it reports that the gateway stops.
    let drained = CancellationToken::new();
    let admin = workqueue::serve_admin(addr, Arc::new(report), drained.clone())
        .await
        .map_err(|source| GatewayError::Listen { setting: "ADMIN_ADDR", addr, source })?;
    let listener = listen(gateway_addr).await?;
    let router = router::router(Arc::clone(&gateway));
    let work = async { tokio::try_join!(work(&gateway, &metrics), operator(&gateway)).map(drop) };
    let working = stop.run_until_cancelled(Box::pin(work));
    let answering = http::serve(listener, router, LIMITS, stop.clone());
    let serving = async {
        answering.await;
        drained.cancel();
    };
    // In this task, so that a panic of the server ends the gateway.
    let mut serving = pin!(async { tokio::join!(serving, admin) });
    tokio::select! {
        worked = working => worked.unwrap_or(Ok(()))?,
        _ = &mut serving => return Ok(()),
    }
    let _ = timeout(DRAIN, serving).await;
    info!("stopped");
    Ok(())
}

/// Listens on this address; without one on the usual address, or on a free port if another program listens there.
async fn listen(addr: Option<SocketAddr>) -> Result<TcpListener, GatewayError> {
    let wanted = addr.unwrap_or(USUAL);
    let listener = match TcpListener::bind(wanted).await {
        Err(taken) if addr.is_none() && taken.kind() == io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::new(USUAL.ip(), 0)).await
        }
        listener => listener,
    };
    let failed = |source| GatewayError::Listen { setting: "GATEWAY_ADDR", addr: wanted, source };
    let listener = listener.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    info!(%addr, version = env!("CARGO_PKG_VERSION"), "gateway listens");
    Ok(listener)
}

/// Connects and declares. Then takes snapshots for the page, for as long as the client lives.
async fn work(gateway: &Gateway, metrics: &Arc<Metrics>) -> Result<(), GatewayError> {
    let settings = &gateway.settings;
    let name = format!("gateway {}", settings.instance);
    let report = {
        let (metrics, refused) = (Arc::clone(metrics), Arc::clone(&gateway.refused));
        move |connected: Result<(), &ConnectError>| {
            metrics.set_connected(connected.is_ok());
            refused.store(matches!(connected, Err(ConnectError::Refused { .. })), Relaxed);
        }
    };
    let refusal = || gateway.refusal();
    let connecting = Connection::establish_patiently(&settings.nats, &name, report);
    let connection = tokio::select! {
        connection = connecting => connection?,
        never = timeline::wait(&gateway.timeline, &settings.nats, refusal) => match never {},
    };
    let _ = gateway.reader.set(RequestReader::new(&connection));
    let submitting = async {
        let limits = settings.limits;
        let producer = Producer::new(&connection, limits, requests::submit::SLOTS, metrics);
        // The whole topology, because the page and the API read all of it.
        let max_age = producer.declare(&contract::topology()).await?.facts_max_age();
        let report =
            |wrong| *gateway.clock.lock().expect("nothing panics while it holds this lock") = wrong;
        let clocks = ClockWatch::start(&connection, REQUESTS.stream, report).await;
        let submissions = Submissions::new(&connection, producer, &settings.instance, max_age);
        let _ = gateway.submissions.set(submissions);
        info!("accepting requests");
        Ok::<Infallible, GatewayError>(clocks.run().await)
    };
    tokio::select! {
        failed = submitting => failed.map(|never| match never {}),
        never = timeline::poll(&gateway.timeline, &gateway.metrics, &connection, refusal) => match never {},
        never = gateway.audit.run(&connection, settings.audit_limit) => match never {},
        ended = connection.ended() => Err(ended.into()),
    }
}

/// Connects as the user for control, if `CONTROL` is on.
async fn operator(gateway: &Gateway) -> Result<(), GatewayError> {
    let Some(settings) = gateway.settings.control_nats() else { return Ok(()) };
    let connection =
        Connection::establish_patiently(&settings, "gateway control", |_connected| {}).await?;
    let (limits, metrics) = (gateway.settings.limits, Metrics::new("operator"));
    let producer = Producer::new(&connection, limits, requests::submit::SLOTS, &metrics);
    let _ = gateway.operator.set(Operator { connection: connection.clone(), producer });
    Err(connection.ended().await.into())
}

/// The admin endpoint's report.
struct GatewayReport {
    metrics: Arc<Metrics>,
    gateway: Arc<Gateway>,
}

impl Report for GatewayReport {
    /// A gateway that has lost the broker stays ready, and its page says so. But a gateway that has never connected, for
    /// example because of a wrong password, must not replace one that has.
    fn not_ready(&self) -> Option<String> {
        if self.gateway.stop.is_cancelled() {
            return Some("stopping".to_owned());
        }
        if self.gateway.reader.get().is_none() {
            let refusal = self.gateway.refusal();
            return Some(refusal.unwrap_or_else(|| "not connected to the broker yet".to_owned()));
        }
        self.gateway.clock.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_that_was_not_read_has_no_outcome() {
        let (_, problem) = (LIMITS.overloaded)();
        assert!(problem.contains("openapi.json#busy") && !problem.contains("outcome"), "{problem}");
    }

    #[tokio::test]
    async fn taken_port_is_an_error_only_if_it_was_set() {
        // Taken by this test, or by another program on this machine.
        let _taken = TcpListener::bind(USUAL).await;
        let addr = listen(None).await.unwrap().local_addr().unwrap();
        assert_ne!(addr.port(), USUAL.port());
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = taken.local_addr().unwrap();
        let error = listen(Some(addr)).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {addr} (GATEWAY_ADDR)")), "{error}");
    }
}
