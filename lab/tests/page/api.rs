//! An API in the place of a requestor's: it accepts a request, and asks for it.

use contract::facts::Fact;
use contract::headers::Trace;
use contract::queues::{Message, Request};
use contract::{Amount, RequestId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use async_nats::jetstream::Context;

pub struct Api {
    pub url: String,
    _answering: AbortOnDropHandle<()>,
}

impl Api {
    pub async fn start(nats: &Context) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let nats = nats.clone();
        let answering = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                answer(connection, &nats).await;
            }
        });
        Self { url, _answering: AbortOnDropHandle::new(answering) }
    }
}

async fn answer(mut connection: TcpStream, nats: &Context) {
    let mut asked = Vec::new();
    while !asked.ends_with(b"}") {
        assert_ne!(connection.read_buf(&mut asked).await.unwrap(), 0);
    }
    let asked = String::from_utf8(asked).unwrap();
    let wish: Value = serde_json::from_str(asked.split_once("\r\n\r\n").unwrap().1).unwrap();
    let number = |name: &str| u32::try_from(wish[name].as_u64().unwrap()).unwrap();
    let request = Request {
        id: RequestId::new(),
        amount: Amount::new(number("count"), number("length")).unwrap(),
        requestor: "the API".to_owned(),
        requested_at: worker::now(),
    };
    for publication in [request.publication(&Trace::default()), request.creation()] {
        let contract::Publication { subject, headers, body } = publication;
        nats.publish_with_headers(subject, headers, body).await.unwrap().await.unwrap();
    }
    let body = json!({ "id": request.id.to_string() }).to_string();
    let answer = format!("HTTP/1.1 202 Accepted\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    connection.write_all(answer.as_bytes()).await.unwrap();
}
