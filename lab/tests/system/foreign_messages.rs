//! Messages that a test publishes in the place of a service.

use contract::Strings;
use contract::queues::{Acknowledgment, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub fn response(request: &Request, value: &str) -> Response {
    Response {
        id: request.id,
        requested_at: request.requested_at,
        values: Strings::try_from(vec![value.to_owned()]).unwrap(),
        generator: "by hand".to_owned(),
        started_at: None,
        generated_at: workqueue::now(),
    }
}

pub fn acknowledgment(request: &Request, value: &str) -> Acknowledgment {
    Acknowledgment::new(response(request, value), "by hand", workqueue::now())
}

/// A message that no client would send.
pub struct Raw<'a> {
    pub subject: &'a [u8],
    /// The bytes of the headers. Empty for a message without headers.
    pub headers: &'a [u8],
    pub body: &'a [u8],
}

/// Publishes without the client library, and waits until the broker has stored the message. If the broker has users,
/// with a user, its password and its inbox.
pub async fn publish_raw(port: u16, user: Option<(&str, &str)>, inbox: &str, message: Raw<'_>) {
    let mut connection = send_raw(port, user, inbox, message).await;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\"seq\":") {
        let read = connection.read_buf(&mut answer).await.unwrap();
        assert!(read > 0, "it is not stored: {}", answer.escape_ascii());
    }
}

/// Publishes without the client library. Returns the connection, on which the answers arrive.
pub async fn send_raw(
    port: u16,
    user: Option<(&str, &str)>,
    inbox: &str,
    message: Raw<'_>,
) -> TcpStream {
    let Raw { subject, headers, body } = message;
    let user = user.map_or_else(String::new, |(user, password)| {
        format!(r#","user":"{user}","pass":"{password}""#)
    });
    let (head, total) = (headers.len(), headers.len() + body.len());
    let (verb, lengths) =
        if head == 0 { ("PUB", total.to_string()) } else { ("HPUB", format!("{head} {total}")) };
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true{user}}}\r\nSUB {inbox}.stored 1\r\n{verb} "
    );
    let rest = format!(" {inbox}.stored {lengths}\r\n");
    let command = [connect.as_bytes(), subject, rest.as_bytes(), headers, body, b"\r\n"].concat();
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    connection.write_all(&command).await.unwrap();
    connection
}
