//! Serves HTTP to clients that may be slow, silent or too many.
//!
//! Any client that can reach the port can connect. So [`ServerLimits`] bound all resources that a client can use: the
//! number of connections, the time for which one may be silent, and the bytes kept for each. The [`Router`] makes the
//! answers.
//!
//! The limits of tower-http begin once the head of a request is read, and end once its answer is made. They limit
//! neither the connections, nor a slow head, nor a client that does not read its answer, nor the delay of a shutdown
//! by such clients.

mod activity;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use activity::{Activity, Phase, Watched};

/// The most clients that are turned away at a time, and the time limit for each.
const MAX_TURNED_AWAY: usize = 32;
const TURNING_AWAY_TIME: Duration = Duration::from_secs(1);

/// The most bytes that are read of a body that no answer needs, so that a client that first sends all of it can read
/// the answer. A larger body is no accident.
const MAX_DISCARDED: usize = 128 << 20;
const DISCARDED_AT_A_TIME: usize = 16 << 10;

/// The limits of the resources that clients may use.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// The most open connections.
    pub connections: usize,
    /// The most bytes kept of a request, which limits its head. hyper's minimum is 8 KiB.
    pub head_bytes: usize,
    /// Time limit for the head of a request, from its first byte on; for the first request, from the beginning of the
    /// connection.
    pub head_time: Duration,
    /// Time in which a client has to take some of its answer, or to send the body of its request. On Linux also that in
    /// which its machine has to acknowledge bytes.
    pub idle_time: Duration,
    /// The same once the server is closing.
    pub closing_time: Duration,
    /// Time for which a connection may be silent between two requests; without it, a connection carries one request.
    /// It has to be longer than a proxy keeps connections: if a connection is closed while the proxy sends a request,
    /// the request fails.
    pub keep_alive: Option<Duration>,
    /// Media type and body of the answer (503) to a client for which there is no connection.
    pub overloaded: fn() -> (&'static str, String),
}

impl ServerLimits {
    /// The limits of an API with a page: a browser has some connections, and waits between two requests.
    pub const OF_A_PAGE: Self = Self {
        connections: 256,
        head_bytes: 16 * 1024,
        head_time: Duration::from_secs(10),
        idle_time: Duration::from_secs(30),
        closing_time: Duration::from_secs(2),
        // Proxies keep connections for a minute.
        keep_alive: Some(Duration::from_secs(75)),
        overloaded: || ("text/plain", "too many connections\n".to_owned()),
    };
}

/// Answers until `closing`; then accepts no more connections, and ends once each client has the answer to its request.
///
/// If there are too many connections, one is closed: the oldest that waits for its client, or else the oldest whose
/// answer is being sent. If all wait for an answer, the new one is turned away.
pub async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    closing: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let mut turned_away = JoinSet::new();
    let mut open: VecDeque<(AbortHandle, Arc<Activity>)> = VecDeque::new();
    loop {
        let (connection, _) = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                log_panic(ended);
                continue;
            }
            Some(ended) = turned_away.join_next(), if !turned_away.is_empty() => {
                log_panic(ended);
                continue;
            }
            accepted = Listener::accept(&mut listener) => accepted,
        };
        open.retain(|(connection, _)| !connection.is_finished());
        if open.len() >= limits.connections {
            let oldest = |phases: &[Phase]| {
                open.iter().position(|(_, activity)| phases.contains(&activity.phase()))
            };
            let waits = oldest(&[Phase::Idle, Phase::Client]);
            let Some(oldest) = waits.or_else(|| oldest(&[Phase::Sending])) else {
                debug!("too many connections, and all wait for an answer");
                if turned_away.len() < MAX_TURNED_AWAY {
                    turned_away.spawn(turn_away(connection, limits.overloaded));
                }
                continue;
            };
            debug!("too many connections; closing one");
            if let Some((oldest, _)) = open.remove(oldest) {
                oldest.abort();
            }
        }
        // An event is small, and does not wait for the next one.
        let _ = connection.set_nodelay(true);
        #[cfg(target_os = "linux")]
        end_if_vanished(&connection, limits.idle_time);
        let activity = Arc::new(Activity::default());
        let answering =
            answer(connection, router.clone(), limits, Arc::clone(&activity), closing.clone());
        open.push_back((connections.spawn(answering), activity));
    }
    // From now on, connections are refused.
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

/// Ends a connection whose client has vanished without closing it. While the kernel has room for the answer, as for
/// most events, nothing else shows it, and the kernel alone would try for a quarter of an hour.
#[cfg(target_os = "linux")]
fn end_if_vanished(connection: &tokio::net::TcpStream, idle_time: Duration) {
    use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};

    let millis = idle_time.as_millis().try_into().unwrap_or(u32::MAX);
    let _ = setsockopt(connection, TcpUserTimeout, &millis);
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "answering a request panicked");
    }
}

/// Answers any request with the error for too many connections.
async fn turn_away<C>(mut connection: C, overloaded: fn() -> (&'static str, String))
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (media_type, body) = overloaded();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let telling = async {
        connection.write_all(answer.as_bytes()).await?;
        connection.shutdown().await?;
        discard(&mut connection, TURNING_AWAY_TIME).await
    };
    let _ = timeout(TURNING_AWAY_TIME, telling).await;
}

/// Reads what the client still sends, until it ends, sends nothing for that long, or sends too much.
async fn discard(connection: &mut (impl AsyncRead + Unpin), idle_time: Duration) -> io::Result<()> {
    let (mut buffer, mut discarded) = (vec![0; DISCARDED_AT_A_TIME], 0);
    while discarded < MAX_DISCARDED {
        match timeout(idle_time, connection.read(&mut buffer)).await?? {
            0 => break,
            read => discarded += read,
        }
    }
    Ok(())
}

/// Answers the requests of one connection, until its client closes it or is too slow.
async fn answer<C>(
    connection: C,
    router: Router,
    limits: ServerLimits,
    activity: Arc<Activity>,
    closing: CancellationToken,
) where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let (answering, request) = activity.begin(request);
        let answer = router.call(request);
        Box::pin(async move { answer.await.map(|answer| answering.send(answer)) })
    });
    let watched = Watched { connection, activity: &activity };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.keep_alive.unwrap_or(limits.head_time))
        .keep_alive(limits.keep_alive.is_some())
        .max_buf_size(limits.head_bytes)
        .serve_connection(TokioIo::new(watched), service);
    let mut slow_head = pin!(activity.slow_head(limits.head_time));
    let mut stuck = pin!(activity.stuck(limits.idle_time));
    // A client that does not read or send must not keep the server from closing.
    let mut in_the_way = pin!(async {
        closing.cancelled().await;
        activity.stuck(limits.closing_time).await;
    });
    let mut asked_to_close = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => break ended,
            () = slow_head.as_mut() => return debug!("the head of a request is slow; closing"),
            () = stuck.as_mut() => return debug!("a client is too slow to send or to read; closing"),
            () = in_the_way.as_mut() => return debug!("a client delays the shutdown; closing"),
            () = closing.cancelled(), if !asked_to_close => {
                asked_to_close = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    let mut connection = connection.into_parts().io.into_inner().connection;
    let closed = async {
        timeout(limits.idle_time, connection.shutdown()).await??;
        // A server that closes while something is unread resets the connection, and its answer is lost.
        if activity.has_unread_body() {
            discard(&mut connection, limits.idle_time).await?;
        }
        io::Result::Ok(())
    };
    let _ = closing.run_until_cancelled(closed).await;
    if let Err(error) = ended {
        debug!(%error, "a connection failed");
    }
}
