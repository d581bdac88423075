//! Asks a broker about itself, over HTTP.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take. A paused server takes connections, and says nothing.
const LIMIT: Duration = Duration::from_secs(5);

/// What the server that monitors itself on this port answers to a question such as `/healthz`.
pub(super) async fn get(port: u16, path: &str) -> anyhow::Result<Value> {
    let what = || format!("its monitor says nothing to {path}");
    let answer = timeout(LIMIT, async {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        // In this version of HTTP the answer comes in one piece, and ends with the connection.
        connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    });
    let answer = answer.await.with_context(what)?.with_context(what)?;
    let (_, body) = answer.split_once("\r\n\r\n").with_context(what)?;
    serde_json::from_str(body).with_context(|| format!("{}, but: {body}", what()))
}
