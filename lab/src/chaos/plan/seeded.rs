//! The plan of a seed.

use std::time::Duration;

use contract::queues;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use testkit::service::Service;

use super::fault_target::streams;
use super::{Action, Cast, Fault, FaultTarget, Member, Plan};
use crate::times::whole_milliseconds;

/// The frequency of each action, relative to the others.
const WEIGHTS: [(Action, u32); 9] = [
    (Action::Kill, 7),
    (Action::Pause, 6),
    (Action::Stop, 3),
    (Action::Scale, 2),
    (Action::Cut, 2),
    (Action::Hang, 2),
    (Action::Slow, 2),
    (Action::Reset, 2),
    (Action::Poison, 2),
];

/// One kill in this many is that of a broker.
const BROKER: u32 = 3;

/// One fault in this many begins together with the previous one.
const TOGETHER: u32 = 5;

/// The undisturbed time at the beginning.
const CALM: Duration = Duration::from_secs(1);

/// The mean time between the beginnings of two faults.
const GAP: Duration = Duration::from_millis(1200);

/// The length of a fault: about 10 ms is as frequent as some seconds.
const LASTS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(6));

/// The time for which all brokers run between two kills. Only one is killed at a time, because a cluster of three does
/// not work with two brokers down.
const BROKERS_REST: Duration = Duration::from_secs(4);

/// A resource that only one fault may use at a time, because two faults would undo each other. A process may be paused
/// while its network is cut, because these are two resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Process(Member),
    Network(Member),
    Brokers,
    Consumers(workqueue::Queue),
}

impl Plan {
    /// The plan of a seed: always the same one for the same time and cast.
    #[must_use]
    pub fn from_seed(seed: u64, duration: Duration, cast: Cast) -> Self {
        Self { seed: Some(seed), duration, cast, faults: faults(seed, duration, cast) }
    }
}

fn faults(seed: u64, duration: Duration, cast: Cast) -> Vec<Fault> {
    // Unlike the standard generator, this one is the same in all versions and on all machines.
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = CALM;
    while at < duration {
        if let Some(fault) = fault(at, duration, cast, &faults, &mut random) {
            faults.push(fault);
        }
        if !random.random_ratio(1, TOGETHER) {
            // Independent events: the time between two is exponentially distributed.
            let share = -f64::ln(1.0 - random.random::<f64>());
            at += whole_milliseconds(GAP.mul_f64(share));
        }
    }
    faults
}

/// The next fault, unless all targets of the drawn action are busy.
fn fault(
    at: Duration,
    duration: Duration,
    cast: Cast,
    before: &[Fault],
    random: &mut Xoshiro256PlusPlus,
) -> Option<Fault> {
    let action = WEIGHTS.choose_weighted(random, |(_, weight)| *weight).ok()?.0;
    let lasts = if action.lasts() {
        // Uniform on a logarithmic scale.
        let scale = LASTS.1.div_duration_f64(LASTS.0);
        let lasts = LASTS.0.mul_f64(scale.powf(random.random::<f64>()));
        whole_milliseconds(lasts).min(duration.saturating_sub(at))
    } else {
        Duration::ZERO
    };
    let candidates = if action == Action::Kill && random.random_ratio(1, BROKER) {
        brokers(cast)
    } else {
        candidates(action, cast)
    };
    let fault = |to| Fault { at, lasts, action, to, replicas: None };
    let free: Vec<Fault> = candidates
        .into_iter()
        .map(fault)
        .filter(|fault| before.iter().all(|earlier| !collide(earlier, fault, cast)))
        .collect();
    let mut fault = free.choose(random)?.clone();
    if let FaultTarget::Service(service) = fault.to {
        // As often to zero as to a higher number.
        let more = cast.of(service) + random.random_range(1..=3);
        fault.replicas = Some(if random.random() { 0 } else { more });
    }
    Some(fault)
}

fn candidates(action: Action, cast: Cast) -> Vec<FaultTarget> {
    match action {
        Action::Scale => Service::ALL.map(FaultTarget::Service).to_vec(),
        Action::Poison => queues::ALL.map(FaultTarget::Queue).to_vec(),
        Action::Pause => replicas(cast).chain(queues::ALL.map(FaultTarget::Queue)).collect(),
        _ => replicas(cast).collect(),
    }
}

fn replicas(cast: Cast) -> impl Iterator<Item = FaultTarget> {
    let members = Service::ALL.into_iter().flat_map(move |service| cast.members(service));
    members.map(FaultTarget::Replica)
}

fn brokers(cast: Cast) -> Vec<FaultTarget> {
    if cast.brokers == 1 {
        return vec![FaultTarget::Broker(1)];
    }
    streams().map(FaultTarget::Leader).chain((1..=cast.brokers).map(FaultTarget::Broker)).collect()
}

/// Whether a fault begins while an earlier one uses the same resource.
fn collide(earlier: &Fault, fault: &Fault, cast: Cast) -> bool {
    let held = resources(earlier, cast);
    let shared = resources(fault, cast).into_iter().any(|resource| held.contains(&resource));
    let rest = if held.contains(&Resource::Brokers) { BROKERS_REST } else { Duration::ZERO };
    shared && fault.at <= earlier.at + earlier.lasts + rest
}

fn resources(fault: &Fault, cast: Cast) -> Vec<Resource> {
    match (fault.action, fault.to) {
        (
            Action::Cut | Action::Hang | Action::Slow | Action::Reset,
            FaultTarget::Replica(member),
        ) => {
            vec![Resource::Network(member)]
        }
        (_, FaultTarget::Replica(member)) => vec![Resource::Process(member)],
        (_, FaultTarget::Service(service)) => {
            cast.members(service).map(Resource::Process).collect()
        }
        (_, FaultTarget::Broker(_) | FaultTarget::Leader(_)) => vec![Resource::Brokers],
        (Action::Pause, FaultTarget::Queue(queue)) => vec![Resource::Consumers(queue)],
        (_, FaultTarget::Queue(_)) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::chaos::plan::Plan;

    const MINUTE: Duration = Duration::from_mins(1);
    const CAST: Cast = Cast { requestors: 2, generators: 2, brokers: 1 };

    #[test]
    fn same_seed_makes_the_same_plan_at_all_times() {
        let plan = Plan::from_seed(1, MINUTE, CAST);
        assert_eq!(plan, Plan::from_seed(1, MINUTE, CAST));
        assert_ne!(plan.faults, Plan::from_seed(2, MINUTE, CAST).faults);
        let first: Vec<String> =
            plan.faults.iter().take(4).map(|fault| format!("{:?} {fault}", fault.at)).collect();
        assert_eq!(
            first,
            [
                "1s requestor-1: the network is slow, for 1s 418ms",
                "1.245s the generators are scaled to 3, for 5s 567ms",
                "1.75s SIGKILL broker-1, away for 189ms",
                "2.518s garbage into RESPONSES",
            ]
        );
    }

    #[test]
    fn ten_minutes_apply_each_action_to_each_target() {
        for brokers in [1, 3] {
            let cast = Cast { brokers, ..CAST };
            let faults = faults(1, 10 * MINUTE, cast);
            let done: BTreeSet<(String, String)> = faults
                .iter()
                .map(|fault| (format!("{:?}", fault.action), fault.to.to_string()))
                .collect();
            let mut wanted = BTreeSet::new();
            for (action, _) in WEIGHTS {
                for to in candidates(action, cast) {
                    wanted.insert((format!("{action:?}"), to.to_string()));
                }
            }
            for to in super::brokers(cast) {
                wanted.insert(("Kill".to_owned(), to.to_string()));
            }
            let missing: Vec<_> = wanted.difference(&done).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }

    proptest! {
        #[test]
        fn every_plan_can_be_followed(seed: u64, seconds in 1..120_u64, cluster: bool) {
            let cast = Cast { brokers: if cluster { 3 } else { 1 }, ..CAST };
            let plan = Plan::from_seed(seed, Duration::from_secs(seconds), cast);
            let printed = serde_json::to_string(&plan).unwrap();
            prop_assert_eq!(Plan::from_json(&printed).unwrap(), plan);
        }

        #[test]
        fn no_two_brokers_are_down_at_a_time(seed: u64) {
            let cast = Cast { brokers: 3, ..CAST };
            let faults = faults(seed, MINUTE, cast);
            let kills: Vec<&Fault> = faults
                .iter()
                .filter(|fault| matches!(fault.to, FaultTarget::Broker(_) | FaultTarget::Leader(_)))
                .collect();
            for pair in kills.windows(2) {
                prop_assert!(pair[0].at + pair[0].lasts < pair[1].at);
            }
        }
    }
}
