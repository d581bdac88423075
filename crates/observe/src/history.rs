//! The history of one request: its facts, its dead letters, and the queues that it is in.

use anyhow::Context as _;
use contract::RequestState;
use contract::facts::{REQUESTED, Received, Stored};
use contract::queues::{self, DueRequest, Request};
use futures_util::TryStreamExt;
use workqueue::dead_letters::{self, DeadLetter};
use workqueue::{Connection, JobId, Queue, ReadError, Trace, last_message, read_fact, schedules};

/// The facts, dead letters and queues of one request.
#[derive(Clone, Debug, Default)]
pub struct RequestHistory {
    /// The request, once it was accepted: when and by which instance it was made.
    pub requested: Option<Request>,
    /// The stored strings, when and by which instance they were made and stored; or its cancellation.
    pub stored: Option<Stored>,
    /// The strings that are marked as received, when and by which instance.
    pub received: Option<Received>,
    /// Its dead letters, the last one from each queue.
    pub dead_letters: Vec<DeadLetter>,
    /// The scheduled request, until it is submitted.
    pub scheduled: Option<DueRequest>,
}

impl RequestHistory {
    /// Reads the history from the last step to the first. So if it finds a step, it also finds all earlier ones.
    ///
    /// # Errors
    ///
    /// If the broker does not answer, or a stored fact is malformed.
    pub async fn read(nats: &Connection, id: JobId) -> Result<Self, ReadError> {
        let key = id.to_string();
        let mut history = Self {
            received: read_fact(nats, &key).await?,
            stored: read_fact(nats, &key).await?,
            requested: read_fact(nats, &key).await?,
            dead_letters: dead_letters_of(nats, id).await?,
            scheduled: None,
        };
        if history.requested.is_none() {
            let scheduled = schedules::later(nats, id).await;
            history.scheduled = scheduled.map_err(|_| ReadError::Unknown)?.map(|later| later.job);
            if history.scheduled.is_none() {
                // The request may have been due and submitted meanwhile.
                history.requested = read_fact(nats, &key).await?;
            }
        }
        Ok(history)
    }

    /// The message in SCHEDULES, or its dead letter, as long as the request was not accepted.
    #[must_use]
    pub fn not_asked(&self) -> Option<DueRequest> {
        if self.requested.is_some() {
            return None;
        }
        let dead_lettered = || self.dead_letters.iter().find_map(DeadLetter::decode::<DueRequest>);
        self.scheduled.clone().or_else(dead_lettered)
    }

    /// Reads only the parts of an accepted request that its state needs.
    ///
    /// # Errors
    ///
    /// As [`RequestHistory::read`].
    pub async fn read_state(nats: &Connection, id: JobId) -> Result<Self, ReadError> {
        let key = id.to_string();
        let (received, stored) = (read_fact(nats, &key).await?, read_fact(nats, &key).await?);
        let mut history = Self { stored, received, ..Self::default() };
        if history.received.is_none() || history.stored.is_none() {
            history.dead_letters = dead_letters_of(nats, id).await?;
        }
        Ok(history)
    }

    /// The state of the request.
    #[must_use]
    pub fn state(&self) -> RequestState<&DeadLetter> {
        let stored = self.stored.as_ref().map(Stored::decision);
        let received = self.received.as_ref().map(|received| &received.values);
        RequestState::of(stored, received, self.scheduled.is_some(), |queue| {
            self.dead_letters.iter().find(|letter| letter.stream == queue.stream)
        })
    }
}

async fn dead_letters_of(nats: &Connection, id: JobId) -> Result<Vec<DeadLetter>, ReadError> {
    let letters = dead_letters::of_job(nats.context(), id).await;
    letters.map_err(|_| ReadError::Unknown)
}

/// The id of the trace that an accepted request is part of, if there is one.
///
/// # Errors
///
/// If the broker does not answer.
pub async fn trace_of(nats: &Connection, id: JobId) -> anyhow::Result<Option<String>> {
    let requested = last_message(nats.context(), REQUESTED.stream, &REQUESTED.subject(id)).await?;
    Ok(requested.and_then(|fact| Trace::id_of(&fact.headers).map(str::to_owned)))
}

/// The queues that hold a message of a request, delivered or not, in the order in which it passes through them. A
/// request that moves on meanwhile is found in its new queue. A request in a bundle is not found, because the bundle has
/// another id.
///
/// # Errors
///
/// If the broker does not answer, or has no such queue.
pub async fn queues_with(nats: &Connection, id: JobId) -> anyhow::Result<Vec<Queue>> {
    let mut with = Vec::new();
    for queue in queues::ALL {
        let what = || format!("cannot look into the queue {}", queue.stream);
        let stream = nats.context().get_stream_no_info(queue.stream).await.with_context(what)?;
        for subject in queue.subjects_of(&id.to_string()) {
            let mut found = stream.info_with_subjects(subject).await.with_context(what)?;
            if found.try_next().await.with_context(what)?.is_some() {
                with.push(queue);
                break;
            }
        }
    }
    Ok(with)
}
