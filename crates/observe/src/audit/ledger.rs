//! The observations of each request, and the standing that follows from them. No input and no output.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use contract::facts::{self, Received, Stored};
use contract::queues::{ACKNOWLEDGMENTS, Request};
use contract::{Decision, RequestState};
use jiff::{SignedDuration, Timestamp};
use workqueue::{Bucket, Fact, JobId, Queue};

/// A fact by which a request is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JudgedFact {
    Requested,
    Stored,
    Received,
}

impl JudgedFact {
    pub(super) const ALL: [Self; 3] = [Self::Requested, Self::Stored, Self::Received];

    pub(super) const fn bucket(self) -> Bucket {
        // If a bucket is added, this does not compile until the bucket is judged here, or ignored like the first one.
        let [_idempotency, requested, stored, received] = facts::ALL;
        match self {
            Self::Requested => requested,
            Self::Stored => stored,
            Self::Received => received,
        }
    }
}

/// The revisions of one fact that the audit has read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revisions {
    /// The decision of the last revision, with a digest of its strings. None if that revision removed the fact.
    decision: Option<Decision<u64>>,
    /// The number of times that the fact was written.
    written: u32,
}

impl Revisions {
    fn note(&mut self, decision: Decision<u64>) {
        self.decision = Some(decision);
        self.written += 1;
    }
}

/// The observations of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    requested_at: Option<Timestamp>,
    requested: Revisions,
    stored: Revisions,
    received: Revisions,
    /// It is due later.
    pub(super) is_scheduled: bool,
    /// A message in a queue has its id.
    pub(super) in_a_queue: bool,
    /// It is in a bundle in a queue, whose message has another id.
    pub(super) in_a_bundle: bool,
    dead_letter: Option<DeadLetterOf>,
}

/// What became a dead letter. Of several, the last one here counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DeadLetterOf {
    /// An acknowledgment.
    Acknowledgment,
    /// A request or a response.
    EarlierStep,
    /// A request for later that was due, and not submitted yet.
    DueRequest,
}

/// The standing of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Stored and received with equal strings.
    Complete,
    /// Cancelled before its strings were stored, which completes it.
    Cancelled,
    /// Due later.
    Scheduled,
    /// In one of the queues, delivered or not.
    Pending,
    /// Among the dead letters.
    DeadLettered,
    /// Accepted, and nowhere.
    Lost,
    /// Strings that differ, or a fact that was written twice.
    Doubled,
    /// Without a record that it was accepted, which is no error: a person published it, or its requestor died before it
    /// created the fact.
    Unasked,
    /// Too old for the guarantees.
    TooOld,
}

impl Seen {
    /// Records a revision of a fact. A body that is no fact differs from every fact.
    pub(super) fn note_fact(&mut self, fact: JudgedFact, body: &[u8]) {
        let (requested_at, strings) = match fact {
            JudgedFact::Requested => {
                (Request::from_body(body).ok().map(|request| request.requested_at), None)
            }
            JudgedFact::Stored => match Stored::from_body(body) {
                Ok(Stored::Strings(stored)) => (Some(stored.requested_at), Some(stored.values)),
                Ok(Stored::Cancelled(_)) => {
                    self.stored.note(Decision::Cancelled);
                    return;
                }
                Err(_) => (None, None),
            },
            JudgedFact::Received => {
                (None, Received::from_body(body).ok().map(|received| received.values))
            }
        };
        self.requested_at = self.requested_at.or(requested_at);
        let digest = strings.map_or_else(|| digest(body), |strings| digest(&strings));
        self.revisions(fact).note(Decision::Strings(digest));
    }

    /// Records that a person removed a fact.
    pub(super) fn note_removal(&mut self, fact: JudgedFact) {
        self.revisions(fact).decision = None;
    }

    pub(super) fn note_dead_letter(&mut self, of: DeadLetterOf) {
        self.dead_letter = self.dead_letter.max(Some(of));
    }

    /// Whether a message in a queue is all that there is of it.
    pub(super) fn is_only_in_a_queue(&self) -> bool {
        *self == Self { in_a_queue: true, ..Self::default() }
    }

    /// Whether the request was accepted.
    pub(super) fn is_requested(&self) -> bool {
        self.requested.decision.is_some()
    }

    fn revisions(&mut self, fact: JudgedFact) -> &mut Revisions {
        match fact {
            JudgedFact::Requested => &mut self.requested,
            JudgedFact::Stored => &mut self.stored,
            JudgedFact::Received => &mut self.received,
        }
    }

    /// The standing of the request with this id, if the guarantees hold for `facts_max_age` after it was made.
    pub(super) fn standing(&self, id: &str, now: Timestamp, facts_max_age: Duration) -> Standing {
        let limit = SignedDuration::try_from(facts_max_age).unwrap_or(SignedDuration::MAX);
        // Without a fact, from the id: a dead letter outlives the facts.
        let asked = self.requested_at.or_else(|| asked_at(id));
        // A scheduled request is due in the future, however old its id is.
        let is_due_letter = self.dead_letter == Some(DeadLetterOf::DueRequest);
        let is_asked = self.requested_at.is_some() || !(self.is_scheduled || is_due_letter);
        if is_asked && asked.is_some_and(|asked| now.duration_since(asked) >= limit) {
            return Standing::TooOld;
        }
        let written_twice =
            [&self.requested, &self.stored, &self.received].iter().any(|fact| fact.written > 1);
        // A dead letter of any step accounts for the request. But without stored strings, that of an acknowledgment is
        // not what the request waits for.
        let dead_letter = |queue: Queue| {
            let accounts =
                |of: &DeadLetterOf| *of != DeadLetterOf::Acknowledgment || queue == ACKNOWLEDGMENTS;
            self.dead_letter.filter(accounts).map(|_| ())
        };
        let is_requested = self.is_requested();
        let is_scheduled = self.is_scheduled && !is_requested;
        let received = self.received.decision.and_then(Decision::strings);
        match RequestState::of(self.stored.decision, received, is_scheduled, dead_letter) {
            RequestState::Scheduled => Standing::Scheduled,
            RequestState::Doubled => Standing::Doubled,
            _ if written_twice => Standing::Doubled,
            // A request for later is accepted once it is scheduled, and has no fact until it is submitted.
            _ if !is_requested && is_due_letter => Standing::DeadLettered,
            _ if !is_requested => Standing::Unasked,
            RequestState::Received => Standing::Complete,
            RequestState::Cancelled => Standing::Cancelled,
            // A request that is being cancelled may be accepted, and still scheduled.
            _ if self.in_a_queue || self.in_a_bundle || self.is_scheduled => Standing::Pending,
            RequestState::DeadLettered(()) => Standing::DeadLettered,
            RequestState::Queued | RequestState::Stored => Standing::Lost,
        }
    }
}

/// When a request was first made, by the clock of its requestor. None if the id is not that of a request, because a
/// person published the message.
pub(super) fn asked_at(id: &str) -> Option<Timestamp> {
    id.parse().ok().map(JobId::made_at)
}

/// A digest, so that millions of requests fit into memory. Two different values have the same one with a probability of
/// 1 in 2⁶⁴.
fn digest(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The observations of all requests, by the id in their subjects and keys.
pub(super) type Ledger = BTreeMap<String, Seen>;

#[cfg(test)]
mod tests {
    use super::*;
    use contract::facts::Cancellation;
    use contract::queues::Acknowledgment;
    use contract::{Amount, Strings};

    const DAY: Duration = Duration::from_hours(24);

    fn noon() -> Timestamp {
        "2026-01-02T12:00:00Z".parse().unwrap()
    }

    fn body<F: Fact>(fact: &F) -> Vec<u8> {
        serde_json::to_vec(fact).unwrap()
    }

    fn strings(value: &str) -> Strings {
        Strings::try_from(vec![value.to_owned()]).unwrap()
    }

    fn requested(id: JobId) -> Vec<u8> {
        let amount = Amount::new(1, 3).unwrap();
        body(&Request::new(id, amount, "r", noon()))
    }

    fn stored(id: JobId, value: &str) -> Vec<u8> {
        body(&Stored::Strings(Acknowledgment {
            id,
            requested_at: noon(),
            values: strings(value),
            generator: "g".to_owned(),
            started_at: None,
            generated_at: noon(),
            requestor: "r".to_owned(),
            stored_at: noon(),
        }))
    }

    fn cancelled(id: JobId) -> Vec<u8> {
        let (cancelled_by, cancelled_at) = ("me".to_owned(), noon());
        body(&Stored::Cancelled(Cancellation { id, cancelled_by, cancelled_at }))
    }

    fn received(id: JobId, value: &str) -> Vec<u8> {
        body(&Received {
            id,
            values: strings(value),
            marked_by: "g".to_owned(),
            received_at: noon(),
        })
    }

    /// The observations of a request that has left all three facts.
    fn complete() -> Seen {
        let id = JobId::new();
        let mut seen = Seen::default();
        seen.note_fact(JudgedFact::Requested, &requested(id));
        seen.note_fact(JudgedFact::Stored, &stored(id, "abc"));
        seen.note_fact(JudgedFact::Received, &received(id, "abc"));
        seen
    }

    fn standing(seen: &Seen) -> Standing {
        seen.standing("an-id", noon(), DAY)
    }

    #[test]
    fn request_with_equal_strings_in_both_facts_is_complete() {
        assert_eq!(standing(&complete()), Standing::Complete);
    }

    #[test]
    fn accepted_request_that_is_nowhere_is_lost() {
        for fact in [JudgedFact::Stored, JudgedFact::Received] {
            let mut seen = complete();
            seen.note_removal(fact);
            assert_eq!(standing(&seen), Standing::Lost, "without {fact:?}");
        }
    }

    #[test]
    fn incomplete_request_is_pending_in_a_queue_or_dead_lettered() {
        let mut seen = complete();
        seen.note_removal(JudgedFact::Received);
        seen.note_dead_letter(DeadLetterOf::EarlierStep);
        assert_eq!(standing(&seen), Standing::DeadLettered);
        seen.in_a_queue = true;
        assert_eq!(standing(&seen), Standing::Pending);
    }

    #[test]
    fn dead_acknowledgment_does_not_hide_a_lost_stored_fact() {
        let mut seen = complete();
        seen.note_removal(JudgedFact::Received);
        seen.note_dead_letter(DeadLetterOf::Acknowledgment);
        assert_eq!(standing(&seen), Standing::DeadLettered);
        seen.note_removal(JudgedFact::Stored);
        assert_eq!(standing(&seen), Standing::Lost);
        // Its response may be replayed.
        seen.note_dead_letter(DeadLetterOf::EarlierStep);
        assert_eq!(standing(&seen), Standing::DeadLettered);
        seen.note_dead_letter(DeadLetterOf::Acknowledgment);
        assert_eq!(standing(&seen), Standing::DeadLettered);
    }

    #[test]
    fn complete_request_stays_complete_with_a_dead_letter() {
        let mut seen = complete();
        seen.note_dead_letter(DeadLetterOf::EarlierStep);
        seen.in_a_queue = true;
        assert_eq!(standing(&seen), Standing::Complete);
    }

    #[test]
    fn request_is_scheduled_until_it_is_accepted() {
        let mut seen = Seen { is_scheduled: true, ..Seen::default() };
        assert_eq!(standing(&seen), Standing::Scheduled);
        let a_month_later = noon() + SignedDuration::from_hours(30 * 24);
        let id = JobId::new().to_string();
        assert_eq!(seen.standing(&id, a_month_later, DAY), Standing::Scheduled);
        seen.note_fact(JudgedFact::Requested, &requested(JobId::new()));
        seen.in_a_queue = true;
        assert_eq!(standing(&seen), Standing::Pending);
    }

    #[test]
    fn strings_that_differ_are_doubled() {
        let id = JobId::new();
        let mut seen = Seen::default();
        seen.note_fact(JudgedFact::Requested, &requested(id));
        seen.note_fact(JudgedFact::Stored, &stored(id, "abc"));
        seen.note_fact(JudgedFact::Received, &received(id, "xyz"));
        assert_eq!(standing(&seen), Standing::Doubled);
    }

    #[test]
    fn cancelled_request_is_complete_unless_it_has_strings() {
        let id = JobId::new();
        let mut seen = Seen::default();
        seen.note_fact(JudgedFact::Requested, &requested(id));
        seen.note_fact(JudgedFact::Stored, &cancelled(id));
        // A worker may still handle it.
        seen.in_a_queue = true;
        assert_eq!(standing(&seen), Standing::Cancelled);
        let mut marked = seen.clone();
        marked.note_fact(JudgedFact::Received, &received(id, "abc"));
        assert_eq!(standing(&marked), Standing::Doubled);
        seen.note_fact(JudgedFact::Stored, &stored(id, "abc"));
        assert_eq!(standing(&seen), Standing::Doubled);
    }

    #[test]
    fn fact_that_is_written_again_is_doubled() {
        let id = JobId::new();
        for (fact, body) in
            JudgedFact::ALL.into_iter().zip([requested(id), stored(id, "abc"), received(id, "abc")])
        {
            let mut seen = complete();
            seen.note_fact(fact, &body);
            assert_eq!(standing(&seen), Standing::Doubled, "{fact:?}");
        }
    }

    #[test]
    fn malformed_fact_is_doubled_if_the_other_fact_is_valid() {
        let mut seen = Seen::default();
        let id = JobId::new();
        seen.note_fact(JudgedFact::Requested, &requested(id));
        seen.note_fact(JudgedFact::Stored, &stored(id, "abc"));
        seen.note_fact(JudgedFact::Received, b"not a fact");
        assert_eq!(standing(&seen), Standing::Doubled);
    }

    #[test]
    fn request_that_was_not_accepted_is_unasked_and_never_lost() {
        let mut seen = Seen::default();
        assert_eq!(standing(&seen), Standing::Unasked);
        seen.note_fact(JudgedFact::Stored, &stored(JobId::new(), "abc"));
        assert_eq!(standing(&seen), Standing::Unasked);
    }

    #[test]
    fn request_older_than_the_guarantees_is_not_judged() {
        let mut seen = complete();
        seen.note_removal(JudgedFact::Received);
        let a_day_later: Timestamp = "2026-01-03T12:00:00Z".parse().unwrap();
        assert_eq!(seen.standing("an-id", a_day_later, DAY), Standing::TooOld);
        assert_eq!(seen.standing("an-id", a_day_later, Duration::MAX), Standing::Lost);
    }

    #[test]
    fn dead_letter_older_than_the_guarantees_is_not_judged() {
        let seen = Seen { dead_letter: Some(DeadLetterOf::EarlierStep), ..Seen::default() };
        let id = JobId::new();
        let (now, a_day) = (id.made_at(), SignedDuration::from_hours(24));
        assert_eq!(seen.standing(&id.to_string(), now, DAY), Standing::Unasked);
        assert_eq!(seen.standing(&id.to_string(), now + a_day, DAY), Standing::TooOld);
    }
}
