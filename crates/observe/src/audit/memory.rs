//! Since when the broker remembers, and whether something was there before. No input and no output.
//!
//! A store that is lost takes its facts along, and what is declared in its place knows nothing: nothing that
//! was asked there is missed. What shows that there was something before: a stream says so, because a process
//! that knew the other declared it. Where no such process was left, there may be a message in one stream from
//! before another was created; a request of which a part is here, and that was asked before; or a requestor
//! that has asked before. The times of the last two are of the requestors' clocks.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::stream::Info;
use jiff::{SignedDuration, Timestamp};
use workqueue::topology;

/// By how much two clocks may differ, and a store may seem to be younger than what was asked there.
const CLOCKS: SignedDuration = SignedDuration::from_secs(1);

/// By how much the clocks of two brokers may differ.
const BROKERS: SignedDuration = SignedDuration::from_millis(500);

/// How long it takes at most to declare all streams, or to restore those that have few messages.
const DECLARING: SignedDuration = SignedDuration::from_secs(10);

/// How many requests may be unasked, although most are. One that dies leaves a few.
const FEW: usize = 1000;

/// What a stream says of its past.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    stream: String,
    created: Timestamp,
    /// When the stream was created that was there before, if there was one.
    replaces: Option<Timestamp>,
    /// The time of the oldest message that it has; of the last one that it had, if it has none.
    oldest: Option<Timestamp>,
    /// Whether it is a bucket that has had facts, and has none.
    emptied: bool,
}

impl Memory {
    pub(super) fn of(info: &Info, is_bucket: bool) -> Self {
        let state = &info.state;
        let is_empty = state.messages == 0;
        let oldest = if is_empty { state.last_timestamp } else { state.first_timestamp };
        let read = |nanos| Timestamp::from_nanosecond(nanos).unwrap_or_default();
        Self {
            stream: info.config.name.clone(),
            created: topology::created_at(info),
            replaces: topology::replaces(&info.config),
            oldest: (state.last_sequence > 0).then(|| read(oldest.unix_timestamp_nanos())),
            emptied: is_bucket && is_empty && state.last_sequence > 0,
        }
    }

    /// Whether it has messages from before it was created, as a backup brings them.
    fn is_restored(&self) -> bool {
        self.oldest.is_some_and(|oldest| oldest < self.created - BROKERS)
    }
}

/// What the accepted requests say of those who asked, by their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Requestors(BTreeMap<String, Requestor>);

#[derive(Clone, Copy, Debug)]
struct Requestor {
    /// When it asked first, by its own clock.
    first: Timestamp,
    /// By how much its clock is behind the broker's, at most: the shortest time that an acceptance took.
    behind: SignedDuration,
}

impl Requestors {
    /// Notes that this requestor asked for something, by its own clock, and when the broker stored that it
    /// was accepted.
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

    /// The one that asked first, and when, by the broker's clock.
    fn first(&self) -> Option<(Timestamp, &str)> {
        let asked = self.0.iter().map(|(name, requestor)| {
            let first = requestor.first.saturating_add(requestor.behind);
            (first.unwrap_or(requestor.first), name.as_str())
        });
        asked.min()
    }
}

/// What the verdict rests on.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// The streams that hold what is judged.
    pub(super) memories: Vec<Memory>,
    pub(super) requestors: Requestors,
    /// When the first request was asked that is lost or unasked, and its id.
    pub(super) missed: Option<(Timestamp, String)>,
    pub(super) accepted: usize,
    pub(super) unasked: usize,
}

impl Evidence {
    /// Since when the broker remembers.
    pub(super) fn since(&self) -> Option<Timestamp> {
        if self.is_restored() {
            self.memories.iter().filter_map(|memory| memory.oldest).min()
        } else {
            self.memories.iter().map(|memory| memory.created).max()
        }
    }

    fn is_restored(&self) -> bool {
        self.memories.iter().any(Memory::is_restored)
    }

    /// Why nobody can tell whether something was lost, where the guarantees hold for `facts_max_age`.
    pub(super) fn doubt(&self, now: Timestamp, facts_max_age: Duration) -> Option<String> {
        let max_age = SignedDuration::try_from(facts_max_age).unwrap_or(SignedDuration::MAX);
        let is_recent = |time: Timestamp| now.duration_since(time) < max_age;
        let emptied = self
            .memories
            .iter()
            .find(|memory| memory.emptied && memory.oldest.is_some_and(is_recent));
        if let Some(Memory { stream, .. }) = emptied {
            return Some(format!("{stream} is empty, and had facts that it should still have"));
        }
        // A restored stream is as old as what it holds, and not as young as its restoration.
        let began = |memory: &Memory| memory.oldest.unwrap_or(memory.created).min(memory.created);
        let replaced = self.memories.iter().find_map(|memory| {
            let before = memory.replaces.filter(|_| is_recent(began(memory)))?;
            Some((memory, before))
        });
        if let Some((Memory { stream, created, .. }, before)) = replaced {
            return Some(format!(
                "a store was replaced at {created:.3}: there was another {stream}, created at {before:.3}"
            ));
        }
        if self.unasked > FEW.max(self.accepted) {
            let Self { unasked, accepted, .. } = self;
            return Some(format!(
                "of most requests it is not known that they were accepted: {unasked} are unasked, \
                 {accepted} are not"
            ));
        }
        // What was there before a store that is older than the guarantees would not be judged either.
        let since = self.since().filter(|since| !self.is_restored() && is_recent(*since))?;
        let before = since.checked_sub(CLOCKS).ok()?;
        let sign = self.older_message(since).or_else(|| {
            let (asked, id) = self.missed.as_ref().filter(|(asked, _)| *asked < before)?;
            Some(format!("{id} was asked at {asked:.3}, and something of it is missing"))
        });
        let sign = sign.or_else(|| {
            let (asked, name) = self.requestors.first().filter(|(asked, _)| *asked < before)?;
            Some(format!("{name} asked at {asked:.3}"))
        })?;
        Some(format!("a store was replaced at {since:.3}: {sign}"))
    }

    /// A message from before another stream was created, if they were not all created together.
    fn older_message(&self, since: Timestamp) -> Option<String> {
        let first = self.memories.iter().map(|memory| memory.created).min()?;
        if since.duration_since(first) <= DECLARING {
            return None;
        }
        let older = self
            .memories
            .iter()
            .find(|memory| memory.oldest.is_some_and(|oldest| oldest < since))?;
        Some(format!("{} is older, and was in use before", older.stream))
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
        let (created, oldest) = (at(created), oldest.map(at));
        Memory { stream: stream.to_owned(), created, replaces: None, oldest, emptied: false }
    }

    /// A store that was declared at ten o'clock, and in which something was asked a second later.
    fn whole() -> Evidence {
        let mut requestors = Requestors::default();
        requestors.note("r", at("10:00:01"), at("10:00:01.001"));
        Evidence {
            memories: vec![
                memory("REQUESTS", "10:00:00", Some("10:00:01")),
                memory("KV_requested", "10:00:00.1", Some("10:00:01.001")),
                memory("KV_stored", "10:00:00.2", None),
            ],
            requestors,
            accepted: 1,
            ..Evidence::default()
        }
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
    fn stream_that_replaces_another_leaves_a_doubt() {
        let mut evidence = whole();
        evidence.memories[1].replaces = Some(at("09:00:00"));
        let words = "a store was replaced at 2026-01-02T10:00:00.100Z: there was another KV_requested, \
                     created at 2026-01-02T09:00:00.000Z";
        assert_eq!(doubt(&evidence), words);
        // All that was asked of it is too old by now.
        assert_eq!(evidence.doubt(at("12:00:00"), Duration::from_hours(1)), None);
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
        // It waited for a broker, and this one took it.
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
        // One that was created late, before anything was asked, is none.
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
    fn restored_store_is_as_old_as_its_messages() {
        let mut evidence = whole();
        // At eleven.
        for memory in &mut evidence.memories {
            memory.created = at("11:00:00");
        }
        evidence.missed = Some((at("10:00:02"), "an-id".to_owned()));
        assert_eq!(doubt(&evidence), "");
        assert_eq!(evidence.since(), Some(at("10:00:01")));
    }

    #[test]
    fn bucket_that_was_emptied_leaves_a_doubt() {
        let mut evidence = whole();
        evidence.memories[1].emptied = true;
        let words = "KV_requested is empty, and had facts that it should still have";
        assert_eq!(doubt(&evidence), words);
        // They may have grown too old.
        assert_eq!(evidence.doubt(at("12:00:00"), Duration::from_hours(1)), None);
    }

    #[test]
    fn many_unasked_requests_leave_a_doubt() {
        let mut evidence = Evidence { accepted: 89, unasked: 11_113, ..whole() };
        assert!(doubt(&evidence).ends_with("11113 are unasked, 89 are not"));
        evidence.accepted = 20_000;
        assert_eq!(doubt(&evidence), "");
        evidence = Evidence { accepted: 0, unasked: FEW, ..evidence };
        assert_eq!(doubt(&evidence), "");
    }
}
