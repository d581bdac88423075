//! Listens, and bounds what clients can make it hold.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
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

/// Whether a connection is about something.
#[derive(Debug, Default)]
struct Activity(AtomicBool);

/// An answer is being made, or read, for as long as this is there.
struct Busy(Arc<Activity>);

impl Activity {
    fn begin(self: &Arc<Self>) -> Busy {
        self.0.store(true, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    fn is_busy(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

/// Answers whoever connects, until the viewer stops. Where there are too many, the one goes that has been
/// there longest of those that are about nothing; and of all, if there is none: a page comes back by
/// itself.
pub(crate) async fn serve(listener: TcpListener, viewer: Arc<Viewer>) {
    let stop = viewer.stop.clone();
    stop.run_until_cancelled(accept(listener, viewer)).await;
}

async fn accept(mut listener: TcpListener, viewer: Arc<Viewer>) {
    let router = router(Arc::clone(&viewer));
    let mut open: VecDeque<(AbortHandle, Arc<Activity>)> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let (connection, _) = Listener::accept(&mut listener).await;
        open.retain(|(connection, _)| !connection.is_finished());
        if open.len() == MAX_CONNECTIONS {
            let idle = open.iter().position(|(_, activity)| !activity.is_busy());
            debug!(idle = idle.is_some(), "too many connections to the page; closing the oldest");
            if let Some((oldest, _)) = open.remove(idle.unwrap_or(0)) {
                oldest.abort();
            }
        }
        let activity = Arc::new(Activity::default());
        let answering = answer(connection, router.clone(), Arc::clone(&activity));
        let answering = viewer.stop.clone().run_until_cancelled_owned(answering);
        open.push_back((tokio::spawn(answering).abort_handle(), activity));
    }
}

async fn answer(connection: TcpStream, router: Router, activity: Arc<Activity>) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        let busy = activity.begin();
        let answer = router.call(request);
        async move {
            let answer = answer.await?;
            // What is read for as long as somebody looks is an answer until its end.
            Ok::<_, Infallible>(answer.map(|body| {
                body.map_err(move |error| {
                    let _busy = &busy;
                    error
                })
            }))
        }
    });
    // A picture is small, and is not to wait for the next one.
    let _ = connection.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(connection), service);
    if let Err(error) = connection.await {
        debug!(%error, "a connection to the page failed");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::OnceLock;

    use clap::Parser;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::audit::Audit;
    use crate::metrics::Metrics;
    use crate::picture::{Flow, Pictures};
    use crate::settings::Settings;

    async fn served() -> (SocketAddr, Arc<Viewer>) {
        let viewer = Arc::new(Viewer {
            settings: Settings::parse_from(["viewer"]),
            metrics: Metrics::new(),
            pictures: Pictures::default(),
            audit: Audit::default(),
            connection: OnceLock::new(),
            replayer: OnceLock::new(),
            stop: CancellationToken::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::clone(&viewer)));
        (addr, viewer)
    }

    async fn ask(addr: SocketAddr, head: &str) -> TcpStream {
        let mut connection = TcpStream::connect(addr).await.unwrap();
        connection.write_all(head.as_bytes()).await.unwrap();
        connection
    }

    /// Reads until it says this.
    async fn hear(connection: &mut TcpStream, words: &str) {
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(words) {
            assert_ne!(connection.read_buf(&mut heard).await.unwrap(), 0, "closed before {words}");
        }
    }

    #[tokio::test]
    async fn a_page_that_is_looked_at_outlives_any_number_of_connections_about_nothing() {
        let (addr, viewer) = served().await;
        let mut page = ask(addr, "GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        hear(&mut page, "event: about").await;
        let mut others = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            others.push(TcpStream::connect(addr).await.unwrap());
        }
        // Whoever is answered came after all of these.
        let mut last = ask(addr, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        hear(&mut last, "200 OK").await;
        viewer.pictures.take(workqueue::now(), Ok(Flow::default()));
        hear(&mut page, "event: picture").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let (addr, _viewer) = served().await;
        let head = "POST /api/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                    Content-Length: 10\r\n\r\n{";
        let mut slow = ask(addr, head).await;
        hear(&mut slow, "408 Request Timeout").await;
    }
}
