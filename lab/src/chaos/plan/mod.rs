//! The plan of the faults: made from a seed, or written by a person.

mod fault_target;
mod seeded;

pub use fault_target::{FaultTarget, Member};

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Error, ensure};
use jiff::fmt::serde::unsigned_duration::friendly::compact::required as friendly;
use serde::{Deserialize, Serialize};
use testkit::broker::Brokers;
use testkit::service::Service;

use crate::times::in_words;

/// A plan of faults, and the system for which it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The seed, unless a person has written the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The time in which requests are made.
    #[serde(rename = "for", with = "friendly")]
    pub duration: Duration,
    /// The numbers of replicas and brokers.
    pub cast: Cast,
    /// The faults, in the order of time.
    pub faults: Vec<Fault>,
}

/// The numbers of replicas and brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cast {
    /// Replicas of the requestor.
    pub requestors: u32,
    /// Replicas of the generator.
    pub generators: u32,
    /// Brokers: one, or a cluster.
    pub brokers: u16,
}

/// A fault, which ends after a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When it begins, counted from the beginning of the run.
    #[serde(with = "friendly")]
    pub at: Duration,
    /// How long it lasts.
    #[serde(rename = "for", with = "friendly", default, skip_serializing_if = "Duration::is_zero")]
    pub lasts: Duration,
    /// The action.
    #[serde(rename = "do")]
    pub action: Action,
    /// Its target.
    pub to: FaultTarget,
    /// The number of replicas to which a service is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
}

/// The action of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// SIGKILL, and a restart. For a replica or a broker, which keeps its store.
    Kill,
    /// SIGSTOP, and SIGCONT. For a replica; or for a queue, of which the broker delivers no message for a while.
    Pause,
    /// SIGTERM, and a restart. For a replica.
    Stop,
    /// Another number of replicas. For a service.
    Scale,
    /// The connections to the broker are closed, and so are new ones. For a replica.
    Cut,
    /// The connections stay open, and carry nothing. For a replica.
    Hang,
    /// The connections are slow. For a replica.
    Slow,
    /// The connections are closed, and new ones are accepted. For a replica.
    Reset,
    /// A message that no worker can handle. For a queue.
    Poison,
}

impl Plan {
    /// Parses a plan that a person has written, or that `--print-plan` has printed.
    ///
    /// # Errors
    ///
    /// If it is no plan, or if it contains an impossible fault.
    pub fn from_json(text: &str) -> anyhow::Result<Self> {
        let mut plan: Self = serde_json::from_str(text).context("this is not a plan")?;
        Brokers::count(&plan.cast.brokers.to_string()).map_err(Error::msg).context("brokers")?;
        for service in Service::ALL {
            ensure!(plan.cast.of(service) > 0, "the cast needs at least one {service}");
        }
        for (number, fault) in (1..).zip(&plan.faults) {
            plan.check(fault).with_context(|| format!("fault {number} ({fault})"))?;
        }
        plan.faults.sort_by_key(|fault| fault.at);
        Ok(plan)
    }

    fn check(&self, fault: &Fault) -> anyhow::Result<()> {
        let Fault { at, lasts, action, to, replicas } = fault;
        let fits = match action {
            Action::Kill => {
                matches!(
                    to,
                    FaultTarget::Replica(_) | FaultTarget::Broker(_) | FaultTarget::Leader(_)
                )
            }
            Action::Scale => matches!(to, FaultTarget::Service(_)),
            Action::Poison => matches!(to, FaultTarget::Queue(_)),
            Action::Pause => matches!(to, FaultTarget::Replica(_) | FaultTarget::Queue(_)),
            Action::Stop | Action::Cut | Action::Hang | Action::Slow | Action::Reset => {
                matches!(to, FaultTarget::Replica(_))
            }
        };
        ensure!(fits, "that cannot be done to {to}");
        ensure!(self.cast.has(*to), "there is no {to} in the cast");
        ensure!(
            replicas.is_some() == (*action == Action::Scale),
            "`scale` needs `replicas`, and no other action has them"
        );
        ensure!(action.lasts() || lasts.is_zero(), "this action has no duration (`for`)");
        let end = at.checked_add(*lasts).context("it never ends")?;
        ensure!(end <= self.duration, "it ends after the plan does");
        Ok(())
    }
}

impl Cast {
    /// The number of replicas of a service.
    #[must_use]
    pub fn of(self, service: Service) -> u32 {
        match service {
            Service::Requestor => self.requestors,
            Service::Generator => self.generators,
        }
    }

    /// All replicas of a service.
    pub fn members(self, service: Service) -> impl Iterator<Item = Member> {
        (1..=self.of(service)).map(move |number| Member { service, number })
    }

    fn has(self, target: FaultTarget) -> bool {
        match target {
            FaultTarget::Replica(member) => (1..=self.of(member.service)).contains(&member.number),
            FaultTarget::Broker(number) => (1..=self.brokers).contains(&number),
            FaultTarget::Service(_) | FaultTarget::Leader(_) | FaultTarget::Queue(_) => true,
        }
    }
}

impl Action {
    /// Whether it lasts, and has to be undone at its end.
    fn lasts(self) -> bool {
        !matches!(self, Self::Reset | Self::Poison)
    }
}

impl Fault {
    /// The words for its end. None if it is over at once.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        let to = self.to;
        match self.action {
            Action::Kill | Action::Stop => Some(format!("{to} is started again")),
            Action::Pause if matches!(to, FaultTarget::Queue(_)) => {
                Some(format!("{to} is resumed"))
            }
            Action::Pause => Some(format!("SIGCONT {to}")),
            Action::Scale => Some(format!("the {to} are as many as before")),
            Action::Cut | Action::Hang | Action::Slow => {
                Some(format!("{to}: the network is mended"))
            }
            Action::Reset | Action::Poison => None,
        }
    }
}

/// The words for its beginning.
impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.to;
        match self.action {
            Action::Kill => write!(formatter, "SIGKILL {to}"),
            Action::Pause if matches!(to, FaultTarget::Queue(_)) => {
                write!(formatter, "{to} is paused")
            }
            Action::Pause => write!(formatter, "SIGSTOP {to}"),
            Action::Stop => write!(formatter, "SIGTERM {to}"),
            Action::Scale => {
                write!(formatter, "the {to} are scaled to {}", self.replicas.unwrap_or_default())
            }
            Action::Cut => write!(formatter, "{to}: the network is cut"),
            Action::Hang => write!(formatter, "{to}: the network hangs"),
            Action::Slow => write!(formatter, "{to}: the network is slow"),
            Action::Reset => write!(formatter, "{to}: the connections are reset"),
            Action::Poison => write!(formatter, "garbage into {to}"),
        }?;
        if self.lasts.is_zero() {
            return Ok(());
        }
        let away = if matches!(self.action, Action::Kill | Action::Stop) { "away " } else { "" };
        write!(formatter, ", {away}for {}", in_words(self.lasts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = r#"{
        "for": "10s",
        "cast": {"requestors": 1, "generators": 2, "brokers": 1},
        "faults": [
            {"at": "2s", "do": "kill", "to": "leader of REQUESTS", "for": "500ms"},
            {"at": "1s 500ms", "do": "scale", "to": "generators", "replicas": 0, "for": "3s"},
            {"at": "3s", "do": "poison", "to": "RESPONSES"},
            {"at": "3s", "do": "pause", "to": "REQUESTS", "for": "1s"},
            {"at": "9s", "do": "hang", "to": "generator-2", "for": "1s"}
        ]
    }"#;

    #[test]
    fn hand_written_plan_is_followed_in_the_order_of_time() {
        let plan = Plan::from_json(PLAN).unwrap();
        let told: Vec<String> = plan.faults.iter().map(Fault::to_string).collect();
        assert_eq!(
            told,
            [
                "the generators are scaled to 0, for 3s",
                "SIGKILL leader of REQUESTS, away for 500ms",
                "garbage into RESPONSES",
                "REQUESTS is paused, for 1s",
                "generator-2: the network hangs, for 1s",
            ]
        );
        let printed = serde_json::to_string(&plan).unwrap();
        assert_eq!(Plan::from_json(&printed).unwrap(), plan);
    }

    #[test]
    fn plan_with_an_impossible_fault_is_refused_and_named() {
        for (wrong, reason) in [
            (r#"{"at": "1s", "do": "kill", "to": "REQUESTS"}"#, "cannot be done to REQUESTS"),
            (r#"{"at": "1s", "do": "pause", "to": "broker-1"}"#, "cannot be done to broker-1"),
            (r#"{"at": "1s", "do": "kill", "to": "generator-3"}"#, "no generator-3 in the cast"),
            (r#"{"at": "1s", "do": "kill", "to": "broker-2"}"#, "no broker-2 in the cast"),
            (r#"{"at": "1s", "do": "kill", "to": "leader of X"}"#, "there is no stream X"),
            (r#"{"at": "1s", "do": "kill", "to": "somebody"}"#, "somebody is no target"),
            (r#"{"at": "1s", "do": "scale", "to": "generators"}"#, "needs `replicas`"),
            (r#"{"at": "1s", "do": "reset", "to": "generator-1", "for": "1s"}"#, "no duration"),
            (r#"{"at": "9s", "do": "stop", "to": "generator-1", "for": "2s"}"#, "after the plan"),
            (r#"{"at": "1s", "do": "dance", "to": "generator-1"}"#, "unknown variant `dance`"),
        ] {
            let plan = format!(
                r#"{{"for": "10s", "cast": {{"requestors": 1, "generators": 2, "brokers": 1}},
                "faults": [{wrong}]}}"#
            );
            let error = format!("{:#}", Plan::from_json(&plan).unwrap_err());
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }
}
