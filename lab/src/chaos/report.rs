//! What came of it.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::plan::Plan;
use super::timeline::Moment;
use crate::audit::Verdict;
use crate::dead_letters::DeadLetter;

/// What was done, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether all promises were kept.
    pub clean: bool,
    /// The schedule that was followed.
    pub plan: Plan,
    /// What happened when.
    pub timeline: Vec<Moment>,
    /// What the audit says.
    pub verdict: Verdict,
    /// How many messages were sent that nobody can handle.
    pub garbage: usize,
    /// The ids of those that are not among the dead letters, where they all belong.
    pub garbage_missing: Vec<String>,
    /// Dead letters that somebody could have handled.
    pub healthy_dead_letters: Vec<DeadLetter>,
    /// What else went wrong, such as a service that ended by itself.
    pub failures: Vec<String>,
}

impl Report {
    pub(super) fn new(
        plan: Plan,
        timeline: Vec<Moment>,
        verdict: Verdict,
        garbage: &BTreeSet<String>,
        letters: Vec<DeadLetter>,
        failures: Vec<String>,
    ) -> Self {
        let (buried, healthy_dead_letters): (Vec<_>, Vec<_>) =
            letters.into_iter().partition(|letter| garbage.contains(&letter.id));
        let buried: BTreeSet<String> = buried.into_iter().map(|letter| letter.id).collect();
        let garbage_missing: Vec<String> = garbage.difference(&buried).cloned().collect();
        let clean = verdict.is_clean()
            && verdict.pending == 0
            && garbage_missing.is_empty()
            && healthy_dead_letters.is_empty()
            && failures.is_empty();
        Self {
            clean,
            plan,
            timeline,
            verdict,
            garbage: garbage.len(),
            garbage_missing,
            healthy_dead_letters,
            failures,
        }
    }

    /// Whether all promises were kept: nothing lost, nothing doubled, the queues drained, no
    /// healthy message among the dead letters and all garbage there, and no service that failed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.clean
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.verdict)?;
        if self.verdict.pending > 0 {
            writeln!(formatter, "NOT CLEAN: the queues do not drain.")?;
        }
        for letter in &self.healthy_dead_letters {
            writeln!(formatter, "NOT CLEAN: a healthy message is a dead letter: {letter}")?;
        }
        for id in &self.garbage_missing {
            writeln!(formatter, "NOT CLEAN: garbage that is no dead letter: {id}")?;
        }
        for failure in &self.failures {
            writeln!(formatter, "NOT CLEAN: {failure}")?;
        }
        let garbage = self.garbage;
        write!(formatter, "Of garbage there were {garbage}, and as many are dead letters.")?;
        if self.clean { write!(formatter, " All promises were kept.") } else { Ok(()) }
    }
}
