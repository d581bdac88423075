//! The viewer: one program with one page, which shows the flow through the queues.
//!
//! ```text
//! broker     reads the broker once a second, whoever looks       sampler, replicas, loops
//! picture    what a second looked like, and the last five minutes
//! http       the page, and what it asks for                      events, api, guard
//! ask        asks for strings through the requestor's API
//! ```
//!
//! One task reads for all browsers, a constant number of questions a second. Each browser gets the
//! newest picture when it has room for it: one that is slow gets fewer, and nothing piles up.

mod ask;
mod audit;
mod broker;
mod http;
mod metrics;
mod picture;
mod settings;

pub use settings::{Settings, Switch};

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;
use workqueue::{ConnectError, Connection};

use audit::Audit;
use metrics::Metrics;
use picture::Pictures;

/// What all parts of the viewer share.
struct Viewer {
    settings: Settings,
    metrics: Metrics,
    pictures: Pictures,
    audit: Audit,
    /// The connection that everything is read through, once there is one.
    connection: OnceLock<Connection>,
    /// The connection to replay through, once there is one, where that is allowed.
    replayer: OnceLock<Connection>,
    stop: CancellationToken,
}

/// Why the viewer cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ViewerError {
    /// An address cannot be listened on.
    #[error("{setting} is {addr}, which cannot be listened on: {source}; is it taken already?")]
    Listen {
        /// The setting.
        setting: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// There is no use in trying to connect.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The client has panicked.
    #[error(
        "the NATS client has panicked, most likely over the headers of a message that was \
         published by hand: what it says of it is on the standard error"
    )]
    Client,
}

/// Runs the viewer until `stop` is cancelled. It begins with the page, and connects with patience:
/// the page says when there is no broker.
///
/// # Errors
///
/// Where it cannot run, see [`ViewerError`].
pub async fn run(settings: Settings, stop: &CancellationToken) -> Result<(), ViewerError> {
    let (page_addr, admin_addr) = (settings.viewer_addr, settings.admin_addr);
    // Ends everything that was started here, however this ends.
    let stop = stop.child_token();
    let _end = stop.clone().drop_guard();
    let viewer = Arc::new(Viewer {
        settings,
        metrics: Metrics::new(),
        pictures: Pictures::default(),
        audit: Audit::default(),
        connection: OnceLock::new(),
        replayer: OnceLock::new(),
        stop: stop.clone(),
    });
    workqueue::serve_admin(admin_addr, Arc::new(metrics::Told(Arc::clone(&viewer))), stop.clone())
        .await
        .map_err(|source| ViewerError::Listen {
            setting: "ADMIN_ADDR",
            addr: admin_addr,
            source,
        })?;
    let listen = |source| ViewerError::Listen { setting: "VIEWER_ADDR", addr: page_addr, source };
    let listener = TcpListener::bind(page_addr).await.map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    info!(version = env!("CARGO_PKG_VERSION"), "the page is at http://{addr}/");
    tokio::spawn(http::serve(listener, Arc::clone(&viewer)));
    let shown = async {
        tokio::try_join!(show(&viewer), connect_replayer(&viewer), audit::run(&viewer)).map(drop)
    };
    stop.run_until_cancelled(Box::pin(shown)).await.unwrap_or(Ok(()))?;
    info!("stopped");
    Ok(())
}

/// Connects, and reads what there is to show for as long as the client lives.
async fn show(viewer: &Viewer) -> Result<(), ViewerError> {
    let connecting = Connection::establish(&viewer.settings.nats, "viewer", |_connected| {});
    let connection = tokio::select! {
        connection = connecting => connection?,
        never = broker::wait(viewer) => match never {},
    };
    let _ = viewer.connection.set(connection.clone());
    tokio::select! {
        never = broker::show(viewer, &connection) => match never {},
        () = connection.ended() => Err(ViewerError::Client),
    }
}

/// Connects to replay, where that is allowed.
async fn connect_replayer(viewer: &Viewer) -> Result<(), ViewerError> {
    let Some(settings) = viewer.settings.replay_nats() else { return Ok(()) };
    let connection = Connection::establish(&settings, "viewer replay", |_connected| {}).await?;
    let _ = viewer.replayer.set(connection.clone());
    connection.ended().await;
    Err(ViewerError::Client)
}
