//! Listens, and bounds what clients can make it hold.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tracing::debug;

use super::router;
use crate::Viewer;

/// How many connections may be open at a time. A tab has one for the events, and some for moments.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to say what it wants.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How many bytes of a request's head are kept.
const MAX_HEAD: usize = 16 * 1024;

/// Answers whoever connects, until the viewer stops. Where there are too many, the one that has been
/// there longest has to go: a page comes back by itself.
pub(crate) async fn serve(listener: TcpListener, viewer: Arc<Viewer>) {
    let stop = viewer.stop.clone();
    stop.run_until_cancelled(accept(listener, viewer)).await;
}

async fn accept(mut listener: TcpListener, viewer: Arc<Viewer>) {
    let router = router(Arc::clone(&viewer));
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let (connection, _) = Listener::accept(&mut listener).await;
        open.retain(|connection| !connection.is_finished());
        if open.len() == MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            debug!("too many connections to the page; closing the oldest");
            oldest.abort();
        }
        let answering = answer(connection, router.clone());
        let answering = viewer.stop.clone().run_until_cancelled_owned(answering);
        open.push_back(tokio::spawn(answering).abort_handle());
    }
}

async fn answer(connection: TcpStream, router: axum::Router) {
    // A picture is small, and is not to wait for the next one.
    let _ = connection.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        debug!(%error, "a connection to the page failed");
    }
}
