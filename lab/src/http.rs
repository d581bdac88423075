//! Asks processes of this machine about themselves, over HTTP.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The status and the body that are the answer to a question such as `/healthz`.
///
/// # Errors
///
/// Where nobody answers there, or not in HTTP.
pub async fn get(addr: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut connection = TcpStream::connect(addr).await?;
    // In this version of HTTP the answer comes in one piece, and ends with the connection.
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let parts = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parts.with_context(|| format!("this is no answer to {path}: {answer}"))
}
