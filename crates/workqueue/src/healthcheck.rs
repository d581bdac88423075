//! Checks the health of the service that runs beside it, for images that have no shell and no other program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::body::{self, Body};
use axum::http::{Request, StatusCode, header};
use clap::Subcommand;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// The time limit for the answer. The caller of the check has a limit as well, but reports less.
const LIMIT: Duration = Duration::from_secs(2);

/// How much of an answer is read, in bytes.
const MAX_ANSWER: usize = 4096;

/// The subcommands of the program of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Checks whether the service at `ADMIN_ADDR` is ready.
    #[command(
        about = "Checks whether the service at ADMIN_ADDR is ready",
        long_about = "Checks whether the service at ADMIN_ADDR is ready.\n\nADMIN_ADDR comes from the \
            environment, or as a flag before this word. Exit status 0 if the service is ready, 1 with the \
            reason if it is not. Meant for images without a shell and curl."
    )]
    Healthcheck,
}

/// Why a service is not known to be ready.
#[derive(Debug, thiserror::Error)]
pub enum HealthcheckError {
    /// The service listens on a port that it has chosen itself.
    #[error("ADMIN_ADDR is {0}: with port 0 the service chooses a port; set one, such as 8080")]
    AnyPort(SocketAddr),
    /// Nothing listens there, or another program.
    #[error("no service answers at {addr} (ADMIN_ADDR): {reason}")]
    NoAnswer {
        /// The address of the admin endpoint.
        addr: SocketAddr,
        /// The error.
        reason: String,
    },
    /// The service is not ready, with its reason.
    #[error("{0}")]
    NotReady(String),
}

/// Checks whether the service with this admin endpoint is ready.
///
/// # Errors
///
/// If it is not ready, or does not answer within two seconds.
pub async fn healthcheck(admin_addr: SocketAddr) -> Result<(), HealthcheckError> {
    if admin_addr.port() == 0 {
        return Err(HealthcheckError::AnyPort(admin_addr));
    }
    let addr = SocketAddr::new(reachable(admin_addr.ip()), admin_addr.port());
    let no_answer = |reason: String| HealthcheckError::NoAnswer { addr, reason };
    let answer = timeout(LIMIT, ask(addr)).await;
    let answer = answer.map_err(|_| no_answer(format!("silent for {LIMIT:?}")))?;
    match answer.map_err(|error| no_answer(error.to_string()))? {
        (StatusCode::OK, _) => Ok(()),
        (_, text) => Err(HealthcheckError::NotReady(text)),
    }
}

/// The address at which a program on the same machine reaches a listener on `address`.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

async fn ask(
    addr: SocketAddr,
) -> Result<(StatusCode, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get("/readyz").header(header::HOST, addr.to_string());
    let answer = sender.send_request(request.body(Body::empty())?).await?;
    let status = answer.status();
    let text = body::to_bytes(Body::new(answer.into_body()), MAX_ANSWER).await?;
    Ok((status, String::from_utf8_lossy(&text).trim().to_owned()))
}
