//! HTTP requests to processes on this machine.

use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::Context;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The status and the body of the answer for a path such as `/healthz`.
///
/// # Errors
///
/// If no server answers there, or not in HTTP.
pub async fn get(addr: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut connection = TcpStream::connect(addr).await?;
    // In HTTP/1.0 the answer comes in one piece, and ends with the connection.
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    let HttpResponse { status, body, .. } = HttpResponse::read(&answer)?;
    Ok((status, body))
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    /// Its status.
    pub status: u16,
    /// Its headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl HttpResponse {
    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON, or null if it is no JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// Parses all bytes of an answer.
    ///
    /// # Errors
    ///
    /// If they are no answer in HTTP.
    pub fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let parts = text.split_once("\r\n\r\n").and_then(|(head, body)| {
            let (first, headers) = head.split_once("\r\n").unwrap_or((head, ""));
            let status = first.split(' ').nth(1)?.parse().ok()?;
            let headers = headers.lines().filter_map(|line| line.split_once(": "));
            let headers = headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            Some(Self { status, headers, body: body.to_owned() })
        });
        parts.with_context(|| format!("this is no answer: {text}"))
    }
}

/// Sends a request with these headers and this body, on a connection of its own.
///
/// # Errors
///
/// If no server answers there, or not in HTTP.
pub async fn ask(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> anyhow::Result<HttpResponse> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n")?;
    }
    let length = body.len();
    let mut connection = TcpStream::connect(addr).await?;
    let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    HttpResponse::read(&answer)
}
