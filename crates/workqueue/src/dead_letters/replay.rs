//! Puts the message of a dead letter into its queue again.

use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use tokio::time::timeout;

use super::letter::{DeadLetter, NotRemoved};
use super::{HEADER_BLOCK, ORIGINAL, REASON, Reason, STREAM, SUBJECT, is_for_the_broker};
use crate::connection::Connection;
use crate::headers::is_of_a_snooze;
use crate::job::Publication;
use crate::publisher::PublishError;
use crate::queue::Queue;
use crate::recurrence::is_of_a_schedule;

/// How long the broker has to confirm a replay.
const PATIENCE: Duration = Duration::from_secs(10);

/// The reason for which a dead letter still exists after its replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be replayed.
    #[error(transparent)]
    NotReplayable(#[from] NotReplayable),
    /// The broker did not say whether the original is stored.
    #[error("the broker does not answer")]
    NoAnswer,
    /// The original is not known to be stored.
    #[error(transparent)]
    NotStored(#[from] PublishError),
    /// The original is stored.
    #[error("the message is in its queue again")]
    NotRemoved(#[source] NotRemoved),
}

impl DeadLetter {
    /// Publishes the original to its queue again, which has to be one of `queues`; removes the dead letter once
    /// the broker has confirmed that the original is stored.
    ///
    /// # Errors
    ///
    /// See [`ReplayError`]. The dead letter is still there.
    pub async fn replay(
        &self,
        connection: &Connection,
        queues: &[Queue],
    ) -> Result<(), ReplayError> {
        let mut original = replay(&self.headers, &self.body, queues)?;
        // So that the broker stores it once, also if two operators replay it, or one repeats a replay that had no
        // answer. The sequence alone may be that of another dead letter, if their stream was created again.
        let Self { sequence, at, .. } = self;
        original.headers.insert(NATS_MESSAGE_ID, format!("{STREAM}:{sequence}:{at}"));
        let publishing = timeout(PATIENCE, connection.publish_once(original)).await;
        publishing.map_err(|_too_long| ReplayError::NoAnswer)??;
        self.discard(connection).await.map_err(ReplayError::NotRemoved)
    }
}

/// Why a dead letter cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayable {
    /// The guarantees do not hold for its job any more.
    #[error(
        "it has expired: its `expires_at` has passed, or its facts may be gone, so that its effect could happen a \
         second time"
    )]
    Expired,
    /// It names no subject of these queues.
    #[error("it does not name the subject of a queue, but '{0}'")]
    Subject(String),
    /// No client can read it.
    #[error(
        "no client can read its headers or its subject, so it would only fail again; publish a \
         corrected message by hand"
    )]
    Unreadable,
}

/// The original message of a dead letter, for one of `queues`: its bytes, headers and subject.
///
/// It does not have the message id of the original, because the broker would drop it as a duplicate. It has no headers
/// of a schedule either: the broker would refuse them, or take the message for the last firing of that schedule, and
/// remove the schedule.
///
/// # Errors
///
/// See [`NotReplayable`].
pub fn replay(
    headers: &HeaderMap,
    body: &Bytes,
    queues: &[Queue],
) -> Result<Publication, NotReplayable> {
    let value = |name| headers.get(name).map_or("", HeaderValue::as_str);
    if value(REASON).starts_with(Reason::Expired.as_str()) {
        return Err(NotReplayable::Expired);
    }
    let subject = value(SUBJECT);
    // A message without headers may have white space in its subject. A replay has headers, and what
    // comes with headers is cut into words wherever there is some.
    if headers.get(HEADER_BLOCK).is_some() || subject.contains(char::is_whitespace) {
        return Err(NotReplayable::Unreadable);
    }
    if !queues.iter().any(|queue| queue.key(subject).is_some_and(|key| !key.is_empty())) {
        return Err(NotReplayable::Subject(subject.to_owned()));
    }
    let mut original = HeaderMap::new();
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        let restored = match name.strip_prefix(ORIGINAL) {
            Some(restored) if is_message_id(restored) || is_of_a_schedule(restored) => continue,
            Some(restored) => restored,
            None if name.starts_with("Dead-Letter-") || is_for_the_broker(name) => continue,
            // Its attempts begin anew.
            None if is_of_a_snooze(name) => continue,
            None => name,
        };
        for value in values {
            original.append(restored, value.clone());
        }
    }
    Ok(Publication { subject: subject.to_owned(), headers: original, body: body.clone() })
}

/// Whether a header of this name is the message id for the broker. It ignores the case.
fn is_message_id(name: &str) -> bool {
    let id: &str = NATS_MESSAGE_ID.as_ref();
    name.eq_ignore_ascii_case(id)
}
