//! The state of a request, which follows from its facts and its dead letters alone.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use workqueue::Queue;

use crate::queues;

/// The decision about a request, from the bucket `stored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<V> {
    /// These strings, or a digest of them, are stored.
    Strings(V),
    /// It was cancelled.
    Cancelled,
}

impl<V> Decision<V> {
    /// The strings, unless it was cancelled.
    pub fn strings(self) -> Option<V> {
        match self {
            Self::Strings(strings) => Some(strings),
            Self::Cancelled => None,
        }
    }
}

/// The state of a request, with the dead letter (`D`) that blocks it, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState<D> {
    /// It is due later.
    Scheduled,
    /// Its strings are still to be made or stored.
    Queued,
    /// Its strings are stored, and still to be marked as received.
    Stored,
    /// Its strings are stored, and marked as received with the same values. This is the end.
    Received,
    /// It was cancelled before its strings were stored. This is an end, too.
    Cancelled,
    /// The strings that are marked as received differ from the stored ones, or the request was cancelled. The guarantees
    /// exclude this.
    Doubled,
    /// The message of its next step is a dead letter. It may be replayed.
    DeadLettered(D),
}

impl<D> RequestState<D> {
    /// The state of a request whose facts have these values, or digests of them. `dead_letter` returns its dead letter
    /// from a queue. A dead letter from a queue that the request has passed does not block it. The request
    /// `is_scheduled` if it waits in SCHEDULES, and is not accepted yet.
    pub fn of<V: PartialEq>(
        stored: Option<Decision<V>>,
        received: Option<V>,
        is_scheduled: bool,
        dead_letter: impl FnMut(Queue) -> Option<D>,
    ) -> Self {
        // If a queue is added, this does not compile until the queue has its place here.
        let [schedules, requests, responses, acknowledgments] = queues::ALL;
        let (state, still_to_pass): (_, &[Queue]) = match (stored, received) {
            (Some(Decision::Cancelled), None) => return Self::Cancelled,
            (Some(Decision::Strings(stored)), Some(received)) if stored == received => {
                return Self::Received;
            }
            (Some(_), Some(_)) => return Self::Doubled,
            (Some(_), None) => (Self::Stored, &[acknowledgments]),
            (None, None) if is_scheduled => (Self::Scheduled, &[schedules]),
            (None, _) => (Self::Queued, &[responses, requests, schedules]),
        };
        still_to_pass.iter().copied().find_map(dead_letter).map_or(state, Self::DeadLettered)
    }
}

/// The state of a request as one word, for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "they are those of RequestState")]
pub enum RequestStatus {
    Scheduled,
    Queued,
    Stored,
    Received,
    Cancelled,
    Doubled,
    DeadLettered,
}

impl RequestStatus {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Scheduled,
        Self::Queued,
        Self::Stored,
        Self::Received,
        Self::Cancelled,
        Self::Doubled,
        Self::DeadLettered,
    ];

    /// The word itself.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Stored => "stored",
            Self::Received => "received",
            Self::Cancelled => "cancelled",
            Self::Doubled => "doubled",
            Self::DeadLettered => "dead-lettered",
        }
    }

    /// Whether this state is final: only a person can change it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        match self {
            Self::Scheduled | Self::Queued | Self::Stored => false,
            Self::Received | Self::Cancelled | Self::Doubled | Self::DeadLettered => true,
        }
    }
}

impl<D> From<RequestState<D>> for RequestStatus {
    fn from(state: RequestState<D>) -> Self {
        match state {
            RequestState::Scheduled => Self::Scheduled,
            RequestState::Queued => Self::Queued,
            RequestState::Stored => Self::Stored,
            RequestState::Received => Self::Received,
            RequestState::Cancelled => Self::Cancelled,
            RequestState::Doubled => Self::Doubled,
            RequestState::DeadLettered(_) => Self::DeadLettered,
        }
    }
}

impl fmt::Display for RequestStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The text is no status of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a status; the statuses are {}", RequestStatus::ALL.map(RequestStatus::as_str).join(", "))]
pub struct InvalidStatus {
    text: String,
}

impl FromStr for RequestStatus {
    type Err = InvalidStatus;

    fn from_str(text: &str) -> Result<Self, InvalidStatus> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| InvalidStatus { text: text.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queues::{ACKNOWLEDGMENTS, REQUESTS, RESPONSES, SCHEDULES};
    use RequestState::{Cancelled, DeadLettered, Doubled, Queued, Received, Scheduled, Stored};

    /// The state with dead letters from these queues.
    fn state(
        stored: Option<&str>,
        received: Option<&str>,
        dead_letters: &[Queue],
    ) -> RequestState<Queue> {
        let of = |queue| dead_letters.contains(&queue).then_some(queue);
        RequestState::of(stored.map(Decision::Strings), received, false, of)
    }

    #[test]
    fn cancelled_request_has_come_to_its_end() {
        let of = |received: Option<&str>, is_scheduled| {
            RequestState::of(Some(Decision::Cancelled), received, is_scheduled, |_| Some(()))
        };
        assert_eq!([of(None, false), of(None, true)], [Cancelled, Cancelled]);
        assert_eq!(of(Some("abc"), false), Doubled);
    }

    #[test]
    fn request_that_is_due_later_is_scheduled() {
        let scheduled = |stored: Option<&str>, dead_letter: Option<Queue>| {
            let of = |queue| dead_letter.filter(|it| *it == queue);
            RequestState::of(stored.map(Decision::Strings), None, true, of)
        };
        assert_eq!(scheduled(None, None), Scheduled);
        assert_eq!(scheduled(None, Some(REQUESTS)), Scheduled);
        assert_ne!(scheduled(Some("abc"), None), Scheduled);
        for state in [scheduled(None, Some(SCHEDULES)), state(None, None, &[SCHEDULES])] {
            assert_eq!(state, DeadLettered(SCHEDULES));
        }
    }

    #[test]
    fn request_passes_from_queued_to_stored_to_received() {
        assert_eq!(state(None, None, &[]), Queued);
        assert_eq!(state(Some("abc"), None, &[]), Stored);
        assert_eq!(state(Some("abc"), Some("abc"), &[]), Received);
    }

    #[test]
    fn status_is_read_as_it_is_written() {
        for status in RequestStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        let error = "done".parse::<RequestStatus>().unwrap_err().to_string();
        assert_eq!(
            error,
            "'done' is not a status; the statuses are scheduled, queued, stored, received, cancelled, doubled, \
             dead-lettered"
        );
    }

    #[test]
    fn request_received_with_other_values_is_doubled() {
        assert_eq!(state(Some("abc"), Some("xyz"), &[]), Doubled);
    }

    #[test]
    fn request_without_stored_values_is_not_received() {
        assert_eq!(state(None, Some("abc"), &[]), Queued);
        assert_eq!(state(None, Some("abc"), &[REQUESTS]), DeadLettered(REQUESTS));
    }

    #[test]
    fn dead_letter_of_a_step_still_to_be_done_blocks_the_request() {
        assert_eq!(state(None, None, &[REQUESTS]), DeadLettered(REQUESTS));
        assert_eq!(state(Some("abc"), None, &[ACKNOWLEDGMENTS]), DeadLettered(ACKNOWLEDGMENTS));
        // The later step counts: the earlier dead letter was replayed.
        assert_eq!(state(None, None, &[REQUESTS, RESPONSES]), DeadLettered(RESPONSES));
    }

    #[test]
    fn dead_letter_of_a_step_that_is_done_does_not_block() {
        assert_eq!(state(None, None, &[ACKNOWLEDGMENTS]), Queued);
        assert_eq!(state(Some("abc"), None, &[REQUESTS, RESPONSES]), Stored);
        for received in ["abc", "xyz"] {
            let alone = state(Some("abc"), Some(received), &[]);
            assert_eq!(state(Some("abc"), Some(received), &queues::ALL), alone);
        }
    }
}
