//! The report of a run.

use std::collections::BTreeSet;
use std::fmt;

use observe::audit::Verdict;
use serde::Serialize;
use workqueue::dead_letters::DeadLetter;

use super::plan::Plan;
use crate::event_log::LoggedEvent;

/// The most healthy messages among the dead letters that are named.
const NAMED: usize = 3;

/// The state of the broker at the end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// The verdict of the audit.
    pub verdict: Verdict,
    /// The number of all messages that are still in the queues.
    pub left_in_queues: u64,
    /// All dead letters.
    pub dead_letters: Vec<DeadLetter>,
}

/// The plan, its events, and the findings.
#[derive(Clone, Debug, Serialize)]
pub struct ChaosReport {
    /// Whether all guarantees held: nothing was lost or doubled, the queues have drained, the dead letters are exactly
    /// the garbage, and no service failed.
    pub clean: bool,
    /// The plan that was followed.
    pub plan: Plan,
    /// The events.
    pub timeline: Vec<LoggedEvent>,
    /// The findings at the end.
    #[serde(flatten)]
    pub outcome: Findings,
    /// The number of messages that were sent and that no worker can handle.
    pub garbage: usize,
    /// The broken guarantees, each as a sentence.
    pub failures: Vec<String>,
}

impl ChaosReport {
    /// Judges the findings. `garbage` has the ids of the messages that no worker can handle, and `failures` the earlier
    /// failures, such as a service that ended by itself.
    pub(super) fn new(
        plan: Plan,
        timeline: Vec<LoggedEvent>,
        outcome: Findings,
        garbage: &BTreeSet<String>,
        mut failures: Vec<String>,
    ) -> Self {
        let Findings { verdict, left_in_queues, dead_letters } = &outcome;
        if verdict.lost + verdict.doubled > 0 {
            let (lost, doubled) = (verdict.lost, verdict.doubled);
            failures.push(format!("requests lost: {lost}, doubled: {doubled}"));
        }
        failures.extend(verdict.cannot_tell.clone());
        if verdict.pending > 0 || *left_in_queues > 0 {
            failures.push(format!("the queues do not drain; messages left: {left_in_queues}"));
        }
        if verdict.requested == 0 || verdict.too_old > 0 {
            failures.push("no request was made, or some are too old to be judged".to_owned());
        }
        let healthy: Vec<&DeadLetter> =
            dead_letters.iter().filter(|letter| !garbage.contains(&letter.id)).collect();
        let named = healthy.iter().take(NAMED);
        failures
            .extend(named.map(|letter| format!("a healthy message is a dead letter: {letter}")));
        if healthy.len() > NAMED {
            let more = healthy.len() - NAMED;
            failures.push(format!("healthy messages that are dead letters, besides these: {more}"));
        }
        let dead: BTreeSet<&String> = dead_letters.iter().map(|letter| &letter.id).collect();
        let missing = garbage.iter().filter(|id| !dead.contains(id));
        failures.extend(missing.map(|id| format!("garbage that is no dead letter: {id}")));
        let (clean, garbage) = (failures.is_empty(), garbage.len());
        Self { clean, plan, timeline, outcome, garbage, failures }
    }
}

impl fmt::Display for ChaosReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.outcome.verdict)?;
        let letters = self.outcome.dead_letters.len();
        writeln!(formatter, "Messages of garbage: {}. Dead letters: {letters}.", self.garbage)?;
        for failure in &self.failures {
            writeln!(formatter, "NOT CLEAN: {failure}")?;
        }
        if self.clean {
            write!(formatter, "All guarantees held.")
        } else {
            write!(formatter, "Guarantees were broken.")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chaos::plan::Cast;

    fn judge(outcome: Findings, garbage: &[&str], failures: &[&str]) -> ChaosReport {
        let cast = Cast { requestors: 1, generators: 1, brokers: 1 };
        let plan = Plan::from_seed(1, Duration::from_secs(1), cast);
        let garbage = garbage.iter().map(ToString::to_string).collect();
        let failures = failures.iter().map(ToString::to_string).collect();
        ChaosReport::new(plan, Vec::new(), outcome, &garbage, failures)
    }

    fn verdict() -> Verdict {
        Verdict { requested: 10, complete: 10, ..Verdict::default() }
    }

    fn outcome() -> Findings {
        Findings { verdict: verdict(), ..Findings::default() }
    }

    fn letter(id: &str) -> DeadLetter {
        let mut letter = DeadLetter::default();
        id.clone_into(&mut letter.id);
        letter
    }

    #[test]
    fn garbage_among_the_dead_letters_breaks_no_guarantee() {
        let outcome = Findings { dead_letters: vec![letter("garbage")], ..outcome() };
        let report = judge(outcome, &["garbage"], &[]);
        assert!(report.clean, "{report}");
        assert!(report.to_string().ends_with("All guarantees held."), "{report}");
    }

    #[test]
    fn report_names_each_broken_guarantee() {
        let with = |verdict| Findings { verdict, ..outcome() };
        for (outcome, garbage, failures, sign) in [
            (with(Verdict { lost: 1, ..verdict() }), &[][..], &[][..], "requests lost: 1"),
            (with(Verdict { doubled: 1, ..verdict() }), &[], &[], "doubled: 1"),
            (with(Verdict { pending: 1, ..verdict() }), &[], &[], "do not drain"),
            (
                with(Verdict { cannot_tell: Some("a store was replaced".to_owned()), ..verdict() }),
                &[],
                &[],
                "NOT CLEAN: a store was replaced",
            ),
            (with(Verdict { too_old: 1, ..verdict() }), &[], &[], "to be judged"),
            (with(Verdict::default()), &[], &[], "no request was made"),
            (Findings { left_in_queues: 1, ..outcome() }, &[], &[], "messages left: 1"),
            (
                Findings { dead_letters: vec![letter("id")], ..outcome() },
                &[],
                &[],
                "a healthy message",
            ),
            (outcome(), &["garbage"], &[], "garbage that is no dead letter: garbage"),
            (outcome(), &[], &["a broker has ended"], "a broker has ended"),
        ] {
            let report = judge(outcome, garbage, failures);
            assert!(!report.clean, "{report}");
            assert!(report.to_string().contains(sign), "{sign}: {report}");
            assert!(report.to_string().ends_with("Guarantees were broken."), "{report}");
        }
    }
}
