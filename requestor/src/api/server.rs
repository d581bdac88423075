//! The connections of the API. Whoever reaches its port may ask, so everything that a client can make
//! it hold is bounded: how many connections, for how long one may be silent, and how many bytes of it
//! are kept.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How many connections may be open at a time. Each takes some 30 kB while it is asking.
const MAX_CONNECTIONS: usize = 128;

/// How long the head of a request may take to come, and how long a connection may stay silent between
/// two requests.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long a client may take to read an answer, at the least.
const READ_TIME: Duration = Duration::from_secs(30);

/// How many bytes of a request are kept, which is all of its head.
const MAX_HEAD: usize = 16 * 1024;

/// What a connection is about.
#[derive(Debug, Default)]
struct Activity {
    /// An answer is being made.
    busy: AtomicBool,
    /// How many answers have been begun.
    answers: AtomicU64,
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Busy {
        self.busy.store(true, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Ends once no answer was made for that long.
    async fn stuck(&self, limit: Duration) {
        loop {
            let before = self.answers.load(Ordering::Relaxed);
            let busy = self.is_busy();
            sleep(limit).await;
            if !busy && !self.is_busy() && self.answers.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

/// An answer is being made for as long as this is there.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// Answers whoever connects until `closing`; then takes no more, and ends once everybody has the answer
/// to what was asked.
///
/// Where there are too many connections, the one goes that has been there longest of those for which no
/// answer is being made. If all are waiting for one, the new one has to go.
pub(super) async fn serve(mut listener: TcpListener, router: Router, closing: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut open: VecDeque<(AbortHandle, Arc<Activity>)> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = Listener::accept(&mut listener) => accepted,
        };
        open.retain(|(connection, _)| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            let Some(idle) = open.iter().position(|(_, activity)| !activity.is_busy()) else {
                debug!("too many connections to the API, and all wait for an answer");
                continue;
            };
            debug!("too many connections to the API; closing the oldest that is idle");
            if let Some((oldest, _)) = open.remove(idle) {
                oldest.abort();
            }
        }
        let activity = Arc::new(Activity::default());
        let answering = answer(accepted.0, router.clone(), Arc::clone(&activity), closing.clone());
        open.push_back((connections.spawn(answering), activity));
    }
    // From now on whoever connects is told that nobody is here.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn answer<C>(
    connection: C,
    router: Router,
    activity: Arc<Activity>,
    closing: CancellationToken,
) where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let router = TowerToHyperService::new(router);
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request| {
            let busy = activity.begin();
            let answer = router.call(request);
            async move {
                let _busy = busy;
                answer.await
            }
        })
    };
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(connection), service)
    );
    let mut stuck = pin!(activity.stuck(READ_TIME));
    let mut asked_to_close = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = stuck.as_mut() => {
                debug!("a client of the API does not read its answer");
                return;
            }
            () = closing.cancelled(), if !asked_to_close => {
                asked_to_close = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the API failed");
    }
}
