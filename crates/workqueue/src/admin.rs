//! The admin endpoint: `/livez`, `/readyz` and `/metrics`.

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
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::http::{self, ServerLimits};

/// Probes and scrapes need one or two short connections, and send some hundred bytes. An answer takes milliseconds, so
/// the limits are for the network. A scrape gives up after ten seconds by itself.
const LIMITS: ServerLimits = ServerLimits {
    connections: 64,
    head_bytes: 8 * 1024,
    head_time: Duration::from_secs(10),
    idle_time: Duration::from_secs(10),
    closing_time: Duration::from_secs(1),
    keep_alive: None,
    overloaded: || ("text/plain", "too many connections\n".to_owned()),
};

/// The state of the process that the admin endpoint reports.
pub trait Report: Send + Sync + 'static {
    /// Why the process is not ready, if it is not.
    fn not_ready(&self) -> Option<String>;

    /// Its metrics, in the `OpenMetrics` text format.
    ///
    /// # Errors
    ///
    /// If they cannot be written down.
    fn metrics(&self) -> Result<String, fmt::Error>;
}

/// Listens, and returns the future that serves the admin endpoint until `end`. Requests that arrived before are still
/// answered, unless the process ends first.
///
/// # Errors
///
/// If it cannot listen on the address.
pub async fn serve(
    addr: SocketAddr,
    report: Arc<dyn Report>,
    end: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let listener = TcpListener::bind(addr).await?;
    info!(addr = %listener.local_addr()?, "admin endpoint listens");
    Ok(http::serve(listener, router(report), LIMITS, end))
}

fn router(report: Arc<dyn Report>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(report)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    struct Nothing;

    impl Report for Nothing {
        fn not_ready(&self) -> Option<String> {
            None
        }

        fn metrics(&self) -> Result<String, fmt::Error> {
            Ok("# EOF\n".to_owned())
        }
    }

    #[tokio::test]
    async fn unknown_paths_methods_and_lines_are_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let end = CancellationToken::new();
        tokio::spawn(http::serve(listener, router(Arc::new(Nothing)), LIMITS, end));
        for (asked, status) in [
            ("GET /livez HTTP/1.1", "200"),
            ("GET /readyz HTTP/1.1", "200"),
            ("GET /metrics HTTP/1.1", "200"),
            ("GET /nowhere HTTP/1.1", "404"),
            ("DELETE /metrics HTTP/1.1", "405"),
            ("neither a path nor a method", "400"),
        ] {
            let mut client = TcpStream::connect(addr).await.unwrap();
            client.write_all(format!("{asked}\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{asked}: {answer}");
        }
    }
}
