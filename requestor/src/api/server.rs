//! The connections of the API. Whoever reaches its port may ask, so everything that a client can make
//! it hold is bounded: how many connections, for how long one may be silent, and how many bytes of it
//! are kept.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, body};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::activity::Activity;
use super::problem::{Kind, Outcome, PROBLEM_JSON};

/// How many connections may be open at a time. Each takes some 30 kB while it is asking.
const MAX_CONNECTIONS: usize = 128;

/// How long the head of a request may take to come, and how long a connection may stay silent between
/// two requests.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long a client may take to read an answer, at the least.
const READ_TIME: Duration = Duration::from_secs(30);

/// How many bytes of a request are kept, which is all of its head.
const MAX_HEAD: usize = 16 * 1024;

/// How long a client may take to read its answer, or to send the rest of a body, once this is closing.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// How many that are turned away may be told so at a time, and how long each of them is listened to.
/// Who closes while something is unread resets the connection, and the answer is lost with it.
const MAX_TURNED_AWAY: usize = 32;
const TURNING_AWAY_TIME: Duration = Duration::from_secs(1);

/// Answers whoever connects until `closing`; then takes no more, and ends once everybody has the answer
/// to what was asked.
///
/// Where there are too many connections, the one goes that has been there longest of those for which no
/// answer is being made, the sending of a body being no part of that. If all are waiting for one, the
/// new one is told so, and has to go.
pub(super) async fn serve(mut listener: TcpListener, router: Router, closing: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut turned_away = JoinSet::new();
    let mut open: VecDeque<(AbortHandle, Arc<Activity>)> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            Some(_) = turned_away.join_next(), if !turned_away.is_empty() => continue,
            accepted = Listener::accept(&mut listener) => accepted,
        };
        open.retain(|(connection, _)| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            let Some(idle) = open.iter().position(|(_, activity)| !activity.is_busy()) else {
                debug!("too many connections to the API, and all wait for an answer");
                if turned_away.len() < MAX_TURNED_AWAY {
                    turned_away.spawn(turn_away(accepted.0));
                }
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

/// Says that there are too many, whatever is asked.
async fn turn_away<C: AsyncRead + AsyncWrite + Unpin>(mut connection: C) {
    let problem = Kind::Busy.because("too many wait for an answer; nothing of this try remains");
    let body = problem.with(Outcome::NotAsked).json();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nretry-after: 1\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let telling = async {
        connection.write_all(&[head.as_bytes(), &body].concat()).await?;
        connection.shutdown().await?;
        let mut rest = [0; 1024];
        while connection.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whoever does not listen is not told.
    let _ = timeout(TURNING_AWAY_TIME, telling).await;
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
        service_fn(move |request: Request<body::Incoming>| {
            let (head, body) = request.into_parts();
            let (answering, body) = activity.begin(body);
            let answer = router.call(Request::from_parts(head, body));
            async move {
                let _answering = answering;
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
    // Nobody who stops waits for those who do not read, or do not send.
    let mut in_the_way = pin!(async {
        closing.cancelled().await;
        activity.stuck(CLOSING_TIME).await;
    });
    let mut asked_to_close = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = stuck.as_mut() => {
                debug!("a client of the API does not read its answer");
                return;
            }
            () = in_the_way.as_mut() => {
                debug!("a client of the API keeps it from closing");
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::Bytes;
    use axum::routing::{get, post};
    use tokio::net::TcpStream;
    use tokio::sync::{Notify, mpsc};
    use tokio::task::JoinHandle;

    use super::*;

    /// So long that reaching it means a fault.
    const LIMIT: Duration = Duration::from_mins(1);

    /// Serves these routes until the token is cancelled.
    async fn start(router: Router) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, closing) = (listener.local_addr().unwrap(), CancellationToken::new());
        (addr, closing.clone(), tokio::spawn(serve(listener, router, closing)))
    }

    /// Routes that say when they have begun, and `GET /` that answers at `release` only.
    fn routes(sender: mpsc::UnboundedSender<()>, release: &Arc<Notify>) -> Router {
        let (release, posts) = (Arc::clone(release), sender.clone());
        let waits = move || async move {
            sender.send(()).unwrap();
            release.notified().await;
        };
        let reads = async move |body: Request<axum::body::Body>| {
            posts.send(()).unwrap();
            axum::body::to_bytes(body.into_body(), 100).await.unwrap_or_default()
        };
        let large = async || Bytes::from(vec![b'a'; 64 << 20]);
        Router::new().route("/", get(waits)).route("/", post(reads)).route("/large", get(large))
    }

    async fn send(addr: SocketAddr, request: &str) -> TcpStream {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client
    }

    async fn all(mut client: TcpStream) -> String {
        let mut answer = String::new();
        timeout(LIMIT, client.read_to_string(&mut answer)).await.expect("an answer").unwrap();
        answer
    }

    #[tokio::test]
    async fn whoever_does_not_send_its_body_goes_first_and_who_waits_for_an_answer_stays() {
        let ((sender, mut begun), release) = (mpsc::unbounded_channel(), Arc::default());
        let (addr, ..) = start(routes(sender, &release)).await;
        let waiting = send(addr, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await;
        begun.recv().await.unwrap();
        let mut slow = Vec::new();
        for _ in 1..MAX_CONNECTIONS {
            slow.push(send(addr, "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n1").await);
            begun.recv().await.unwrap();
        }
        let short = "POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\n12";
        let answer = all(send(addr, short).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("12"), "{answer}");
        release.notify_one();
        assert!(all(waiting).await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn where_all_wait_for_an_answer_the_next_is_told_so() {
        let ((sender, mut begun), release) = (mpsc::unbounded_channel(), Arc::default());
        let (addr, ..) = start(routes(sender, &release)).await;
        let mut waiting = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            waiting.push(send(addr, "GET / HTTP/1.1\r\n\r\n").await);
            begun.recv().await.unwrap();
        }
        let answer = all(send(addr, "GET / HTTP/1.1\r\n\r\n").await).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("#busy"), "{answer}");
        assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
        assert!(answer.contains("not-asked"), "{answer}");
    }

    #[tokio::test]
    async fn who_does_not_read_or_send_keeps_nothing_from_closing_and_who_waits_is_answered() {
        let ((sender, mut begun), release) = (mpsc::unbounded_channel(), Arc::default());
        let (addr, closing, mut served) = start(routes(sender, &release)).await;
        let waiting = send(addr, "GET / HTTP/1.1\r\n\r\n").await;
        begun.recv().await.unwrap();
        let _unsent = send(addr, "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n1").await;
        begun.recv().await.unwrap();
        let mut unread = send(addr, "GET /large HTTP/1.1\r\n\r\n").await;
        unread.read_exact(&mut [0]).await.unwrap();
        closing.cancel();
        // The answer is still being made when those who are in the way have had their time.
        let early = timeout(CLOSING_TIME * 3, &mut served).await;
        assert!(early.is_err(), "who waits for an answer has to get one");
        release.notify_one();
        assert!(all(waiting).await.starts_with("HTTP/1.1 200 "));
        // READ_TIME would be over for the one that does not read, but this is not what ends it.
        timeout(READ_TIME / 2, served).await.expect("it ends").unwrap();
    }
}
