//! Reads the facts, the queues and the dead letters of a deployment. It changes nothing.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::message::Message;
use async_nats::jetstream::stream::InfoError;
use contract::queues::{self, Request};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use workqueue::{Fact, JobId, Queue, dead_letters, last_message, reading, topology};

use super::evidence::Requestors;
use super::ledger::{JudgedFact, Ledger, Seen};
use super::memory::Memory;

/// The time limits for a part of a list of ids. The broker reads the whole stream for each part, which may have millions
/// of messages. The first limits are shorter, because a question also gets lost if a broker dies.
const SOON: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(15);
const AT_LAST: Duration = Duration::from_mins(1);

/// The header that marks the removal of a key in a key-value bucket.
const OPERATION: &str = "KV-Operation";

/// The past of each judged stream. Not of the dead letters, because they are kept for longer.
pub(super) async fn memories(nats: &Context) -> anyhow::Result<Vec<Memory>> {
    let mut memories = Vec::new();
    for fact in JudgedFact::ALL {
        memories.push(Memory::of(&topology::bucket_state(nats, fact.bucket()).await?, true));
    }
    // Schedules are not judged, but if their stream was replaced, the others probably were as well.
    let [schedules, queues @ ..] = queues::ALL;
    memories.extend(
        Memory::of(&topology::stream_state(nats, schedules.stream).await?, false).if_replaced(),
    );
    for queue in queues {
        memories.push(Memory::of(&topology::stream_state(nats, queue.stream).await?, false));
    }
    Ok(memories)
}

/// Reads all records, or those of one request, in the order in which a request passes through the streams. So a request
/// that moves on meanwhile is found in a later stream. Only a request that moves backward can be missed, so there is a
/// second look.
pub(super) async fn everything(
    nats: &Context,
    id: Option<&str>,
    requestors: &mut Requestors,
) -> anyhow::Result<Ledger> {
    let mut ledger = Ledger::new();
    let [schedules, requests, responses, acknowledgments] = queues::ALL;
    read_scheduled(nats, schedules, id, &mut ledger).await?;
    read_facts(nats, JudgedFact::Requested, id, &mut ledger, requestors).await?;
    read_queue(nats, requests, id, &mut ledger).await?;
    read_queue(nats, responses, id, &mut ledger).await?;
    read_facts(nats, JudgedFact::Stored, id, &mut ledger, requestors).await?;
    read_queue(nats, acknowledgments, id, &mut ledger).await?;
    read_facts(nats, JudgedFact::Received, id, &mut ledger, requestors).await?;
    let all = || dead_letters::SUBJECTS.to_owned();
    let subjects = id.map_or_else(all, |id| dead_letters::subject("*", id));
    for id in keys(nats, dead_letters::STREAM, &subjects, dead_letters::key).await? {
        ledger.entry(id).or_default().dead_letter = true;
    }
    Ok(ledger)
}

/// Reads all revisions of all facts of one kind, up to the last one at this moment; or the fact of one request.
async fn read_facts(
    nats: &Context,
    fact: JudgedFact,
    id: Option<&str>,
    ledger: &mut Ledger,
    requestors: &mut Requestors,
) -> anyhow::Result<()> {
    if let Some(id) = id {
        return read_fact(nats, fact, id, ledger.entry(id.to_owned()).or_default()).await;
    }
    let bucket = fact.bucket();
    reading::each(nats, bucket.stream, &bucket.subjects(), |_, message| {
        if let Some(key) = bucket.key(&message.subject) {
            let seen = ledger.entry(key.to_owned()).or_default();
            note(seen, fact, message.headers.as_ref(), &message.payload);
            if fact == JudgedFact::Requested {
                note_requestor(requestors, key, message);
            }
        }
    })
    .await?;
    Ok(())
}

/// Reads the fact of one request: its last revision. If it has several, the first look has found them.
pub(super) async fn read_fact(
    nats: &Context,
    fact: JudgedFact,
    id: &str,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let bucket = fact.bucket();
    let subject = bucket.subject_of(id);
    let found = last_message(nats, bucket.stream, &subject).await;
    if let Some(found) = found.with_context(|| format!("cannot read {subject}"))? {
        note(seen, fact, Some(&found.headers), &found.payload);
    }
    Ok(())
}

fn note(seen: &mut Seen, fact: JudgedFact, headers: Option<&HeaderMap>, body: &[u8]) {
    if headers.is_some_and(|headers| headers.get(OPERATION).is_some()) {
        seen.note_removal(fact);
    } else {
        seen.note_fact(fact, body);
    }
}

fn note_requestor(requestors: &mut Requestors, id: &str, message: &Message) {
    let accepted = message.info().map(|info| info.published.unix_timestamp_nanos());
    let accepted = accepted.ok().and_then(|nanos| Timestamp::from_nanosecond(nanos).ok());
    let request = Request::from_body(&message.payload);
    // The time in the id is that of the first try. After a refusal the body has a later time.
    if let (Ok(id), Ok(request), Some(accepted)) = (id.parse::<JobId>(), request, accepted) {
        requestors.note(&request.requestor, id.made_at(), accepted);
    }
}

async fn read_queue(
    nats: &Context,
    queue: Queue,
    id: Option<&str>,
    ledger: &mut Ledger,
) -> anyhow::Result<()> {
    let all = || vec![">".to_owned()];
    for subjects in id.map_or_else(all, |id| queue.subjects_of(id)) {
        for id in keys(nats, queue.stream, &subjects, |subject| queue.key(subject)).await? {
            ledger.entry(id).or_default().in_a_queue = true;
        }
    }
    Ok(())
}

/// Reads the scheduled requests. A recurring schedule is no request, and a request that it has made has no id in its
/// subject until it is submitted.
async fn read_scheduled(
    nats: &Context,
    queue: Queue,
    id: Option<&str>,
    ledger: &mut Ledger,
) -> anyhow::Result<()> {
    for subjects in queue.subjects_of(id.unwrap_or("*")) {
        for id in keys(nats, queue.stream, &subjects, |subject| subject.rsplit('.').next()).await? {
            ledger.entry(id).or_default().is_scheduled = true;
        }
    }
    Ok(())
}

/// The ids in the subjects of a stream's messages.
async fn keys(
    nats: &Context,
    stream: &str,
    filter: &str,
    key: impl Fn(&str) -> Option<&str>,
) -> anyhow::Result<Vec<String>> {
    let what = || format!("cannot list what is in the stream {stream}");
    let mut nats = nats.clone();
    let mut ask = async |patience| -> anyhow::Result<Result<HashMap<String, usize>, InfoError>> {
        nats.set_timeout(patience);
        let handle = nats.get_stream_no_info(stream).await.with_context(what)?;
        Ok(async { handle.info_with_subjects(filter).await?.try_collect().await }.await)
    };
    let is_late = |answer: &Result<_, InfoError>| {
        answer.as_ref().is_err_and(|error| error.kind() == RequestErrorKind::TimedOut)
    };
    let mut answer = ask(SOON).await?;
    for patience in [LATER, AT_LAST] {
        if is_late(&answer) {
            answer = ask(patience).await?;
        }
    }
    let subjects = answer.with_context(what)?;
    Ok(subjects.keys().filter_map(|it| key(it)).map(str::to_owned).collect())
}
