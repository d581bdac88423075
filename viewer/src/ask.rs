//! Asks for strings through the requestor's API, for the form on the page.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::http::{Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use contract::{Amount, RequestId};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// How long the API may take to accept a request: its queue may be full for a while.
const LIMIT: Duration = Duration::from_secs(10);

/// How many bytes of its answer are read.
const MOST_BYTES: usize = 64 * 1024;

/// What the API says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is accepted, under this id.
    Accepted(RequestId),
    /// It is not, why, and what became of it, in the words of the API.
    Refused(StatusCode, String, Option<Outcome>),
}

/// What became of a request that could not be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Nothing of it remains, anywhere.
    NotAsked,
    /// It may be carried out all the same. Under the same key it is safe to try again.
    Unknown,
}

#[derive(Deserialize)]
struct Accepted {
    id: RequestId,
}

/// What went wrong, as RFC 9457 has it.
#[derive(Default, Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
    outcome: Option<Outcome>,
}

/// Asks the API at this address for strings, under a key of who asks.
pub(crate) async fn ask(api: &Uri, amount: Amount, key: &str) -> anyhow::Result<Answer> {
    // The address may hold a password, which is for nobody's eyes.
    let place = api.host().unwrap_or_default();
    let (status, body) = timeout(LIMIT, post(api, amount, key))
        .await
        .with_context(|| format!("the API at {place} does not answer"))?
        .with_context(|| format!("the API at {place} cannot be asked"))?;
    if status == StatusCode::ACCEPTED {
        let accepted: Accepted = serde_json::from_slice(&body).with_context(|| {
            format!("the API at {place} does not say which request it has accepted")
        })?;
        return Ok(Answer::Accepted(accepted.id));
    }
    let Problem { title, detail, outcome } = serde_json::from_slice(&body).unwrap_or_default();
    let why = detail.or(title).unwrap_or_else(|| format!("it answers {status}"));
    Ok(Answer::Refused(status, why, outcome))
}

async fn post(api: &Uri, amount: Amount, key: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let host = api.host().context("it has no host")?;
    let port = api.port_u16().unwrap_or(80);
    // An address of IPv6 is in brackets there.
    let connection = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let path = format!("{}/requests", api.path().trim_end_matches('/'));
    let body = json!({ "count": amount.count(), "length": amount.length() }).to_string();
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    ensure!(!status.is_redirection(), "it answers {status}, and nobody follows");
    let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("its answer cannot be read: {error}"))?;
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An API that answers one request so. Gives its address, and what it was asked.
    async fn api(answer: String) -> (Uri, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"}") {
                assert_ne!(connection.read_buf(&mut asked).await.unwrap(), 0);
            }
            connection.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (api, asked)
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn amount() -> Amount {
        Amount::new(2, 8).unwrap()
    }

    #[tokio::test]
    async fn what_is_accepted_has_an_id() {
        let id = RequestId::new();
        let (api, asked) = api(answer("202 Accepted", &format!(r#"{{"id":"{id}"}}"#))).await;
        assert_eq!(ask(&api, amount(), "mine").await.unwrap(), Answer::Accepted(id));
        let asked = asked.await.unwrap();
        assert!(asked.contains("idempotency-key: mine\r\n"), "{asked}");
        assert!(asked.starts_with("POST /requests HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with(r#"{"count":2,"length":8}"#), "{asked}");
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let problem = r#"{"title":"full","detail":"the queue is full","outcome":"not-asked"}"#;
        let (api, _) = api(answer("503 Service Unavailable", problem)).await;
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let outcome = Some(Outcome::NotAsked);
        let refused = Answer::Refused(status, "the queue is full".to_owned(), outcome);
        assert_eq!(ask(&api, amount(), "mine").await.unwrap(), refused);
    }

    #[tokio::test]
    async fn a_password_in_the_address_is_not_said() {
        let (api, _) = api("nothing of HTTP\r\n\r\n".to_owned()).await;
        let api = api.to_string().replace("http://", "http://me:secret@").parse().unwrap();
        let error = format!("{:#}", ask(&api, amount(), "mine").await.unwrap_err());
        assert!(error.contains("127.0.0.1") && !error.contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_an_error() {
        for wrong in [
            answer("202 Accepted", "{}"),
            answer("202 Accepted", r#"{"id":"../../etc"}"#),
            answer("302 Found", ""),
            "nothing of HTTP\r\n\r\n".to_owned(),
            answer("202 Accepted", &"x".repeat(2 * MOST_BYTES)),
        ] {
            let (api, _) = api(wrong.clone()).await;
            assert!(ask(&api, amount(), "mine").await.is_err(), "{wrong}");
        }
    }
}
