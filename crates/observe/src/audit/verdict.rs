use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::ledger::Standing;

/// The most ids of a kind in the table for people.
const NAMED: usize = 20;

/// The numbers of all requests for which the guarantees hold, by their standing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Requests that were accepted.
    pub requested: usize,
    /// Of these, those that are stored and received with equal strings, or were cancelled.
    pub complete: usize,
    /// Of the complete ones, those that were cancelled before their strings were stored.
    pub cancelled: usize,
    /// Requests that are due later, and not accepted yet.
    pub scheduled: usize,
    /// Of the accepted ones, those in one of the queues, delivered or not.
    pub pending: usize,
    /// Of the accepted ones, those among the dead letters.
    pub dead_lettered: usize,
    /// Of the accepted ones, those that are nowhere.
    pub lost: usize,
    /// Requests with strings that differ, or with a fact that was written twice.
    pub doubled: usize,
    /// Requests without a record that they were accepted, which is no error.
    pub unasked: usize,
    /// Requests that are too old for the guarantees.
    pub too_old: usize,
    /// The redeliveries of each queue.
    pub redelivered: Vec<Redelivered>,
    /// The paused queues.
    pub paused: Vec<Paused>,
    /// The ids of the requests that an operator has to look at.
    pub ids: Ids,
    /// The time since which the broker remembers. Earlier requests are not in these numbers.
    pub remembers_since: Option<Timestamp>,
    /// The reason if these numbers cannot show whether a request was lost: a store was replaced, or facts are gone.
    pub cannot_tell: Option<String>,
}

/// The ids of the requests that an operator has to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ids {
    /// Lost.
    pub lost: Vec<String>,
    /// Doubled.
    pub doubled: Vec<String>,
    /// Dead-lettered.
    pub dead_lettered: Vec<String>,
}

/// The redeliveries of one queue, as far as the broker knows.
///
/// The broker keeps the count of deliveries in memory, and writes it to the disk from time to time. After a kill it
/// starts from an older count, so the number is too small then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Redelivered {
    /// The queue's stream.
    pub queue: &'static str,
    /// Deliveries less messages.
    pub deliveries: u64,
}

/// A queue whose consumer is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Paused {
    /// The queue's stream.
    pub queue: &'static str,
    /// The end of the pause.
    pub until: Timestamp,
}

impl Verdict {
    /// Whether nothing was lost and nothing doubled, for certain.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.cannot_tell.is_none()
    }

    /// The redeliveries of all queues together.
    #[must_use]
    pub fn redeliveries(&self) -> u64 {
        self.redelivered.iter().map(|queue| queue.deliveries).sum()
    }

    pub(super) fn count(&mut self, id: &str, standing: Standing) {
        let accepted =
            !matches!(standing, Standing::Unasked | Standing::TooOld | Standing::Scheduled);
        self.requested += usize::from(accepted);
        self.cancelled += usize::from(standing == Standing::Cancelled);
        let ids = &mut self.ids;
        let (count, ids) = match standing {
            Standing::Complete | Standing::Cancelled => (&mut self.complete, None),
            Standing::Scheduled => (&mut self.scheduled, None),
            Standing::Pending => (&mut self.pending, None),
            Standing::DeadLettered => (&mut self.dead_lettered, Some(&mut ids.dead_lettered)),
            Standing::Lost => (&mut self.lost, Some(&mut ids.lost)),
            Standing::Doubled => (&mut self.doubled, Some(&mut ids.doubled)),
            Standing::Unasked => (&mut self.unasked, None),
            Standing::TooOld => (&mut self.too_old, None),
        };
        *count += 1;
        if let Some(ids) = ids {
            ids.push(id.to_owned());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let redelivered = usize::try_from(self.redeliveries()).unwrap_or(usize::MAX);
        let rows = [
            ("requested", self.requested, "accepted by the queue"),
            ("complete", self.complete, "stored, and received with the same strings"),
            ("pending", self.pending, "in a queue, still to be done"),
            ("dead-lettered", self.dead_lettered, "not handled, each with its reason"),
            ("lost", self.lost, "accepted, and nowhere"),
            ("doubled", self.doubled, "two results, or one that was changed"),
            (
                "redelivered",
                redelivered,
                "deliveries beyond the first; a killed broker forgets some",
            ),
        ];
        let rare = [
            ("cancelled", self.cancelled, "of the complete: closed without strings"),
            ("scheduled", self.scheduled, "due later"),
            ("unasked", self.unasked, "never accepted; a few are no error"),
            ("too old", self.too_old, "older than FACTS_MAX_AGE: not judged"),
        ];
        let rare = rare.into_iter().filter(|(_, count, _)| *count > 0);
        for (word, count, meaning) in rows.into_iter().chain(rare) {
            writeln!(formatter, "  {word:<14}{count:>10}   {meaning}")?;
        }
        for (word, ids) in [
            ("lost", &self.ids.lost),
            ("doubled", &self.ids.doubled),
            ("dead-lettered", &self.ids.dead_lettered),
        ] {
            for id in ids.iter().take(NAMED) {
                writeln!(formatter, "  {word} {}", id.escape_debug())?;
            }
            if ids.len() > NAMED {
                let more = ids.len() - NAMED;
                writeln!(formatter, "  {word} and {more} more; --json names them all")?;
            }
        }
        for Paused { queue, until } in &self.paused {
            writeln!(formatter, "  {queue} is paused until {until:.0}: nothing is delivered")?;
        }
        if let Some(since) = self.remembers_since {
            writeln!(formatter, "  the broker remembers since {since:.0}")?;
        }
        if let Some(why) = &self.cannot_tell {
            write!(formatter, "CANNOT TELL: {why}.")
        } else if self.is_clean() {
            write!(formatter, "Nothing lost, nothing doubled.")
        } else {
            write!(formatter, "NOT CLEAN: {} lost, {} doubled.", self.lost, self.doubled)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_is_clean_unless_requests_are_lost_or_doubled() {
        for (standing, clean) in [
            (Standing::Complete, true),
            (Standing::Cancelled, true),
            (Standing::Pending, true),
            (Standing::Scheduled, true),
            (Standing::DeadLettered, true),
            (Standing::Unasked, true),
            (Standing::TooOld, true),
            (Standing::Lost, false),
            (Standing::Doubled, false),
        ] {
            let mut verdict = Verdict::default();
            verdict.count("an-id", standing);
            assert_eq!(verdict.is_clean(), clean, "{standing:?}");
        }
    }

    #[test]
    fn replaced_store_is_never_clean() {
        let remembers_since = Some("2026-01-02T10:00:00.2Z".parse().unwrap());
        let mut verdict = Verdict { remembers_since, ..Verdict::default() };
        let said = verdict.to_string();
        let clean =
            "  the broker remembers since 2026-01-02T10:00:00Z\nNothing lost, nothing doubled.";
        assert!(said.ends_with(clean), "{said}");
        verdict.cannot_tell = Some("a store was replaced".to_owned());
        verdict.count("an-id", Standing::Lost);
        assert!(!verdict.is_clean());
        let said = verdict.to_string();
        assert!(said.ends_with("CANNOT TELL: a store was replaced."), "{said}");
    }

    #[test]
    fn table_has_the_lost_and_the_doubled_ids() {
        let mut verdict = Verdict::default();
        verdict.count("id-1", Standing::Lost);
        verdict.count("id-2", Standing::Doubled);
        let table = verdict.to_string();
        assert!(table.contains("lost id-1"), "{table}");
        assert!(table.contains("doubled id-2"), "{table}");
        assert!(table.ends_with("NOT CLEAN: 1 lost, 1 doubled."), "{table}");
    }
}
