//! Reads the facts, the queues and the dead letters of a deployment. It changes nothing.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use contract::facts;
use contract::queues;
use futures_util::TryStreamExt;
use workqueue::{Bucket, Queue, dead_letters, last_message};

use super::ledger::{Ledger, Seen};
use crate::reading;

/// How long the broker may take for a part of a list of ids. It goes through all of the stream for each, and
/// there may be millions.
const PATIENCE: Duration = Duration::from_mins(1);

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

/// Adds to what was seen of one request whether it was accepted.
pub(super) async fn accepted(nats: &Context, id: &str, mut seen: Seen) -> anyhow::Result<Seen> {
    read_fact(nats, facts::REQUESTED, id, &mut seen).await?;
    Ok(seen)
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
    reading::each(nats, bucket.stream, &bucket.subjects(), |_, message| {
        if let Some(key) = bucket.key(&message.subject) {
            note(ledger.entry(key), bucket, message.headers.as_ref(), &message.payload);
        }
    })
    .await
}

/// Reads the fact about one request. Of several revisions it sees the last: there were several
/// when all was read, or there are not.
async fn read_fact(
    nats: &Context,
    bucket: Bucket,
    id: &str,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let subject = bucket.subject_of(id);
    let fact = last_message(nats, bucket.stream, &subject).await;
    if let Some(fact) = fact.with_context(|| format!("cannot read {subject}"))? {
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
    let nats = ContextBuilder::new().timeout(PATIENCE).build(nats.client());
    let handle = nats.get_stream_no_info(stream).await.with_context(what)?;
    let mut subjects = handle.info_with_subjects(filter).await.with_context(what)?;
    let mut keys = Vec::new();
    while let Some((subject, _count)) = subjects.try_next().await.with_context(what)? {
        keys.extend(key(&subject).map(str::to_owned));
    }
    Ok(keys)
}
