//! Reads the facts, the queues and the dead letters of a deployment. It changes nothing.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use contract::facts::{self, Bucket};
use contract::queues::{self, Queue};
use contract::{dead_letters, topology};
use futures_util::TryStreamExt;
use tokio::time::timeout;

use super::ledger::{Ledger, Seen};

/// How long the broker may be silent while it sends what it was asked for.
const SILENCE: Duration = Duration::from_secs(10);

/// The header by which a key-value bucket says that a key was removed.
const OPERATION: &str = "KV-Operation";

/// Reads all there is, in the order in which a request passes through it: what moves on while this
/// reads is seen later, where it has come to. Only what moves backward can be missed, which is why
/// there is a second look.
pub(super) async fn everything(nats: &Context) -> anyhow::Result<Ledger> {
    let mut ledger = Ledger::default();
    let [requests, responses, acknowledgments] = queues::ALL;
    read_facts(nats, facts::REQUESTED, &mut ledger).await?;
    read_queue(nats, requests, &mut ledger).await?;
    read_queue(nats, responses, &mut ledger).await?;
    read_facts(nats, facts::STORED, &mut ledger).await?;
    read_queue(nats, acknowledgments, &mut ledger).await?;
    read_facts(nats, facts::RECEIVED, &mut ledger).await?;
    for id in keys(nats, dead_letters::STREAM, dead_letters::SUBJECTS, dead_letters::key).await? {
        ledger.entry(&id).note_dead_letter();
    }
    Ok(ledger)
}

/// Reads what there is of one request, in the same order.
pub(super) async fn one(nats: &Context, id: &str) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let [requests, responses, acknowledgments] = queues::ALL;
    read_fact(nats, facts::REQUESTED, id, &mut seen).await?;
    look_into_queue(nats, requests, id, &mut seen).await?;
    look_into_queue(nats, responses, id, &mut seen).await?;
    read_fact(nats, facts::STORED, id, &mut seen).await?;
    look_into_queue(nats, acknowledgments, id, &mut seen).await?;
    read_fact(nats, facts::RECEIVED, id, &mut seen).await?;
    let subject = dead_letters::subject("*", id);
    if !keys(nats, dead_letters::STREAM, &subject, dead_letters::key).await?.is_empty() {
        seen.note_dead_letter();
    }
    Ok(seen)
}

/// Reads all revisions of all facts of a bucket, up to the last one that is there now.
async fn read_facts(nats: &Context, bucket: Bucket, ledger: &mut Ledger) -> anyhow::Result<()> {
    let last = topology::bucket_state(nats, bucket).await?.state;
    if last.messages == 0 {
        return Ok(());
    }
    let what = || format!("cannot read the bucket {}", bucket.name);
    let stream = nats.get_stream_no_info(bucket.stream).await.with_context(what)?;
    let config = OrderedConfig { filter_subject: bucket.subjects(), ..OrderedConfig::default() };
    let consumer = stream.create_consumer(config).await.with_context(what)?;
    let mut messages = consumer.messages().await.with_context(what)?;
    loop {
        let next = timeout(SILENCE, messages.try_next()).await;
        let next = next.map_err(|_| anyhow!("the broker went silent")).with_context(what)?;
        let Some(message) = next.with_context(what)? else {
            return Err(anyhow!("the broker stopped sending")).with_context(what);
        };
        let info = message.info().map_err(|error| anyhow!(error)).with_context(what)?;
        if let Some(key) = bucket.key(&message.subject) {
            let seen = ledger.entry(key);
            note(seen, bucket, message.headers.as_ref(), &message.payload);
        }
        if info.pending == 0 || info.stream_sequence >= last.last_sequence {
            return Ok(());
        }
    }
}

/// Reads the fact about one request. Of several revisions it sees the last: there were several
/// when all was read, or there are not.
async fn read_fact(
    nats: &Context,
    bucket: Bucket,
    id: &str,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    if let Some(fact) = last_under(nats, bucket.stream, &bucket.subject_of(id)).await? {
        note(seen, bucket, Some(&fact.headers), &fact.payload);
    }
    Ok(())
}

fn note(seen: &mut Seen, bucket: Bucket, headers: Option<&HeaderMap>, body: &[u8]) {
    if headers.is_some_and(|headers| headers.get(OPERATION).is_some()) {
        seen.note_removal(bucket);
    } else {
        seen.note_fact(bucket, body);
    }
}

async fn read_queue(nats: &Context, queue: Queue, ledger: &mut Ledger) -> anyhow::Result<()> {
    for id in keys(nats, queue.stream, &queue.subjects(), |subject| queue.key(subject)).await? {
        ledger.entry(&id).note_queue();
    }
    Ok(())
}

async fn look_into_queue(
    nats: &Context,
    queue: Queue,
    id: &str,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let subject = queue.subject_of(id);
    if !keys(nats, queue.stream, &subject, |subject| queue.key(subject)).await?.is_empty() {
        seen.note_queue();
    }
    Ok(())
}

/// The ids that the subjects of a stream's messages name.
async fn keys(
    nats: &Context,
    stream: &str,
    filter: &str,
    key: impl Fn(&str) -> Option<&str>,
) -> anyhow::Result<Vec<String>> {
    let what = || format!("cannot list what is in the stream {stream}");
    let handle = nats.get_stream_no_info(stream).await.with_context(what)?;
    let mut subjects = handle.info_with_subjects(filter).await.with_context(what)?;
    let mut keys = Vec::new();
    while let Some((subject, _count)) = subjects.try_next().await.with_context(what)? {
        keys.extend(key(&subject).map(str::to_owned));
    }
    Ok(keys)
}

/// The last message under a subject, as the leader of the stream has it.
pub(crate) async fn last_under(
    nats: &Context,
    stream: &str,
    subject: &str,
) -> anyhow::Result<Option<StreamMessage>> {
    let what = || format!("cannot read {subject}");
    let handle = nats.get_stream_no_info(stream).await.with_context(what)?;
    match handle.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error).with_context(what),
    }
}
