//! Reads the facts, the queues and the dead letters of a deployment. It changes nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::header::NATS_SCHEDULER;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::message::Message;
use async_nats::jetstream::stream::InfoError;
use contract::queues::{self, DueRequest, Request};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use workqueue::dead_letters::{self, DeadLetter};
use workqueue::{Fact, JobId, Queue, batch, bundled_ids, last_message, reading, topology};

use super::evidence::Requestors;
use super::ledger::{DeadLetterOf, JudgedFact, Ledger, Seen};
use super::memory::Memory;

/// The time limits for a part of a list of ids. The broker reads the whole stream for each part, which may have millions
/// of messages. The first limits are shorter, because a question also gets lost if a broker dies.
const SOON: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(15);
const AT_LAST: Duration = Duration::from_mins(1);

/// The number of dead letters in a part of their list.
const DEAD_LETTERS: usize = 1000;

/// The number of messages that are read at a time.
pub(super) const AT_A_TIME: usize = 32;

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
    let filter = id.map_or_else(all, |id| dead_letters::subject("*", id));
    let letters = subjects(nats, dead_letters::STREAM, &filter).await?;
    for (queue, id) in letters.iter().filter_map(|subject| queue_and_id(subject)) {
        let of = if queue == acknowledgments {
            DeadLetterOf::Acknowledgment
        } else {
            DeadLetterOf::EarlierStep
        };
        ledger.entry(id.to_owned()).or_default().note_dead_letter(of);
    }
    if id.is_none() {
        read_dead_when_due(nats, &mut ledger).await?;
    }
    Ok(ledger)
}

/// The queue and the id in the subject of a dead letter. None for one of another system in this account.
fn queue_and_id(subject: &str) -> Option<(Queue, &str)> {
    let id = dead_letters::key(subject)?;
    let mut all = queues::ALL.into_iter();
    let queue = all.find(|queue| dead_letters::subject(queue.stream, id) == subject)?;
    Some((queue, id))
}

/// Reads the dead letters of requests that were due. The broker has marked those that a schedule fired. A replay or a
/// copy lacks the mark, so each one that can be decoded counts as well, even if a person has published it.
async fn read_dead_when_due(nats: &Context, ledger: &mut Ledger) -> anyhow::Result<()> {
    let subjects = dead_letters::subject(queues::SCHEDULES.stream, "*");
    let fired = format!("{}{NATS_SCHEDULER}", dead_letters::ORIGINAL);
    let mut next = Some(1);
    while let Some(from) = next {
        let (letters, left) =
            batch::from_sequence(nats, dead_letters::STREAM, &subjects, from, DEAD_LETTERS).await?;
        next = letters.last().filter(|_| left > 0).map(|last| last.sequence + 1);
        for letter in letters {
            let is_fired = letter.headers.get(fired.as_str()).is_some();
            let letter = DeadLetter::from(letter);
            if is_fired || letter.decode::<DueRequest>().is_some() {
                ledger.entry(letter.id).or_default().note_dead_letter(DeadLetterOf::DueRequest);
            }
        }
    }
    Ok(())
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
    if let Some(id) = id {
        if is_in(nats, queue, id).await? {
            ledger.entry(id.to_owned()).or_default().in_a_queue = true;
        }
        return Ok(());
    }
    let messages = subjects(nats, queue.stream, ">").await?;
    let (bundles, jobs) = bundles(nats, queue, &messages, ledger).await?;
    let alone = messages.iter().filter(|subject| !bundles.contains(*subject));
    for id in alone.filter_map(|subject| queue.key(subject)) {
        ledger.entry(id.to_owned()).or_default().in_a_queue = true;
    }
    for id in jobs {
        ledger.entry(id).or_default().in_a_bundle = true;
    }
    Ok(())
}

/// The ids of the requests that are in bundles in the queues.
pub(super) async fn bundled(nats: &Context, ledger: &Ledger) -> anyhow::Result<HashSet<String>> {
    let mut bundled = HashSet::new();
    let [_schedules, queues @ ..] = queues::ALL;
    for queue in queues {
        let messages = subjects(nats, queue.stream, ">").await?;
        bundled.extend(bundles(nats, queue, &messages, ledger).await?.1);
    }
    Ok(bundled)
}

/// The subjects of the bundles among these, and the ids of the requests in them. A bundle has an id of its own, which is
/// not that of an accepted request.
async fn bundles(
    nats: &Context,
    queue: Queue,
    subjects: &[String],
    ledger: &Ledger,
) -> anyhow::Result<(HashSet<String>, Vec<String>)> {
    let is_accepted = |id: &str| ledger.get(id).is_some_and(Seen::is_requested);
    let unknown = subjects.iter().filter(|it| queue.key(it).is_some_and(|id| !is_accepted(id)));
    let mut found = stream::iter(unknown)
        .map(async |subject| {
            let message = last_message(nats, queue.stream, subject).await;
            let message = message.with_context(|| format!("cannot read {subject}"))?;
            let ids = message.and_then(|it| bundled_ids(&it.headers, &it.payload));
            anyhow::Ok(ids.map(|ids| (subject.clone(), ids)))
        })
        .buffer_unordered(AT_A_TIME);
    let (mut bundles, mut jobs) = (HashSet::new(), Vec::new());
    while let Some(bundle) = found.try_next().await? {
        if let Some((subject, ids)) = bundle {
            bundles.insert(subject);
            jobs.extend(ids.iter().map(ToString::to_string));
        }
    }
    Ok((bundles, jobs))
}

/// Whether this id is still that of a message in a queue.
pub(super) async fn is_in_a_queue(nats: &Context, id: &str) -> anyhow::Result<bool> {
    let [_schedules, queues @ ..] = queues::ALL;
    for queue in queues {
        if is_in(nats, queue, id).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn is_in(nats: &Context, queue: Queue, id: &str) -> anyhow::Result<bool> {
    for subject in queue.subjects_of(id) {
        let message = last_message(nats, queue.stream, &subject).await;
        if message.with_context(|| format!("cannot read {subject}"))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the scheduled requests. A recurring schedule is no request, and a request that it has made has no id in its
/// subject until it is submitted.
async fn read_scheduled(
    nats: &Context,
    queue: Queue,
    id: Option<&str>,
    ledger: &mut Ledger,
) -> anyhow::Result<()> {
    for filter in queue.subjects_of(id.unwrap_or("*")) {
        let requests = subjects(nats, queue.stream, &filter).await?;
        for id in requests.iter().filter_map(|subject| subject.rsplit('.').next()) {
            ledger.entry(id.to_owned()).or_default().is_scheduled = true;
        }
    }
    Ok(())
}

/// The subjects of a stream's messages.
async fn subjects(nats: &Context, stream: &str, filter: &str) -> anyhow::Result<Vec<String>> {
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
    Ok(answer.with_context(what)?.into_keys().collect())
}
