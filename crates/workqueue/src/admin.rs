//! The admin endpoint: `/livez`, `/readyz` and `/metrics`.
//!
//! Whoever reaches its port may ask, so everything that a client can make it hold is bounded: how
//! many connections, for how long, and how many bytes of each.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// How many connections may be open at a time. Probes and scrapes need one or two, and only for
/// moments.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may last, from its first byte to the last one of the answer. An answer
/// takes milliseconds, so this is for the network; a scrape gives up after ten seconds itself.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// How many bytes of a request are read and kept, which is all of its head. It is the smallest
/// number that hyper takes, and some twenty times what a probe sends.
const MAX_HEAD: usize = 8 * 1024;

/// What the admin endpoint tells of the process.
pub trait Report: Send + Sync + 'static {
    /// Why the process is not ready, if it is not.
    fn not_ready(&self) -> Option<String>;

    /// Its metrics, in the `OpenMetrics` text format.
    ///
    /// # Errors
    ///
    /// Where they cannot be written down.
    fn metrics(&self) -> Result<String, fmt::Error>;
}

/// Serves the admin endpoint until `end`. What has been asked by then is still answered, unless the
/// process ends first.
///
/// # Errors
///
/// Where the address cannot be listened on.
pub async fn serve(
    addr: SocketAddr,
    report: Arc<dyn Report>,
    end: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::bind(addr).await?;
    info!(addr = %listener.local_addr()?, "admin endpoint listens");
    let router = router(report);
    tokio::spawn(end.run_until_cancelled_owned(accept(listener, router, CONNECTION_TIME)));
    Ok(())
}

fn router(report: Arc<dyn Report>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(report)
}

/// Answers whoever connects. Where there are too many, the one that has been there longest has to
/// go: it had the most time, and a probe must not wait behind those who say nothing.
async fn accept(mut listener: TcpListener, router: Router, limit: Duration) {
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let (connection, _) = Listener::accept(&mut listener).await;
        open.retain(|connection| !connection.is_finished());
        if open.len() == MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            debug!("too many connections to the admin endpoint; closing the oldest");
            oldest.abort();
        }
        let answer = tokio::spawn(answer(connection, router.clone(), limit));
        open.push_back(answer.abort_handle());
    }
}

/// Answers one request, and closes the connection: with nothing to wait for in between, a single
/// limit covers a client that is slow to ask, slow to read, or silent. The body of a request is not
/// read, because no answer depends on it.
async fn answer<C>(connection: C, router: Router, limit: Duration)
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    match timeout(limit, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection to the admin endpoint failed"),
        Err(_) => debug!("a connection to the admin endpoint took too long"),
    }
}

async fn readyz(State(report): State<Arc<dyn Report>>) -> (StatusCode, String) {
    match report.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn metrics_text(State(report): State<Arc<dyn Report>>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match report.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpStream;

    use super::*;

    /// Reached only if there is a bug, on however slow a machine.
    const LIMIT: Duration = Duration::from_mins(1);

    /// So long that a connection which ends was not ended by it.
    const PATIENT: Duration = Duration::from_hours(1);

    struct Nothing;

    impl Report for Nothing {
        fn not_ready(&self) -> Option<String> {
            None
        }

        fn metrics(&self) -> Result<String, fmt::Error> {
            Ok("# EOF\n".repeat(100))
        }
    }

    fn some_router() -> Router {
        router(Arc::new(Nothing))
    }

    /// The client's end of a connection that lasts no longer than `limit`, and on the way of which
    /// there is room for `room` bytes.
    fn connect(room: usize, limit: Duration) -> DuplexStream {
        let (client, server) = duplex(room);
        tokio::spawn(answer(server, some_router(), limit));
        client
    }

    /// All that comes until the other end closes the connection.
    async fn rest(mut connection: impl AsyncRead + Unpin) -> String {
        let mut received = Vec::new();
        // One that is closed while it still sends may see a reset instead of the end.
        let _ = timeout(LIMIT, connection.read_to_end(&mut received)).await.expect("it is closed");
        String::from_utf8(received).unwrap()
    }

    async fn ask(head: &str) -> String {
        let mut client = connect(1024, PATIENT);
        client.write_all(head.as_bytes()).await.unwrap();
        rest(client).await
    }

    /// Sends the same again and again for as long as it is taken, and gives the number of bytes.
    async fn send_endlessly(client: &mut DuplexStream, chunk: &[u8]) -> usize {
        let mut sent = 0;
        let sending = async {
            while client.write_all(chunk).await.is_ok() {
                sent += chunk.len();
            }
        };
        timeout(LIMIT, sending).await.expect("it is not taken for ever");
        sent
    }

    #[tokio::test]
    async fn a_request_is_answered_and_the_connection_closed() {
        let answer = ask("GET /livez HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        let answer = ask("GET /livez HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\n\r\n").await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }

    #[tokio::test]
    async fn a_path_that_is_not_there_and_a_method_that_is_not_are_refused() {
        let answer = ask("GET /nowhere HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let answer = ask("DELETE /metrics HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        let answer = ask("neither a path nor a method\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_stops_in_the_middle_of_a_line_is_closed() {
        for begun in ["", "GET /livez HTTP/1.1\r\nAccept: text/"] {
            let mut client = connect(1024, Duration::from_millis(1));
            client.write_all(begun.as_bytes()).await.unwrap();
            assert_eq!(rest(client).await, "");
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_closed() {
        // There is room for a few bytes of the answer, and never for all.
        let mut client = connect(16, Duration::from_millis(1));
        // Where the time is up before all is sent, the connection is closed as well.
        let _ = client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await;
        let sent = send_endlessly(&mut client, b"more").await;
        assert!(sent <= MAX_HEAD + 16, "{sent} bytes were taken");
        let answer = rest(client).await;
        assert!(answer.len() <= 16, "{answer}");
    }

    #[tokio::test]
    async fn headers_without_end_are_refused() {
        let mut client = connect(1024, PATIENT);
        client.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let sent = send_endlessly(&mut client, b"a: header\r\n").await;
        assert!(sent <= MAX_HEAD + 1024, "{sent} bytes were taken");
        let answer = rest(client).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[tokio::test]
    async fn a_body_is_not_read() {
        for (framing, chunk) in [
            ("Content-Length: 1000000000", [b'.'; 64].as_slice()),
            ("Transfer-Encoding: chunked", b"4\r\nmore\r\n"),
            ("Content-Length: 1000000000\r\nExpect: 100-continue", &[b'.'; 64]),
        ] {
            let mut client = connect(1024, PATIENT);
            let head = format!("GET /livez HTTP/1.1\r\n{framing}\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            let sent = send_endlessly(&mut client, chunk).await;
            assert!(sent <= 2 * MAX_HEAD, "{sent} bytes were taken");
            let answer = rest(client).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
    }

    #[tokio::test]
    async fn any_number_of_silent_clients_keeps_nobody_from_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, some_router(), PATIENT));
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(b"GET /livez HTTP/1.1\r\n\r\n").await.unwrap();
        let answer = rest(client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(rest(silent.swap_remove(0)).await, "");
    }
}
