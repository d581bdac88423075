//! Finds signs of an earlier store, whose requests the audit cannot know. Does no I/O.
//!
//! A lost store takes its facts along, and the streams that are declared in its place are empty. So the audit would miss
//! no request of the lost store. These are signs of an earlier store:
//!
//! - the metadata of a stream says so, because a process that knew the earlier stream has noticed the change
//! - a bucket lacks its first facts
//! - most requests are unasked
//! - a stream was in use before another one was created
//! - a lost or unasked request was made before the store was created, by the clock of its requestor
//! - a requestor made requests before that, by its own clock

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::ledger::{Standing, asked_at};
use super::memory::Memory;

/// The most by which two clocks may differ. A request may seem to be that much older than its store.
const CLOCKS: SignedDuration = SignedDuration::from_secs(1);

/// The longest time between the declarations of two streams.
const DECLARING: SignedDuration = SignedDuration::from_secs(10);

/// The number of unasked requests that is no sign, even if most requests are unasked. A requestor that dies leaves those
/// that it had in flight, and a gateway whose network hangs leaves those of its clients.
const FEW: usize = 1000;

/// The requestors of the accepted requests, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Requestors(BTreeMap<String, Requestor>);

#[derive(Clone, Copy, Debug)]
struct Requestor {
    /// When it made its first request, by its own clock.
    first: Timestamp,
    /// The most by which its clock is behind the broker's: the shortest time from a request to its acceptance.
    behind: SignedDuration,
}

impl Requestors {
    /// Records when this requestor made a request, by its own clock, and when the broker stored the fact `requested`.
    pub(super) fn note(&mut self, name: &str, asked: Timestamp, accepted: Timestamp) {
        let behind = accepted.duration_since(asked);
        match self.0.get_mut(name) {
            Some(requestor) => {
                requestor.first = requestor.first.min(asked);
                requestor.behind = requestor.behind.min(behind);
            }
            None => {
                self.0.insert(name.to_owned(), Requestor { first: asked, behind });
            }
        }
    }

    /// The requestor with the earliest request, and its time by the broker's clock.
    fn first(&self) -> Option<(Timestamp, &str)> {
        let asked = self.0.iter().map(|(name, requestor)| {
            let first = requestor.first.saturating_add(requestor.behind);
            (first.unwrap_or(requestor.first), name.as_str())
        });
        asked.min()
    }
}

/// The evidence of an earlier store.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// The judged streams.
    pub(super) memories: Vec<Memory>,
    requestors: Requestors,
    /// When the first lost or unasked request was made, and its id.
    missed: Option<(Timestamp, String)>,
    accepted: usize,
    unasked: usize,
    /// The number of messages under ids that no requestor makes.
    foreign: usize,
    /// The numbers of accepted and unasked requests at the last moment at which most were unasked.
    mostly_unasked: Option<(usize, usize)>,
}

impl Evidence {
    pub(super) fn of(requestors: Requestors) -> Self {
        Self { requestors, ..Self::default() }
    }

    /// Records the standing of a request. The requests come in the order of their ids, which is that of their times.
    pub(super) fn note(&mut self, id: &str, standing: Standing) {
        match standing {
            Standing::TooOld | Standing::Scheduled => {}
            // A message under an id that no requestor makes says nothing about an earlier store.
            Standing::Unasked if asked_at(id).is_none() => self.foreign += 1,
            Standing::Unasked => {
                self.unasked += 1;
                // Stays a sign, however many requests are accepted later.
                if self.unasked > FEW.max(self.accepted) {
                    self.mostly_unasked = Some((self.accepted, self.unasked));
                }
            }
            _ => self.accepted += 1,
        }
        if self.missed.is_none() && matches!(standing, Standing::Lost | Standing::Unasked) {
            self.missed = asked_at(id).map(|asked| (asked, id.to_owned()));
        }
    }

    /// The time since which the broker remembers.
    pub(super) fn since(&self) -> Option<Timestamp> {
        self.memories.iter().map(|memory| memory.created).max()
    }

    /// The sign of an earlier store, if there is one, with guarantees that hold for `facts_max_age`.
    pub(super) fn doubt(&self, now: Timestamp, facts_max_age: Duration) -> Option<String> {
        let max_age = SignedDuration::try_from(facts_max_age).unwrap_or(SignedDuration::MAX);
        let is_recent = |time: Timestamp| now.duration_since(time) < max_age;
        let sign = self.memories.iter().find_map(|memory| memory.sign(now, is_recent));
        // If the store is older than `facts_max_age`, no request from before it would be judged.
        let since = self.since().filter(|since| is_recent(*since));
        sign.or_else(|| self.older_than(since?)).or_else(|| {
            let (accepted, unasked) = self.mostly_unasked?;
            Some(format!(
                "of most requests it is not known that they were accepted: among the first {}, \
                 {unasked} are unasked",
                accepted + unasked
            ))
        })
    }

    /// A sign of an earlier store, from before the time since which the broker remembers.
    fn older_than(&self, since: Timestamp) -> Option<String> {
        let before = since.checked_sub(CLOCKS).ok()?;
        let sign = self.older_stream().or_else(|| {
            let (asked, id) = self.missed.as_ref().filter(|(asked, _)| *asked < before)?;
            Some(format!(
                "{} was asked at {asked:.3}, and something of it is missing",
                id.escape_debug()
            ))
        });
        let sign = sign.or_else(|| {
            let (asked, name) = self.requestors.first().filter(|(asked, _)| *asked < before)?;
            Some(format!("{} asked at {asked:.3}", name.escape_debug()))
        })?;
        Some(format!("a store was replaced at {since:.3}: {sign}"))
    }

    /// A stream that was in use before another was created, if they were not all created together.
    fn older_stream(&self) -> Option<String> {
        let mut by_age: Vec<&Memory> = self.memories.iter().collect();
        by_age.sort_by_key(|memory| memory.created);
        let gap = by_age
            .windows(2)
            .rposition(|pair| pair[1].created.duration_since(pair[0].created) > DECLARING)?;
        let (older, younger) = by_age.split_at(gap + 1);
        let since = younger[0].created;
        // A queue removes the messages that are done, but its sequence counts about one for each request.
        let requests = (self.accepted + self.unasked + self.foreign) as u64;
        let was_in_use = |memory: &&&Memory| {
            memory.oldest.is_some_and(|oldest| oldest < since) || memory.stored > requests
        };
        let Memory { stream, .. } = older.iter().find(was_in_use)?;
        Some(format!("{stream} is older, and was in use before"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn at(time: &str) -> Timestamp {
        format!("2026-01-02T{time}Z").parse().unwrap()
    }

    fn memory(stream: &str, created: &str, oldest: Option<&str>) -> Memory {
        Memory::whole(stream, at(created), oldest.map(at))
    }

    /// A store that was declared at ten o'clock, with a request a second later.
    fn whole() -> Evidence {
        let mut requestors = Requestors::default();
        requestors.note("r", at("10:00:01"), at("10:00:01.001"));
        let evidence = Evidence {
            memories: vec![
                memory("REQUESTS", "10:00:00", Some("10:00:01")),
                memory("KV_requested", "10:00:00.1", Some("10:00:01.001")),
                memory("KV_stored", "10:00:00.2", None),
            ],
            requestors,
            ..Evidence::default()
        };
        with(evidence, Standing::Complete, 1)
    }

    /// The id of a request of ten o'clock.
    const ID: &str = "019b7e26-58e8-7000-8000-000000000000";

    /// The evidence with this many more requests of this standing.
    fn with(mut evidence: Evidence, standing: Standing, count: usize) -> Evidence {
        for _ in 0..count {
            evidence.note(ID, standing);
        }
        evidence
    }

    fn doubt(evidence: &Evidence) -> String {
        evidence.doubt(at("12:00:00"), DAY).unwrap_or_default()
    }

    #[test]
    fn whole_store_leaves_no_doubt() {
        assert_eq!(doubt(&whole()), "");
        assert_eq!(whole().since(), Some(at("10:00:00.2")));
        assert_eq!(doubt(&Evidence::default()), "");
    }

    #[test]
    fn missed_request_from_before_the_store_is_a_sign() {
        for (asked, sign) in [("10:00:00", false), ("09:59:59.5", false), ("09:59:58", true)] {
            let mut evidence = whole();
            evidence.missed = Some((at(asked), "an-id".to_owned()));
            let doubt = doubt(&evidence);
            assert_eq!(!doubt.is_empty(), sign, "{asked}: {doubt}");
            let words = "a store was replaced at 2026-01-02T10:00:00.200Z: an-id was asked at";
            assert!(!sign || doubt.starts_with(words), "{doubt}");
        }
    }

    #[test]
    fn requestor_that_asked_before_the_store_is_a_sign() {
        let mut evidence = whole();
        // The requestor waited for a broker, and this one accepted its request.
        evidence.requestors.note("r", at("09:59:50"), at("10:00:01"));
        assert!(doubt(&evidence).ends_with(": r asked at 2026-01-02T09:59:50.001Z"));
    }

    #[test]
    fn clock_of_a_requestor_that_is_behind_is_no_sign() {
        let mut evidence = whole();
        for second in 1..10 {
            let asked = at("09:50:00") + SignedDuration::from_secs(second);
            let accepted = at("10:00:00.003") + SignedDuration::from_secs(second);
            evidence.requestors.note("behind", asked, accepted);
        }
        assert_eq!(doubt(&evidence), "");
    }

    #[test]
    fn stream_in_use_before_another_was_created_is_a_sign() {
        let mut evidence = whole();
        evidence.memories[2] = memory("KV_stored", "11:00:00", None);
        let words = "a store was replaced at 2026-01-02T11:00:00.000Z: REQUESTS is older, and was in \
                     use before";
        assert_eq!(doubt(&evidence), words);
        // A stream that was created late, but before the first request, is no sign.
        for memory in &mut evidence.memories[..2] {
            memory.oldest = Some(at("11:30:00"));
        }
        evidence.requestors = Requestors::default();
        assert_eq!(doubt(&evidence), "");
    }

    #[test]
    fn store_older_than_the_guarantees_is_not_doubted() {
        let mut evidence = whole();
        evidence.missed = Some((at("09:00:00"), "an-id".to_owned()));
        assert_ne!(doubt(&evidence), "");
        assert_eq!(evidence.doubt(at("12:00:00"), Duration::from_hours(1)), None);
    }

    #[test]
    fn messages_of_no_requestor_leave_no_doubt() {
        let mut evidence = Evidence::default();
        for number in 0..=FEW {
            evidence.note(&format!("{number:05}"), Standing::Unasked);
        }
        assert_eq!(doubt(&evidence), "");
    }

    #[test]
    fn many_unasked_requests_leave_a_doubt() {
        let few = with(Evidence::default(), Standing::Unasked, FEW);
        assert_eq!(doubt(&few), "");
        let many = with(few, Standing::Unasked, 1);
        assert!(doubt(&many).ends_with(": among the first 1001, 1001 are unasked"));
        let later = with(many.clone(), Standing::Complete, 10_000);
        assert_eq!(doubt(&later), doubt(&many));
        let among_many = with(Evidence::default(), Standing::Complete, 10_000);
        assert_eq!(doubt(&with(among_many, Standing::Unasked, 10_000)), "");
    }

    #[test]
    fn queue_in_use_before_the_buckets_is_a_sign() {
        let mut evidence = with(whole(), Standing::Complete, 5);
        // Its last message came after the buckets were declared anew.
        evidence.memories[0] = memory("REQUESTS", "09:00:00", Some("10:00:01"));
        evidence.memories[0].stored = 6;
        assert_eq!(doubt(&evidence), "");
        evidence.memories[0].stored = 7;
        assert!(doubt(&evidence).ends_with(": REQUESTS is older, and was in use before"));
    }

    #[test]
    fn streams_declared_slowly_one_by_one_are_no_sign() {
        let mut evidence = whole();
        for (memory, created) in
            evidence.memories.iter_mut().zip(["09:59:30", "09:59:40", "09:59:50"])
        {
            memory.created = at(created);
        }
        evidence.memories[0].stored = 100;
        assert_eq!(doubt(&evidence), "");
    }
}
