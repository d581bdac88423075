//! The table of all systems, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::system::PeerSystem;
use crate::bench::figures::{Spread, with_commas};
use crate::bench::machine::Machine;
use crate::bench::report::table;
use crate::bench::round::real;

/// The heading of the part of BENCHMARKS.md with this table.
const HEADING: &str = "\n## Beside others\n";

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct PeersReport {
    /// The machine.
    pub machine: Machine,
    /// The version of Redis.
    pub redis: String,
    /// The number of undisturbed round trips of each system.
    pub round_trips: u64,
    /// The number of round trips with a generator that is killed.
    pub killed_round_trips: u64,
    /// Whether the run was a test, whose figures mean nothing.
    pub quick: bool,
    pub(super) systems: Vec<PeerFigures>,
}

/// The figures of a system, round by round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PeerFigures {
    pub(super) system: PeerSystem,
    pub(super) rounds: Vec<PeerRound>,
}

/// The figures of a system in one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PeerRound {
    pub(super) round_trips_per_second: f64,
    /// Processor time for each round trip, in µs.
    pub(super) broker: f64,
    pub(super) programs: f64,
    /// Round trips that were never marked, undisturbed and with a generator that was killed.
    pub(super) lost: u64,
    pub(super) lost_to_kill: u64,
    /// Marks beyond the first of a round trip, with a generator that was killed.
    pub(super) doubled: u64,
}

impl PeersReport {
    /// The part of BENCHMARKS.md.
    pub(super) fn part(&self) -> String {
        let Machine { cores, processor, broker, commit, at, .. } = &self.machine;
        format!(
            "{HEADING}\nWhat the last run of `cargo lab bench --peers --save` printed: {cores} cores, {processor}; {broker}; \
             commit {commit}; {at}.\n\n{self}\n"
        )
    }
}

impl PeerFigures {
    /// The row of a system, beside the rounds of this one.
    fn row(&self, ours: &[PeerRound]) -> [String; 8] {
        let of = |figure: fn(&PeerRound) -> f64| shown(self.rounds.iter().map(figure), 0);
        let pairs = ours.iter().zip(&self.rounds);
        [
            format!("{:?}", self.system),
            of(|round| round.round_trips_per_second),
            shown(
                pairs.map(|(ours, its)| ours.round_trips_per_second / its.round_trips_per_second),
                2,
            ),
            of(|round| round.broker),
            of(|round| round.programs),
            of(|round| real(round.lost)),
            of(|round| real(round.lost_to_kill)),
            of(|round| real(round.doubled)),
        ]
    }
}

fn shown(values: impl Iterator<Item = f64>, digits: usize) -> String {
    let spread = Spread::of(&values.collect::<Vec<_>>());
    spread.text(|value| with_commas(&format!("{value:.digits$}")))
}

/// The file of benchmarks, cut where the table of all systems begins.
pub(in crate::bench) fn parts(file: &str) -> (&str, &str) {
    file.split_at(file.find(HEADING).unwrap_or(file.len()))
}

impl fmt::Display for PeersReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (speed, ratio) = ("round trips a second", "ours, against it");
        let head = [
            "system",
            speed,
            ratio,
            "µs of its broker",
            "of its programs",
            "lost",
            "lost to a kill",
            "doubled by it",
        ];
        let ours = &self.systems[0].rounds;
        let rows: Vec<_> = self.systems.iter().map(|system| system.row(ours)).collect();
        let [round_trips, fewer, killed] = [
            self.round_trips,
            PeerSystem::Celery.round_trips(self.round_trips),
            self.killed_round_trips,
        ]
        .map(|round_trips| with_commas(&round_trips.to_string()));
        let apalis = include_str!("../../../peers/apalis/Cargo.toml").lines();
        let apalis = apalis.filter(|line| line.starts_with("apalis-redis")).collect::<String>();
        let celery = include_str!("../../../peers/celery/requirements.txt").lines().next();
        write!(
            formatter,
            "{}\n\
             Medians with their spread, rounds: {}; µs are processor time for each round trip. Undisturbed, each system does \
             {round_trips} round trips, and Celery {fewer}. For the last two columns it does {killed}, in the middle of which the \
             generator is killed, and started again at once. A round trip without a mark is lost once nothing has come for \
             60 s; all systems that deliver again do so after some 30 s, and for the tutorial, which does not, 5 s are \
             enough. Doubled are marks that were made again. Decoupled handles a message again as well, but its broker \
             refuses the second mark.\n\n\
             - Decoupled: `requestor` and `generator`, as they are. JetStream writes each message and fact to a file before it \
             confirms it, and syncs the file every 2 minutes: a broker that is killed loses no confirmed message.\n\
             - Apalis: `{apalis}`. Workers look for tasks every 25 ms and while they have some, take up to 100 at a time, \
             handle 200 at a time, and are given up 30 s after their last heartbeat.\n\
             - Celery: `{}`, prefork, with `acks_late`, 64 tasks prefetched for each process, a `visibility_timeout` of 30 s, \
             `unacked_restore_throttle` of 1, and no results.\n\
             - Both use {} with its own defaults. It keeps everything in memory, and writes a snapshot to disk: after a minute \
             with 10,000 changes, 5 minutes with 100, or an hour with one. If it is killed, it loses what came later.\n\
             - Tutorial: `examples/fire-and-forget`, plain publish and subscribe on nats-server. Nothing is ever on a disk, and a \
             client that cannot keep up drops messages.",
            table(&head, &rows),
            ours.len(),
            celery.unwrap_or_default(),
            self.redis,
        )?;
        if self.quick {
            write!(formatter, "\n\nThis was a quick run, whose figures mean nothing.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_compares_systems_round_by_round() {
        let rounds = |speeds: [f64; 3]| {
            let (broker, programs, lost, lost_to_kill, doubled) = (70.0, 1234.6, 0, 2, 3);
            let of = |round_trips_per_second| PeerRound {
                round_trips_per_second,
                broker,
                programs,
                lost,
                lost_to_kill,
                doubled,
            };
            speeds.map(of).to_vec()
        };
        let rounds_of_it = rounds([500.0, 1000.0, 2000.0]);
        let figures = PeerFigures { system: PeerSystem::Celery, rounds: rounds_of_it };
        let (speed, ratio) = ("1,000 (500 – 2,000)", "2.00 (1.00 – 3.00)");
        let wanted = ["Celery", speed, ratio, "70", "1,235", "0", "2", "3"].map(str::to_owned);
        assert_eq!(figures.row(&rounds([1000.0, 3000.0, 2000.0])), wanted);
    }

    #[test]
    fn saved_part_is_found_behind_the_other_one() {
        let part = format!("{HEADING}\ntable\n");
        let file = format!("# Benchmarks\n\nmedians\n{part}");
        assert_eq!(parts(&file), ("# Benchmarks\n\nmedians\n", part.as_str()));
        assert_eq!(parts("# Benchmarks\n"), ("# Benchmarks\n", ""));
    }
}
