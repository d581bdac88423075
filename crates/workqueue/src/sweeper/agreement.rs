//! Tests that [`parse`](super::parse) agrees with the client library on which messages it can read.

use async_nats::{ConnectOptions, Event, Message};
use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::parse::{Flaw, flaw, readable};

/// The message that the client reads from these bytes, or none if it cannot read them.
async fn read(subject: &[u8], block: &[u8]) -> Option<Message> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = listener.local_addr().unwrap().to_string();
    let (lost_sender, mut lost) = mpsc::unbounded_channel();
    let options = ConnectOptions::new().event_callback(move |event| {
        if event == Event::Disconnected {
            let _ = lost_sender.send(());
        }
        std::future::ready(())
    });
    let broker =
        tokio::spawn(broker(listener, [subject, b" 1 $JS.ACK.it "].concat(), block.to_vec()));
    let client = options.connect(url).await.unwrap();
    let mut messages = client.subscribe("anything").await.unwrap();
    let message = tokio::select! {
        // A client that has panicked delivers nothing more.
        message = messages.next() => message,
        _ = lost.recv() => None,
    };
    broker.abort();
    message
}

/// The part of a broker that sends one message.
async fn broker(listener: TcpListener, command: Vec<u8>, block: Vec<u8>) {
    const INFO: &[u8] =
        br#"INFO {"server_id": "a", "server_name": "a", "version": "2.12.0", "go": "",
        "host": "127.0.0.1", "port": 1, "headers": true, "max_payload": 1048576, "proto": 1,
        "client_id": 1, "client_ip": "127.0.0.1"}"#;
    let mut connection = BufReader::new(listener.accept().await.unwrap().0);
    let info: Vec<u8> = INFO.iter().copied().filter(|byte| *byte != b'\n').collect();
    connection.write_all(&[&info, b"\r\n".as_slice()].concat()).await.unwrap();
    let mut line = String::new();
    while connection.read_line(&mut line).await.unwrap() > 0 {
        let answer = match line.split_whitespace().next() {
            Some("PING") => b"PONG\r\n".to_vec(),
            Some("SUB") if block.is_empty() => {
                [b"MSG ", command.as_slice(), b"4\r\nbody\r\n"].concat()
            }
            Some("SUB") => {
                let lengths = format!("{} {}\r\n", block.len(), block.len() + 4);
                [b"HMSG ", command.as_slice(), lengths.as_bytes(), &block, b"body\r\n"].concat()
            }
            _ => Vec::new(),
        };
        connection.write_all(&answer).await.unwrap();
        line.clear();
    }
}

/// Checks that [`flaw`] and the client agree about a message.
fn agrees(subject: &[u8], block: &[u8]) -> Option<Flaw> {
    let shown = String::from_utf8_lossy(subject);
    let said = flaw(&shown, block);
    let read =
        Builder::new_current_thread().enable_all().build().unwrap().block_on(read(subject, block));
    let what =
        format!("{:?} {:?}", subject.escape_ascii().to_string(), block.escape_ascii().to_string());
    assert_eq!(said.is_some(), read.is_none(), "{said:?}, but it is {read:?}: {what}");
    if let Some(message) = read {
        assert_eq!(message.headers.unwrap_or_default(), readable(block), "{what}");
    }
    said
}

#[test]
fn flaws_are_those_of_the_client() {
    let fine = b"NATS/1.0\r\nX: y\r\n\r\n".as_slice();
    let of_headers: [(&[u8], Option<Flaw>); 20] = [
        (fine, None),
        (b"", None),
        (b"NATS/1.0\r\n\r\n", None),
        (b"NATS/1.0\r\nnothing\r\n\r\n", Some(Flaw::Colon)),
        (b"NATS/1.0\r\n: v\r\n\r\n", None),
        (b"NATS/1.0\r\nMy Header: b\r\n\r\n", Some(Flaw::Name)),
        ("NATS/1.0\r\né: b\r\n\r\n".as_bytes(), Some(Flaw::Name)),
        ("NATS/1.0\r\nX: é\r\n\r\n".as_bytes(), None),
        (b"NATS/1.0\r\nX: \xff\r\n\r\n", Some(Flaw::Headers)),
        (b"NATS/1.0\r\nX: a\rb\r\n\r\n", Some(Flaw::CarriageReturn)),
        (b"NATS/1.0\r\nX: a\r\r\n\r\n", None),
        (b"NATS/1.0\r\nX: a\r\n  b\r\n\r\n", None),
        (b"NATS/1.0\r\nX: a\r\n\r\n  b\r\n\r\n", Some(Flaw::Colon)),
        (b"NATS/1.0\r\nX: a\r\n  b\rc\r\n\r\n", Some(Flaw::CarriageReturn)),
        (b"NATS/1.0\r\n X: a\r\n\r\n", Some(Flaw::Name)),
        (b"NATS/1.0 abc\r\nX: y\r\n\r\n", Some(Flaw::Status)),
        (b"NATS/1.0 503\r\nX: y\r\n\r\n", None),
        (b"NATS/1.0 503 No Responders\r\n\r\n", None),
        (b"NATS/2.0\r\nX: y\r\n\r\n", Some(Flaw::Version)),
        (b"\r\n", Some(Flaw::Version)),
    ];
    for (block, expected) in of_headers {
        assert_eq!(agrees(b"requests.a", block), expected, "{}", block.escape_ascii());
    }
    let of_subjects: [(&[u8], &[u8], Option<Flaw>); 7] = [
        (b"requests.\xff\xfe", fine, Some(Flaw::Subject)),
        (b"requests.\xff\xfe", b"", Some(Flaw::Subject)),
        ("requests.a\u{2003}b".as_bytes(), fine, Some(Flaw::Space)),
        ("requests.a\u{2003}b".as_bytes(), b"", None),
        ("requests.a\u{2003}".as_bytes(), fine, None),
        (b"requests.a\x0bb", fine, Some(Flaw::Space)),
        (b"requests.a\x01b", fine, None),
    ];
    for (subject, block, expected) in of_subjects {
        assert_eq!(agrees(subject, block), expected, "{}", subject.escape_ascii());
    }
}

/// Bytes that matter to a parser, in any order.
fn pieces(pieces: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(pieces), 0..12).prop_map(|pieces| pieces.concat())
}

fn header_block() -> impl Strategy<Value = Vec<u8>> {
    const FIRST: [&[u8]; 5] =
        [b"NATS/1.0\r\n", b"NATS/1.0\r\nX: y\r\n", b"NATS/1.0", b"NATS/1.0 200 OK\r\n", b""];
    const PIECES: &[&[u8]] = &[
        b"\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b":",
        b": ",
        b"X",
        b"Nats-Msg-Id",
        b" ",
        b"\t",
        b"\x0b",
        b"\0",
        b"\x7f",
        b"\xff",
        "é".as_bytes(),
        "\u{2003}".as_bytes(),
        b"100",
        b"99",
    ];
    (prop::sample::select(&FIRST), pieces(PIECES))
        .prop_map(|(first, rest)| [first, rest.as_slice()].concat())
}

fn subject() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&[u8]] =
        &[b"a", b"a", b".", b"\x01", b"\xc3", "é".as_bytes(), "\u{85}".as_bytes(), b"\x0c"];
    pieces(PIECES).prop_map(|key| [b"requests.a", key.as_slice()].concat())
}

proptest! {
    #[test]
    fn flaws_of_any_headers_are_those_of_the_client(block in header_block()) {
        agrees(b"requests.a", &block);
    }

    #[test]
    fn flaws_of_any_subject_are_those_of_the_client(
        subject in subject(),
        headers in any::<bool>(),
    ) {
        agrees(&subject, if headers { b"NATS/1.0\r\nX: y\r\n\r\n" } else { b"" });
    }

    #[test]
    fn check_of_any_stored_message_does_not_panic(
        subject in any::<String>(),
        block in any::<Vec<u8>>(),
    ) {
        let block = [b"NATS/1.0\r\n", block.as_slice()].concat();
        flaw(&subject, &block);
        readable(&block);
    }
}
