//! The state of a request, which follows from its facts and its dead letters alone.

use workqueue::Queue;

use crate::queues;

/// What the bucket `stored` says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<V> {
    /// These strings, or a digest of them, are stored.
    Strings(V),
    /// It was cancelled.
    Cancelled,
}

/// How far a request has come, with the dead letter (`D`) that holds it up, if one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState<D> {
    /// It is to be made later.
    Scheduled,
    /// Its strings are still to be made or stored.
    Queued,
    /// Its strings are stored, and still to be marked as received.
    Stored,
    /// Its strings are stored, and marked as received with the same values. This is the end.
    Received,
    /// It was cancelled before its strings were stored. This is an end, too.
    Cancelled,
    /// Other strings are marked as received than those that are stored, or some although it was cancelled. The
    /// guarantees exclude this.
    Doubled,
    /// A step that is still to be done was given up. It may be replayed.
    DeadLettered(D),
}

impl<D> RequestState<D> {
    /// The state of the request whose facts have these values, or digests of them. `dead_letter` gives its
    /// dead letter from a queue. One from a queue that the request has passed since holds nothing up.
    /// It `is_scheduled` where it waits to be made, and is not accepted by its queue.
    pub fn of<V: PartialEq>(
        stored: Option<Decision<V>>,
        received: Option<V>,
        is_scheduled: bool,
        dead_letter: impl FnMut(Queue) -> Option<D>,
    ) -> Self {
        // A new queue does not compile until it has its place here.
        let [schedules, requests, responses, acknowledgments] = queues::ALL;
        let (state, still_to_pass): (_, &[Queue]) = match (stored, received) {
            (Some(Decision::Cancelled), None) => return Self::Cancelled,
            (Some(Decision::Strings(stored)), Some(received)) if stored == received => {
                return Self::Received;
            }
            (Some(_), Some(_)) => return Self::Doubled,
            (Some(_), None) => (Self::Stored, &[acknowledgments]),
            (None, None) if is_scheduled => return Self::Scheduled,
            (None, _) => (Self::Queued, &[responses, requests, schedules]),
        };
        still_to_pass.iter().copied().find_map(dead_letter).map_or(state, Self::DeadLettered)
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
    fn request_that_waits_to_be_made_is_scheduled() {
        let scheduled = |stored: Option<&str>| {
            RequestState::of(stored.map(Decision::Strings), None, true, |queue| Some(queue))
        };
        assert_eq!(scheduled(None), Scheduled);
        assert_ne!(scheduled(Some("abc")), Scheduled);
        assert_eq!(state(None, None, &[SCHEDULES]), DeadLettered(SCHEDULES));
    }

    #[test]
    fn request_passes_from_queued_to_stored_to_received() {
        assert_eq!(state(None, None, &[]), Queued);
        assert_eq!(state(Some("abc"), None, &[]), Stored);
        assert_eq!(state(Some("abc"), Some("abc"), &[]), Received);
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
    fn dead_letter_of_a_step_still_to_be_done_holds_it_up() {
        assert_eq!(state(None, None, &[REQUESTS]), DeadLettered(REQUESTS));
        assert_eq!(state(Some("abc"), None, &[ACKNOWLEDGMENTS]), DeadLettered(ACKNOWLEDGMENTS));
        // The later step counts: the earlier one was replayed since.
        assert_eq!(state(None, None, &[REQUESTS, RESPONSES]), DeadLettered(RESPONSES));
    }

    #[test]
    fn dead_letter_of_a_step_that_is_done_holds_nothing_up() {
        assert_eq!(state(None, None, &[ACKNOWLEDGMENTS]), Queued);
        assert_eq!(state(Some("abc"), None, &[REQUESTS, RESPONSES]), Stored);
        for received in ["abc", "xyz"] {
            let alone = state(Some("abc"), Some(received), &[]);
            assert_eq!(state(Some("abc"), Some(received), &queues::ALL), alone);
        }
    }
}
