//! What was seen of each request, and what follows from it. No input and no output.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use contract::Strings;
use contract::facts::Received;
use contract::queues::{Acknowledgment, Request};
use jiff::{SignedDuration, Timestamp};
use workqueue::{Bucket, Fact};

/// The revisions of one fact, as far as they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revisions {
    /// A digest of the strings that the last revision says, unless that removed the fact.
    strings: Option<u64>,
    /// How many times the fact was written.
    written: u32,
}

impl Revisions {
    fn write(&mut self, strings: u64) {
        self.strings = Some(strings);
        self.written += 1;
    }

    fn stands(&self) -> bool {
        self.strings.is_some()
    }
}

/// What was seen of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    requested_at: Option<Timestamp>,
    requested: Revisions,
    stored: Revisions,
    received: Revisions,
    in_a_queue: bool,
    dead_letter: bool,
}

/// How a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Stored and received with equal strings.
    Complete,
    /// In one of the queues, delivered or not.
    Pending,
    /// Among the dead letters.
    DeadLettered,
    /// Accepted, and nowhere.
    Lost,
    /// Strings that differ, or a fact that was written twice.
    Doubled,
    /// Not accepted as far as anybody knows, which is no error: it was made by hand, or its
    /// requestor died before it could say so.
    Unasked,
    /// So old that the promises do not hold for it any more.
    TooOld,
}

impl Seen {
    /// Notes a revision of a fact. A body that is no fact differs from every one that is.
    pub(super) fn note_fact(&mut self, bucket: Bucket, body: &[u8]) {
        use contract::facts::{RECEIVED, REQUESTED, STORED};
        if bucket == REQUESTED {
            let request = Request::decode_fact(body);
            self.requested_at = request.map(|request| request.requested_at).or(self.requested_at);
            self.requested.write(digest(body));
        } else if bucket == STORED {
            let stored = Acknowledgment::decode_fact(body);
            let digest = stored.as_ref().map_or_else(|| digest(body), |fact| of(&fact.values));
            self.requested_at = self.requested_at.or(stored.map(|stored| stored.requested_at));
            self.stored.write(digest);
        } else if bucket == RECEIVED {
            let received = Received::decode_fact(body);
            self.received.write(received.map_or_else(|| digest(body), |fact| of(&fact.values)));
        }
    }

    /// Notes that somebody removed a fact by hand.
    pub(super) fn note_removal(&mut self, bucket: Bucket) {
        use contract::facts::{RECEIVED, REQUESTED, STORED};
        if bucket == REQUESTED {
            self.requested.strings = None;
        } else if bucket == STORED {
            self.stored.strings = None;
        } else if bucket == RECEIVED {
            self.received.strings = None;
        }
    }

    pub(super) fn note_queue(&mut self) {
        self.in_a_queue = true;
    }

    pub(super) fn note_dead_letter(&mut self) {
        self.dead_letter = true;
    }

    /// How the request stands, where the promises hold for `facts_max_age` from the asking.
    pub(super) fn standing(&self, now: Timestamp, facts_max_age: Duration) -> Standing {
        let limit = SignedDuration::try_from(facts_max_age).unwrap_or(SignedDuration::MAX);
        if self.requested_at.is_some_and(|asked| now.duration_since(asked) >= limit) {
            return Standing::TooOld;
        }
        let written_twice =
            [&self.requested, &self.stored, &self.received].iter().any(|fact| fact.written > 1);
        let both = self.stored.stands() && self.received.stands();
        if written_twice || (both && self.stored.strings != self.received.strings) {
            Standing::Doubled
        } else if !self.requested.stands() {
            Standing::Unasked
        } else if both {
            Standing::Complete
        } else if self.in_a_queue {
            Standing::Pending
        } else if self.dead_letter {
            Standing::DeadLettered
        } else {
            Standing::Lost
        }
    }
}

/// A fact, if the body is one.
trait DecodeFact: Fact {
    fn decode_fact(body: &[u8]) -> Option<Self> {
        Self::from_body(body).ok()
    }
}

impl<F: Fact> DecodeFact for F {}

fn of(strings: &Strings) -> u64 {
    digest(strings)
}

/// So that a million answers fit into memory. Two that differ have the same digest once in
/// 18,446,744,073,709,551,616 times.
fn digest(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What was seen of all requests, by the id that their subjects and keys name.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger(BTreeMap<String, Seen>);

impl Ledger {
    pub(super) fn entry(&mut self, id: &str) -> &mut Seen {
        match self.0.entry(id.to_owned()) {
            Entry::Occupied(seen) => seen.into_mut(),
            Entry::Vacant(place) => place.insert(Seen::default()),
        }
    }

    /// Puts what was seen on a second look in the place of the first.
    pub(super) fn replace(&mut self, id: String, seen: Seen) {
        self.0.insert(id, seen);
    }

    /// What was seen of all requests that stand so.
    pub(super) fn that_stand(
        &self,
        standing: Standing,
        now: Timestamp,
        facts_max_age: Duration,
    ) -> Vec<(String, Seen)> {
        let stands_so = |seen: &Seen| seen.standing(now, facts_max_age) == standing;
        let found = self.0.iter().filter(|(_, seen)| stands_so(seen));
        found.map(|(id, seen)| (id.clone(), seen.clone())).collect()
    }

    /// All requests with how they stand, in the order of their ids.
    pub(super) fn standings(
        &self,
        now: Timestamp,
        facts_max_age: Duration,
    ) -> impl Iterator<Item = (&str, Standing)> {
        self.0.iter().map(move |(id, seen)| (id.as_str(), seen.standing(now, facts_max_age)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::Amount;
    use contract::facts::{RECEIVED, REQUESTED, STORED};
    use workqueue::JobId;

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
        body(&Request { id, amount, requestor: "r".to_owned(), requested_at: noon() })
    }

    fn stored(id: JobId, value: &str) -> Vec<u8> {
        body(&Acknowledgment {
            id,
            requested_at: noon(),
            values: strings(value),
            generator: "g".to_owned(),
            generated_at: noon(),
            requestor: "r".to_owned(),
            stored_at: noon(),
        })
    }

    fn received(id: JobId, value: &str) -> Vec<u8> {
        body(&Received {
            id,
            values: strings(value),
            marked_by: "g".to_owned(),
            received_at: noon(),
        })
    }

    /// What was seen of a request that has left all three facts.
    fn complete() -> Seen {
        let id = JobId::new();
        let mut seen = Seen::default();
        seen.note_fact(REQUESTED, &requested(id));
        seen.note_fact(STORED, &stored(id, "abc"));
        seen.note_fact(RECEIVED, &received(id, "abc"));
        seen
    }

    fn standing(seen: &Seen) -> Standing {
        seen.standing(noon(), DAY)
    }

    #[test]
    fn a_request_with_equal_strings_on_both_sides_is_complete() {
        assert_eq!(standing(&complete()), Standing::Complete);
    }

    #[test]
    fn what_is_accepted_and_nowhere_is_lost() {
        for bucket in [STORED, RECEIVED] {
            let mut seen = complete();
            seen.note_removal(bucket);
            assert_eq!(standing(&seen), Standing::Lost, "without {}", bucket.name);
        }
    }

    #[test]
    fn a_queue_or_a_dead_letter_accounts_for_what_is_not_complete() {
        let mut seen = complete();
        seen.note_removal(RECEIVED);
        seen.note_dead_letter();
        assert_eq!(standing(&seen), Standing::DeadLettered);
        seen.note_queue();
        assert_eq!(standing(&seen), Standing::Pending);
    }

    #[test]
    fn a_dead_letter_does_not_undo_what_is_complete() {
        let mut seen = complete();
        seen.note_dead_letter();
        seen.note_queue();
        assert_eq!(standing(&seen), Standing::Complete);
    }

    #[test]
    fn strings_that_differ_are_doubled() {
        let id = JobId::new();
        let mut seen = Seen::default();
        seen.note_fact(REQUESTED, &requested(id));
        seen.note_fact(STORED, &stored(id, "abc"));
        seen.note_fact(RECEIVED, &received(id, "xyz"));
        assert_eq!(standing(&seen), Standing::Doubled);
    }

    #[test]
    fn a_fact_that_is_written_again_is_doubled_even_with_the_same_strings() {
        let id = JobId::new();
        for (bucket, body) in [REQUESTED, STORED, RECEIVED].into_iter().zip([
            requested(id),
            stored(id, "abc"),
            received(id, "abc"),
        ]) {
            let mut seen = complete();
            seen.note_fact(bucket, &body);
            assert_eq!(standing(&seen), Standing::Doubled, "{}", bucket.name);
        }
    }

    #[test]
    fn a_body_that_is_no_fact_is_doubled_where_the_other_side_has_one() {
        let mut seen = Seen::default();
        let id = JobId::new();
        seen.note_fact(REQUESTED, &requested(id));
        seen.note_fact(STORED, &stored(id, "abc"));
        seen.note_fact(RECEIVED, b"not a fact");
        assert_eq!(standing(&seen), Standing::Doubled);
    }

    #[test]
    fn what_nobody_accepted_is_unasked_and_never_lost() {
        let mut seen = Seen::default();
        assert_eq!(standing(&seen), Standing::Unasked);
        seen.note_fact(STORED, &stored(JobId::new(), "abc"));
        assert_eq!(standing(&seen), Standing::Unasked);
    }

    #[test]
    fn what_is_older_than_the_promises_is_not_judged() {
        let mut seen = complete();
        seen.note_removal(RECEIVED);
        let a_day_later: Timestamp = "2026-01-03T12:00:00Z".parse().unwrap();
        assert_eq!(seen.standing(a_day_later, DAY), Standing::TooOld);
        assert_eq!(seen.standing(a_day_later, Duration::MAX), Standing::Lost);
    }
}
