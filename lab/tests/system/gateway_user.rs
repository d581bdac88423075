//! The page of the gateway as its own user, on a broker with the shipped configuration.

use std::net::SocketAddr;

use testkit::eventually::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{Service, ended, succeeded};
use crate::permissions::Guarded;

#[tokio::test]
async fn page_reads_as_gateway_and_replays_as_operator() {
    let guarded = Guarded::declared().await;
    let (_gateway, page) = guarded.gateway().await;
    let clumsy = [("FAILURE_RATE", "1"), ("MAX_ATTEMPTS", "1")];
    let mut generator = guarded.run(Service::Generator, "clumsy", &clumsy).await;
    let total = [("REQUEST_TOTAL", "3"), ("REQUEST_RATE", "max")];
    let mut requestor = guarded.run(Service::Requestor, "unlucky", &total).await;
    let letters = guarded.dead_letters(3).await;
    ended(&mut requestor).await;
    generator.terminate().unwrap();
    succeeded(&mut generator).await;
    let _generator = guarded.run(Service::Generator, "generator", &[]).await;
    let _requestor = guarded.run(Service::Requestor, "requestor", &[]).await;

    let replayed = ask(page, "POST", "/dead-letters/replay").await;
    assert!(replayed.contains(r#""done":3"#), "{replayed}");
    let paused = ask(page, "POST", "/queues/REQUESTS/pause").await;
    assert!(paused.contains(r#""paused_until":"#), "{paused}");
    let resumed = ask(page, "POST", "/queues/REQUESTS/resume").await;
    assert!(!resumed.contains(r#""paused_until":"#), "{resumed}");
    eventually("it has come home", async || {
        let history = ask(page, "GET", &format!("/api/requests/{}", letters[0].id)).await;
        if history.contains(r#""status":"received""#) { Ok(()) } else { Err(history) }
    })
    .await;
    let audit = ask(page, "POST", "/api/audit").await;
    assert!(audit.starts_with("HTTP/1.0 202") || audit.starts_with("HTTP/1.1 202"), "{audit}");
    eventually("it has judged, and both services are seen", async || {
        // Only the first events, which have the current state.
        let mut events = TcpStream::connect(page).await.unwrap();
        events.write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains("event: snapshot\n") {
            assert_ne!(events.read_buf(&mut heard).await.unwrap(), 0);
        }
        let heard = String::from_utf8_lossy(&heard).into_owned();
        let seen = [r#""clean":true"#, r#""requestors":1,"generators":1"#];
        if seen.iter().all(|text| heard.contains(text)) { Ok(()) } else { Err(heard) }
    })
    .await;
    assert_eq!(guarded.refused(), [""; 0]);
}

/// The answer of the gateway to a request of its page.
async fn ask(page: SocketAddr, method: &str, path: &str) -> String {
    let mut connection = TcpStream::connect(page).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}
