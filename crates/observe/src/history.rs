//! The history of one request: its facts, its state, and the queues that it is in.

use anyhow::Context as _;
use contract::facts::Received;
use contract::queues::{self, Acknowledgment, Request, still_to_pass};
use futures_util::TryStreamExt;
use serde::Serialize;
use utoipa::ToSchema;
use workqueue::{Connection, JobId, Queue, ReadError, read_fact};

use crate::dead_letters::{self, DeadLetter};

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = Status)]
pub enum RequestStatus {
    /// It is accepted, and its strings are still to be made or stored.
    Queued,
    /// Its strings are stored.
    Stored,
    /// Its strings are stored, and marked as received with the same values. This is the end.
    Received,
    /// It was given up. It may be replayed.
    DeadLettered,
}

/// The facts, dead letters and queues of one request.
#[derive(Clone, Debug, Default)]
pub struct RequestHistory {
    /// The request, when and by which instance it was asked, once it was accepted.
    pub requested: Option<Request>,
    /// The stored strings, when and by which instance, and the instance that made them.
    pub stored: Option<Acknowledgment>,
    /// The received strings, when and by which instance they were marked.
    pub received: Option<Received>,
    /// Its dead letters, the last one from each queue.
    pub dead_letters: Vec<DeadLetter>,
}

impl RequestHistory {
    /// Reads it from the end to the start: where a step is found, so are all that come before it.
    ///
    /// # Errors
    ///
    /// Where the broker does not answer, or a stored fact is malformed.
    pub async fn read(nats: &Connection, id: JobId) -> Result<Self, ReadError> {
        let key = id.to_string();
        Ok(Self {
            received: read_fact(nats, &key).await?,
            stored: read_fact(nats, &key).await?,
            requested: read_fact(nats, &key).await?,
            dead_letters: dead_letters_of(nats, id).await?,
        })
    }

    /// How far the request has come.
    #[must_use]
    pub fn status(&self) -> RequestStatus {
        if self.received.is_some() {
            RequestStatus::Received
        } else if self.dead_letter().is_some() {
            RequestStatus::DeadLettered
        } else if self.stored.is_some() {
            RequestStatus::Stored
        } else {
            RequestStatus::Queued
        }
    }

    /// The dead letter that holds the request up, which is one of a step that is still to be done.
    #[must_use]
    pub fn dead_letter(&self) -> Option<&DeadLetter> {
        let of = |queue: &Queue| {
            self.dead_letters.iter().find(|letter| letter.queue == Some(queue.stream))
        };
        match self.received {
            Some(_) => None,
            None => still_to_pass(self.stored.is_some()).iter().find_map(of),
        }
    }
}

/// How far a request has come that was accepted. It reads no more than it has to.
///
/// # Errors
///
/// As [`RequestHistory::read`].
pub async fn status(nats: &Connection, id: JobId) -> Result<RequestStatus, ReadError> {
    let key = id.to_string();
    let mut history =
        RequestHistory { received: read_fact(nats, &key).await?, ..RequestHistory::default() };
    if history.received.is_none() {
        history.stored = read_fact(nats, &key).await?;
        history.dead_letters = dead_letters_of(nats, id).await?;
    }
    Ok(history.status())
}

async fn dead_letters_of(nats: &Connection, id: JobId) -> Result<Vec<DeadLetter>, ReadError> {
    let letters = dead_letters::of_request(nats.context(), id).await;
    letters.map_err(|_| ReadError::Unknown)
}

/// The queues that hold a message about a request, delivered or not, in the order in which it passes
/// through them. A request that moves on meanwhile is seen in its new place.
///
/// # Errors
///
/// Where the broker does not answer, or has no such queue.
pub async fn queues_with(nats: &Connection, id: JobId) -> anyhow::Result<Vec<Queue>> {
    let mut with = Vec::new();
    for queue in queues::ALL {
        let what = || format!("cannot look into the queue {}", queue.stream);
        let stream = nats.context().get_stream_no_info(queue.stream).await.with_context(what)?;
        let mut found = stream.info_with_subjects(queue.subject(id)).await.with_context(what)?;
        if found.try_next().await.with_context(what)?.is_some() {
            with.push(queue);
        }
    }
    Ok(with)
}
