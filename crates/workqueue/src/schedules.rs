//! Jobs that are due later, once or repeatedly: how the broker stores them, and how to read them.
//!
//! A job that is not due yet is a message in the stream of its queue, under a separate root
//! ([`Queue::with_schedules`]) that no consumer reads. When it is due, the broker itself puts a copy into the queue,
//! where it is a job like any other.
//!
//! | not due yet | due | |
//! | --- | --- | --- |
//! | `<schedules>.once.<id>` | `<root>.once.<id>` | [`Producer::submit_later`](crate::Producer::submit_later) |
//! | `<schedules>.every.<name>` | `<root>.every.<name>` | [`Producer::schedule`](crate::Producer::schedule) |
//!
//! A recurring schedule makes one job at each firing. The id of that job is derived from the firing, so a redelivery is
//! the same job. A schedule that fell due while the broker was away fires once when the broker is back.

pub use crate::recurrence::check_name;

use std::collections::BTreeMap;
use std::ops::Range;

use async_nats::HeaderMap;
use async_nats::header::{
    NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_SCHEDULE, NATS_SCHEDULE_TARGET,
};
use async_nats::jetstream::message::StreamMessage;
use jiff::Timestamp;
use tracing::warn;

use crate::batch::{self, StoredMessage};
use crate::connection::Connection;
use crate::headers::{self, MESSAGE_VERSION};
use crate::id::JobId;
use crate::job::{Job, Publication, to_json};
use crate::last_message::last_message;
use crate::queue::{EVERY, ONCE, Queue};
use crate::reading::ReadStreamError;
use crate::recurrence::Recurrence;
use crate::trace::Trace;

/// The number of schedules that are read at a time.
const AT_A_TIME: usize = 1000;

/// A recurring job on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule<J> {
    /// The name of the schedule.
    pub name: String,
    /// When the job is due.
    pub recurrence: Recurrence,
    /// The job.
    pub job: J,
}

/// A delayed job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayedJob<J> {
    /// When it is due. `None` if it is due already, and waits in its queue.
    pub at: Option<Timestamp>,
    /// The job.
    pub job: J,
}

/// The recurring jobs of this kind, in the order of their names.
///
/// # Errors
///
/// If the broker does not answer, or has no such queue.
pub async fn list<J: Job>(connection: &Connection) -> Result<Vec<Schedule<J>>, ReadStreamError> {
    let (nats, subjects) = (connection.context(), subject(J::QUEUE, EVERY, "*"));
    // A schedule that is replaced during the read is read again, after its earlier version.
    let (mut schedules, mut next) = (BTreeMap::new(), Some(1));
    while let Some(from) = next {
        let read = batch::from_sequence(nats, J::QUEUE.stream, &subjects, from, AT_A_TIME).await;
        let (stored, left) = read?;
        next = stored.last().filter(|_| left > 0).map(|last| last.sequence + 1);
        let found = stored.iter().filter_map(Schedule::of);
        schedules.extend(found.map(|schedule: Schedule<J>| (schedule.name.clone(), schedule)));
    }
    Ok(schedules.into_values().collect())
}

/// The recurring job with this name, if there is one.
///
/// # Errors
///
/// As [`list`].
pub async fn get<J: Job>(
    connection: &Connection,
    name: &str,
) -> Result<Option<Schedule<J>>, ReadStreamError> {
    let subject = subject(J::QUEUE, EVERY, name);
    let found = last(connection, J::QUEUE, &subject).await?;
    Ok(found.as_ref().and_then(|message| {
        let StreamMessage { sequence, headers, payload: body, .. } = message;
        let (headers, body) = (headers.clone(), body.clone());
        Schedule::of(&StoredMessage {
            sequence: *sequence,
            subject: subject.clone(),
            headers,
            body,
        })
    }))
}

/// The job with this id that was submitted for later, until it is done.
///
/// # Errors
///
/// As [`list`].
pub async fn later<J: Job>(
    connection: &Connection,
    id: JobId,
) -> Result<Option<DelayedJob<J>>, ReadStreamError> {
    let (waits, due) = (subject(J::QUEUE, ONCE, &id.to_string()), J::QUEUE.subject(id));
    // In this order, because the job may become due meanwhile.
    for subject in [&waits, &due] {
        let Some(message) = last(connection, J::QUEUE, subject).await? else { continue };
        let Ok((_, job)) = J::decode(&due, Some(&message.headers), &message.payload) else {
            continue;
        };
        return Ok(Some(DelayedJob { at: due_at(&message.headers), job }));
    }
    Ok(None)
}

/// The newest jobs that were submitted for later and are not done, due or not, with sequences in this range: `limit`
/// of them, or all, in the order of their sequences, which are returned as well. Also returns the sequence from which
/// on they were read. Calls `answered` at each answer of the broker.
///
/// Any number of other messages may lie between them, because each firing of a recurring schedule is a message. So
/// their place is found by counting, in a binary search.
///
/// # Errors
///
/// As [`list`].
pub async fn not_done<J: Job>(
    connection: &Connection,
    sequences: Range<u64>,
    limit: usize,
    answered: impl Fn(),
) -> Result<(Vec<(u64, JobId, J)>, u64), ReadStreamError> {
    // Both roots: that of due jobs, and that of jobs that are not due yet.
    let subjects = ["*.", ONCE, ".*"].concat();
    let from = async |sequence, count| {
        let (nats, stream) = (connection.context(), J::QUEUE.stream);
        let read = batch::from_sequence(nats, stream, &subjects, sequence, count).await;
        answered();
        read
    };
    let count = async |sequence| from(sequence, 1).await.map(|(one, left)| one.len() as u64 + left);
    let after = count(sequences.end).await?;
    // From the first of these on there are enough jobs, if there are enough at all; from the second on there are not.
    let (mut enough, mut too_few) = (sequences.start, sequences.end);
    if count(enough).await?.saturating_sub(after) <= limit as u64 {
        too_few = enough;
    }
    while enough + 1 < too_few {
        let middle = enough.midpoint(too_few);
        if count(middle).await?.saturating_sub(after) >= limit as u64 {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    let (mut found, mut next) = (Vec::new(), enough);
    while next < sequences.end {
        let (stored, left) = from(next, limit).await?;
        next = if left > 0 { stored.last().map_or(next, |it| it.sequence) + 1 } else { u64::MAX };
        found.extend(stored.into_iter().filter(|it| it.sequence < sequences.end));
    }
    let job = |StoredMessage { sequence, subject, headers, body }: StoredMessage| {
        let id: JobId = subject.rsplit('.').next()?.parse().ok()?;
        let (id, job) = J::decode(&J::QUEUE.subject(id), Some(&headers), &body).ok()?;
        Some((sequence, id, job))
    };
    Ok((found.into_iter().filter_map(job).collect(), enough))
}

async fn last(
    connection: &Connection,
    queue: Queue,
    subject: &str,
) -> Result<Option<StreamMessage>, ReadStreamError> {
    let found = last_message(connection.context(), queue.stream, subject).await;
    found.map_err(|error| ReadStreamError::of(queue.stream)(error.into()))
}

impl<J: Job> Schedule<J> {
    fn of(stored: &StoredMessage) -> Option<Self> {
        let name = J::QUEUE.schedule_key(&stored.subject)?.to_owned();
        // A recurring job has no id yet, so any id will do.
        let subject = J::QUEUE.subject(JobId::fired(Timestamp::default(), [&name, ""]));
        match (
            Recurrence::of(&stored.headers),
            J::decode(&subject, Some(&stored.headers), &stored.body),
        ) {
            (Some(recurrence), Ok((_, job))) => Some(Self { name, recurrence, job }),
            (_, decoded) => {
                let error = decoded
                    .err()
                    .map_or_else(|| "it says no time".to_owned(), |error| error.to_string());
                warn!(schedule = name, error, "cannot read a schedule");
                None
            }
        }
    }
}

/// The time at which the job of a schedule with these headers is due.
pub(crate) fn due_at(headers: &HeaderMap) -> Option<Timestamp> {
    headers.get(NATS_SCHEDULE)?.as_str().strip_prefix("@at ")?.parse().ok()
}

/// The subject of a job that is not due yet.
///
/// # Panics
///
/// If the queue has no schedules: that is a mistake in the program.
pub(crate) fn subject(queue: Queue, kind: &str, key: &str) -> String {
    let root = queue.schedules();
    let root = root.unwrap_or_else(|| {
        panic!("the queue {} has no schedules: give it some with_schedules", queue.stream)
    });
    [root, ".", kind, ".", key].concat()
}

/// The message of a job that is due at this time. The broker stores it only if the last message under its id has this
/// sequence, or if there is none.
pub(crate) fn once<J: Job>(
    job: &J,
    id: JobId,
    at: Timestamp,
    trace: &Trace,
    standing: Option<u64>,
) -> Result<Publication, serde_json::Error> {
    let mut headers = headers::of_message(J::VERSION, trace);
    headers.insert(NATS_SCHEDULE, format!("@at {at}"));
    headers.insert(NATS_SCHEDULE_TARGET, J::QUEUE.subject(id));
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, standing.unwrap_or_default().to_string());
    let subject = subject(J::QUEUE, ONCE, &id.to_string());
    Ok(Publication { subject, headers, body: to_json(job)? })
}

/// The message of a recurring job. The broker stores it only if the last message under its name has this sequence, or
/// if there is none.
pub(crate) fn every<J: Job>(
    job: &J,
    name: &str,
    recurrence: &Recurrence,
    standing: Option<u64>,
) -> Result<Publication, serde_json::Error> {
    let mut headers = headers::of_message(J::VERSION, &Trace::default());
    recurrence.insert_into(&mut headers, &[J::QUEUE.root, ".", EVERY, ".", name].concat());
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, standing.unwrap_or_default().to_string());
    Ok(Publication { subject: subject(J::QUEUE, EVERY, name), headers, body: to_json(job)? })
}

/// Whether the broker has an equal schedule already.
pub(crate) fn is_same(standing: &StreamMessage, new: &Publication) -> bool {
    let version = |headers: &HeaderMap| headers.get(MESSAGE_VERSION).cloned();
    standing.payload == new.body
        && Recurrence::of(&standing.headers) == Recurrence::of(&new.headers)
        && version(&standing.headers) == version(&new.headers)
}
