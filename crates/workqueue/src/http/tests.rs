use std::net::SocketAddr;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::*;

/// So long that reaching it means a bug.
const LIMIT: Duration = Duration::from_mins(1);

const LIMITS: ServerLimits = ServerLimits {
    connections: 64,
    head_bytes: 8 * 1024,
    head_time: Duration::from_hours(1),
    idle_time: Duration::from_secs(30),
    closing_time: Duration::from_secs(2),
    keep_alive: Some(Duration::from_hours(1)),
    overloaded: || ("text/plain", "too many".to_owned()),
};

/// One request on a connection, as the admin endpoint has it.
const ONCE: ServerLimits =
    ServerLimits { keep_alive: None, idle_time: Duration::from_hours(1), ..LIMITS };

/// Serves these routes until the token is cancelled.
async fn start(router: Router) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, closing) = (listener.local_addr().unwrap(), CancellationToken::new());
    (addr, closing.clone(), tokio::spawn(serve(listener, router, LIMITS, closing)))
}

/// Routes that say when they have begun. `GET /` is answered at `release` only, and `/events` says
/// something at once and at `release`.
fn routes(sender: mpsc::UnboundedSender<()>, release: &Arc<Notify>) -> Router {
    let (release, released, posts) = (Arc::clone(release), Arc::clone(release), sender.clone());
    let waits = move || async move {
        sender.send(()).unwrap();
        release.notified().await;
    };
    let reads = async move |body: Request| {
        posts.send(()).unwrap();
        to_bytes(body.into_body(), 100).await.unwrap_or_default()
    };
    let large = async || Bytes::from(vec![b'a'; 64 << 20]);
    let events = async move || {
        let first = stream::once(async { io::Result::Ok("first") });
        let second = stream::once(async move {
            released.notified().await;
            io::Result::Ok("second")
        });
        Body::from_stream(first.chain(second)).into_response()
    };
    Router::new()
        .route("/", get(waits).post(reads))
        .route("/large", get(large))
        .route("/events", get(events))
        .route("/ok", get(async || "ok").post(async || "ok"))
        .route("/some", post(async || "# some\n".repeat(100)).get(async || "# some\n".repeat(100)))
}

fn simple_routes() -> Router {
    routes(mpsc::unbounded_channel().0, &Arc::default())
}

async fn send(addr: SocketAddr, request: &str) -> TcpStream {
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

/// All that comes until the other end closes the connection.
async fn rest(mut connection: impl AsyncRead + Unpin) -> String {
    let mut received = Vec::new();
    // One that is closed while it still sends may see a reset instead of the end.
    let _ = timeout(LIMIT, connection.read_to_end(&mut received)).await.expect("it is closed");
    String::from_utf8(received).unwrap()
}

/// The client's end of a connection with room for that many bytes on its way.
fn connect(room: usize, limits: ServerLimits) -> DuplexStream {
    let (client, server) = duplex(room);
    let closing = CancellationToken::new();
    tokio::spawn(answer(server, simple_routes(), limits, Arc::default(), closing));
    client
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
async fn unsent_bodies_are_closed_first_and_waiting_clients_stay() {
    let ((sender, mut begun), release) = (mpsc::unbounded_channel(), Arc::default());
    let (addr, ..) = start(routes(sender, &release)).await;
    let waiting = send(addr, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    begun.recv().await.unwrap();
    let mut slow = Vec::new();
    for _ in 1..LIMITS.connections {
        slow.push(send(addr, "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n1").await);
        begun.recv().await.unwrap();
    }
    let short = "POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\n12";
    let answer = rest(send(addr, short).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("12"), "{answer}");
    release.notify_one();
    assert!(rest(waiting).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn client_is_rejected_while_all_others_wait_for_an_answer() {
    let ((sender, mut begun), release) = (mpsc::unbounded_channel(), Arc::default());
    let (addr, ..) = start(routes(sender, &release)).await;
    let mut waiting = Vec::new();
    for _ in 0..LIMITS.connections {
        waiting.push(send(addr, "GET / HTTP/1.1\r\n\r\n").await);
        begun.recv().await.unwrap();
    }
    let answer = rest(send(addr, "GET / HTTP/1.1\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("too many"), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
}

#[tokio::test]
async fn answer_on_its_way_outlives_silent_connections() {
    let release = Arc::default();
    let (addr, ..) = start(routes(mpsc::unbounded_channel().0, &release)).await;
    let mut page = send(addr, "GET /events HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("first") {
        assert_ne!(page.read_buf(&mut heard).await.unwrap(), 0);
    }
    let mut silent = Vec::new();
    for _ in 0..2 * LIMITS.connections {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    // This one comes after all of these.
    let answer = rest(send(addr, "GET /ok HTTP/1.1\r\nconnection: close\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(rest(silent.swap_remove(0)).await, "");
    release.notify_one();
    assert!(rest(page).await.contains("second"));
}

#[tokio::test]
async fn shutdown_closes_stalled_clients_and_answers_waiting_ones() {
    let ((sender, mut begun), release) = (mpsc::unbounded_channel(), Arc::default());
    let (addr, closing, mut served) = start(routes(sender, &release)).await;
    let waiting = send(addr, "GET / HTTP/1.1\r\n\r\n").await;
    begun.recv().await.unwrap();
    let _unsent = send(addr, "POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n1").await;
    begun.recv().await.unwrap();
    let mut unread = send(addr, "GET /large HTTP/1.1\r\n\r\n").await;
    unread.read_exact(&mut [0]).await.unwrap();
    closing.cancel();
    // The answer is still being made when those that stall have had their time.
    let early = timeout(LIMITS.closing_time * 3, &mut served).await;
    assert!(early.is_err(), "a client that waits for an answer has to get one");
    release.notify_one();
    assert!(rest(waiting).await.starts_with("HTTP/1.1 200 "));
    // The idle time would be over for the one that does not read, but this is not what ends it.
    timeout(LIMITS.idle_time / 2, served).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn connection_without_keep_alive_answers_one_request() {
    let mut client = connect(1024, ONCE);
    let twice = "GET /ok HTTP/1.1\r\n\r\n".repeat(2);
    client.write_all(twice.as_bytes()).await.unwrap();
    let answer = rest(client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test]
async fn connection_that_stops_within_a_line_is_closed() {
    for begun in ["", "GET /ok HTTP/1.1\r\nAccept: text/"] {
        let mut client =
            connect(1024, ServerLimits { head_time: Duration::from_millis(1), ..ONCE });
        client.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(rest(client).await, "");
    }
}

#[tokio::test]
async fn connection_that_is_not_read_is_closed() {
    // There is room for a few bytes of the answer, and never for all.
    let mut client = connect(16, ServerLimits { idle_time: Duration::from_millis(1), ..ONCE });
    // Where the time is up before all is sent, the connection is closed as well.
    let _ = client.write_all(b"GET /some HTTP/1.1\r\n\r\n").await;
    let sent = send_endlessly(&mut client, b"more").await;
    assert!(sent <= ONCE.head_bytes + 16, "{sent} bytes were taken");
    let answer = rest(client).await;
    assert!(answer.len() <= 16, "{answer}");
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let mut client = connect(1024, ONCE);
    client.write_all(b"GET /ok HTTP/1.1\r\n").await.unwrap();
    let sent = send_endlessly(&mut client, b"a: header\r\n").await;
    assert!(sent <= ONCE.head_bytes + 1024, "{sent} bytes were taken");
    let answer = rest(client).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn endless_body_that_no_answer_needs_is_not_read() {
    const ROOM: usize = 64 << 10;
    for (framing, chunk) in [
        ("Content-Length: 1000000000", b".".repeat(ROOM)),
        ("Transfer-Encoding: chunked", b"4\r\nmore\r\n".repeat(ROOM / 9)),
        ("Content-Length: 1000000000\r\nExpect: 100-continue", b".".repeat(ROOM)),
    ] {
        let mut client = connect(ROOM, ONCE);
        let head = format!("GET /ok HTTP/1.1\r\n{framing}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let sent = send_endlessly(&mut client, &chunk).await;
        let most = 2 * ONCE.head_bytes + MAX_DISCARDED + DISCARDED_AT_A_TIME + ROOM;
        assert!(sent <= most, "{sent} bytes were taken");
        let answer = rest(client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn client_that_still_sends_reads_why_its_body_is_too_large() {
    let (addr, ..) = start(Router::new().route("/ok", post(async || "refused"))).await;
    let mut client = send(addr, "POST /ok HTTP/1.1\r\ncontent-length: 3000000\r\n\r\n").await;
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    client.write_all(&vec![b'a'; 3_000_000]).await.unwrap();
    client.shutdown().await.unwrap();
    assert!(rest(client).await.ends_with("refused"));
}

#[tokio::test(start_paused = true)]
async fn client_that_sends_slowly_is_not_cut_off() {
    let mut client = connect(1024, LIMITS);
    client.write_all(b"POST /ok HTTP/1.1\r\ncontent-length: 100\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    for _ in 0..10 {
        tokio::time::sleep(LIMITS.idle_time / 2).await;
        client.write_all(b"a").await.expect("it is taken");
    }
    // Once it stops, it is.
    assert!(rest(client).await.ends_with("ok"));
}

#[tokio::test(start_paused = true)]
async fn idle_connection_outlives_the_time_for_a_head() {
    let limits = ServerLimits { head_time: Duration::from_secs(10), ..LIMITS };
    let mut client = connect(1024, limits);
    for _ in 0..2 {
        client.write_all(b"GET /ok HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("ok") {
            answer.push(char::from(client.read_u8().await.unwrap()));
        }
        tokio::time::advance(Duration::from_mins(1)).await;
    }
    client.write_all(b"GET /ok").await.unwrap();
    assert_eq!(rest(client).await, "");
}
