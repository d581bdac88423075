//! Cancels requests, and discards the dead letters that block them.

use contract::facts::{Cancellation, Received, Stored};
use contract::queues::{
    ACKNOWLEDGMENTS, Acknowledgment, DueRequest, REQUESTS, RESPONSES, Request, Response, SCHEDULES,
};
use tracing::{debug, warn};
use workqueue::dead_letters::{DeadLetter, NotRemoved, Reason};
use workqueue::{
    Connection, Creation, JobId, Producer, PublishError, ReadError, Trace, now, remove,
};

use crate::producer::record;

/// Cancels a request, unless its strings are stored. Returns the decision that holds from now on: this
/// cancellation, or an earlier decision. A request that was scheduled, and has no record that it was accepted
/// (`not_asked`), counts as accepted once there is a decision, so that its record remains.
///
/// A scheduled message may outlive every fact. So this function first marks the message itself as cancelled and makes
/// it due now: if this process dies in between, a requestor completes the cancellation.
///
/// A repetition is safe: the first cancellation stays.
///
/// # Errors
///
/// If the broker does not confirm a fact; it is then unknown whether the request is cancelled.
pub async fn cancel(
    producer: &Producer,
    connection: &Connection,
    id: JobId,
    not_asked: Option<DueRequest>,
    by: &str,
) -> Result<Stored, PublishError> {
    let (cancelled_by, cancelled_at) = (by.to_owned(), now());
    let not_asked = not_asked.map(|due| DueRequest {
        not_before: due.not_before.map(|at| at.min(cancelled_at)),
        cancelled_by: Some(cancelled_by.clone()),
        ..due
    });
    if let Some(due) = &not_asked {
        producer.bring_forward(due, id).await?;
    }
    let new = Stored::Cancelled(Cancellation { id, cancelled_by, cancelled_at });
    let stored = match producer.create(&new, &Trace::default(), None).await? {
        Creation::Created => new,
        Creation::AlreadyExists(earlier) => earlier,
    };
    if let Some(due) = not_asked {
        record(producer, &due.request(id), &Trace::default()).await?;
    }
    if matches!(stored, Stored::Cancelled(_)) {
        // This only saves work: a response that is generated nevertheless is not stored.
        for queue in [SCHEDULES, REQUESTS] {
            match remove(connection, queue, id).await {
                Ok(removed) => debug!(%id, queue = queue.stream, removed, "cancelled"),
                Err(error) => warn!(%id, %error, "cancelled; a worker may still handle it"),
            }
        }
    }
    Ok(stored)
}

/// Why a dead letter is not discarded.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// Its request would stay pending forever.
    #[error("the strings of its request are stored, and not marked as received; replay it")]
    NotMarked,
    /// It may be an accepted request, which this program cannot cancel.
    #[error(
        "it may be a scheduled request, of a newer version than this program reads; use the newer program"
    )]
    Unsupported,
    /// It is unknown which request it blocks.
    #[error("cannot read the state of its request")]
    Unread(#[from] ReadError),
    /// Its request could not be cancelled.
    #[error("its request cannot be cancelled")]
    NotCancelled(#[from] PublishError),
    /// The dead letter still exists.
    #[error(transparent)]
    NotRemoved(#[from] NotRemoved),
}

/// Discards a dead letter. If it blocks a request, the request is cancelled first, so that no accepted request is
/// lost.
///
/// # Errors
///
/// See [`DiscardError`].
pub async fn discard(
    producer: &Producer,
    connection: &Connection,
    letter: &DeadLetter,
    by: &str,
) -> Result<(), DiscardError> {
    let is_from = |queue: workqueue::Queue| letter.stream == queue.stream;
    if let Ok(id) = letter.id.parse::<JobId>() {
        let is_asked = producer.read::<Request>(&letter.id).await?.is_some();
        // The fact may be missing: the process that submitted the request has died before it created the fact, or
        // will still create it. A message that cannot be decoded belongs to no request.
        let is_of_request = is_asked
            || letter.decode::<Request>().is_some()
            || letter.decode::<Response>().is_some()
            || letter.decode::<Acknowledgment>().is_some();
        let not_asked = letter.decode::<DueRequest>().filter(|_| !is_asked);
        let is_unsupported = letter.kind() == Reason::Unsupported;
        if is_unsupported && is_from(SCHEDULES) && !is_asked && not_asked.is_none() {
            return Err(DiscardError::Unsupported);
        }
        let stored =
            if not_asked.is_some() || is_of_request && (is_from(REQUESTS) || is_from(RESPONSES)) {
                Some(cancel(producer, connection, id, not_asked, by).await?)
            } else {
                None
            };
        // The response of a stored request may be all that makes its acknowledgment. An expired letter can only be
        // discarded.
        let may_be_needed = match stored {
            Some(Stored::Strings(_)) => is_from(RESPONSES),
            Some(Stored::Cancelled(_)) => false,
            None => is_of_request && is_from(ACKNOWLEDGMENTS),
        };
        if may_be_needed
            && letter.kind() != Reason::Expired
            && producer.read::<Received>(&letter.id).await?.is_none()
        {
            return Err(DiscardError::NotMarked);
        }
    }
    Ok(letter.discard(connection).await?)
}
