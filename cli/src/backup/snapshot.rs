//! The broker's protocol for snapshots: a stream with its consumers in chunks, from it and to it.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use async_nats::client::Request;
use async_nats::{Message, RequestErrorKind as AnswerErrorKind};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use indicatif::{HumanBytes, HumanCount};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use workqueue::api::{self, ApiError};
use workqueue::{Connection, LogOnce};

use crate::terminal::tell;

use super::manifest::{self, KeptConsumer, KeptStream};

/// The size of a chunk. By default, brokers accept messages of up to 1 MB.
const CHUNK: usize = 128 * 1024;

/// The longest pause of the broker. It reads the whole stream before it begins, and converts it at the end of a
/// restore.
const SILENCE: Duration = Duration::from_mins(2);

/// The time limit until every broker of a cluster routes the chunks. The broker that waits for them gives up after five
/// seconds.
const NEWS: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(20);

/// The interval of the progress reports.
const REPORT: Duration = Duration::from_secs(5);

/// The status with which the broker ends a snapshot that is whole.
const NO_CONTENT: u16 = 204;

/// The broker's announcement of a snapshot.
#[derive(Deserialize)]
struct Announced {
    config: Value,
    state: Value,
}

/// Takes a snapshot of a stream, which has these consumers, into a file of its own.
pub(super) async fn take(
    connection: &Connection,
    stream: &str,
    consumers: Vec<KeptConsumer>,
    path: &Path,
) -> anyhow::Result<KeptStream> {
    let what = || format!("cannot take a snapshot of {stream}");
    let client = connection.client();
    let times_connected = connects(connection);
    let inbox = client.new_inbox();
    let mut chunks = client.subscribe(inbox.clone()).await.with_context(what)?;
    // The broker compares each message with its checksum; from 2.15 on it does so without being asked.
    let request = json!({ "deliver_subject": inbox, "chunk_size": CHUNK, "jsck": true });
    let subject = format!("STREAM.SNAPSHOT.{stream}");
    let Announced { config, state } =
        call(connection, subject, &request).await.with_context(what)?;
    let mut file = manifest::create(path)
        .await
        .with_context(|| format!("cannot create {}", path.display()))?;
    let (mut bytes, mut told) = (0, Instant::now());
    let mut hash = Sha256::new();
    loop {
        let next = unless_lost(connection, times_connected, timeout(SILENCE, chunks.next()));
        let next = next.await.with_context(what)?.context("the broker went silent");
        let chunk = next.with_context(what)?.context("the client has ended").with_context(what)?;
        if chunk.payload.is_empty() {
            ended_well(&chunk).with_context(what)?;
            break;
        }
        hash.update(&chunk.payload);
        let written = file.write_all(&chunk.payload).await;
        written.with_context(|| format!("cannot write {}", path.display()))?;
        bytes += chunk.payload.len() as u64;
        tell_progress(stream, bytes, &mut told);
        if let Some(reply) = chunk.reply {
            client.publish(reply, Bytes::new()).await.with_context(what)?;
        }
    }
    let finished = manifest::finish(&mut file).await;
    finished.with_context(|| format!("cannot write {}", path.display()))?;
    let (name, sha256) = (stream.to_owned(), manifest::hexadecimal(&hash));
    Ok(KeptStream { name, bytes, sha256, config, state, consumers })
}

/// The number of connections of the client so far.
fn connects(connection: &Connection) -> u64 {
    connection.client().statistics().connects.load(Ordering::Relaxed)
}

/// The output, if the connection lasts until then. A lost connection loses the messages under way, and
/// the broker does not send it again.
async fn unless_lost<F: Future>(
    connection: &Connection,
    times_connected: u64,
    awaited: F,
) -> anyhow::Result<F::Output> {
    let is_lost = || !connection.is_connected() || connects(connection) != times_connected;
    let lost = async {
        while !is_lost() {
            sleep(PAUSE).await;
        }
    };
    let output = tokio::select! {
        output = awaited => Some(output),
        () = lost => None,
    };
    output.filter(|_| !is_lost()).context("the connection was lost")
}

/// Whether a snapshot is whole: its end may also say why there is no more.
fn ended_well(end: &Message) -> anyhow::Result<()> {
    // A short one may end without any status.
    let status = end.status.map_or(NO_CONTENT, |status| status.as_u16());
    let reason = end.description.as_deref().unwrap_or_default();
    ensure!(status == NO_CONTENT, "the broker aborted it: {status} {reason}");
    Ok(())
}

/// The broker's answer to a request for a restore.
#[derive(Deserialize)]
struct RestoreAnswer {
    deliver_subject: String,
}

/// Creates a stream from a snapshot, with its consumers.
pub(super) async fn give(
    connection: &Connection,
    stream: &KeptStream,
    config: &Value,
    path: &Path,
) -> anyhow::Result<()> {
    let cannot_read = || format!("cannot read {}", path.display());
    let mut file = File::open(path).await.with_context(cannot_read)?;
    let times_connected = connects(connection);
    let deliver_subject = begin(connection, stream, config).await?;
    let begun = Instant::now();
    let (mut bytes, mut told) = (0, begun);
    loop {
        let mut chunk = BytesMut::zeroed(CHUNK);
        let read = file.read(&mut chunk).await.with_context(cannot_read)?;
        chunk.truncate(read);
        let is_end = chunk.is_empty();
        let chunk = chunk.freeze();
        let answer = loop {
            let request = Request::new().payload(chunk.clone()).timeout(Some(SILENCE));
            let sent = connection.client().send_request(deliver_subject.clone(), request);
            match unless_lost(connection, times_connected, sent).await? {
                Ok(answer) => break answer,
                Err(error) if error.kind() != AnswerErrorKind::NoResponders => {
                    return Err(error.into());
                }
                Err(_) if bytes == 0 && begun.elapsed() < NEWS => sleep(PAUSE).await,
                Err(_) => bail!("the broker aborted it; its log has the reason"),
            }
        };
        if is_end || !answer.payload.is_empty() {
            let answer = serde_json::from_slice(&answer.payload);
            let _stream: Value = api::answer(answer.context("an unknown answer")?)?;
            ensure!(is_end, "the broker aborted it before the end");
            return Ok(());
        }
        bytes += read as u64;
        tell_progress(&stream.name, bytes, &mut told);
    }
}

/// Asks the broker to restore a stream, and returns the subject for the chunks. Retries while a cluster cannot do it.
async fn begin(
    connection: &Connection,
    stream: &KeptStream,
    config: &Value,
) -> Result<String, ApiError> {
    let request = json!({ "config": config, "state": stream.state });
    let limit = Instant::now() + SILENCE;
    let mut told = LogOnce::default();
    loop {
        let subject = format!("STREAM.RESTORE.{}", stream.name);
        match call(connection, subject, &request).await {
            Ok(RestoreAnswer { deliver_subject }) => return Ok(deliver_subject),
            Err(error @ ApiError::Unavailable(_)) if Instant::now() < limit => {
                if told.is_first(&error) {
                    tell(format_args!("{}: {error}; trying again", stream.name));
                }
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends a request that may take the broker a while.
async fn call<T: DeserializeOwned>(
    connection: &Connection,
    subject: String,
    request: &Value,
) -> Result<T, ApiError> {
    let mut nats = connection.context().clone();
    nats.set_timeout(SILENCE);
    api::call(&nats, subject, request).await
}

/// Reports the progress of a large stream at intervals.
fn tell_progress(stream: &str, bytes: u64, told: &mut Instant) {
    if told.elapsed() >= REPORT {
        *told = Instant::now();
        tell(format_args!("{stream:<16} {:>34} so far", HumanBytes(bytes).to_string()));
    }
}

/// Reports a stream that is done.
pub(super) fn report(stream: &KeptStream) -> anyhow::Result<()> {
    let messages = stream.state()?.messages;
    let noun = if messages == 1 { "message" } else { "messages" };
    let messages = HumanCount(messages).to_string();
    let bytes = HumanBytes(stream.bytes).to_string();
    tell(format_args!("{:<16} {messages:>11} {noun:<8}  {bytes:>12}", stream.name));
    Ok(())
}
