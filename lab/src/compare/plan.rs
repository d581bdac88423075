//! The outages of the generators, from a seed.

use std::fmt;
use std::time::Duration;

use crate::times::in_words;
use jiff::fmt::serde::unsigned_duration::friendly::compact::required as friendly;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// The length of a round of outages. A longer run has several rounds.
const ROUND: Duration = Duration::from_mins(1);

/// The lengths of the outages, in thousandths of a round: in a minute about two, five and fifteen seconds.
const SHORT: (u64, u64) = (30, 50);
const PAUSE: (u64, u64) = (70, 90);
const LONG: (u64, u64) = (220, 270);

/// The time without an outage at the beginning of a round, and at its end.
const CALM: (u64, u64) = (80, 120);

/// A time in which no generator works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// When it begins, counted from the beginning.
    #[serde(with = "friendly")]
    pub at: Duration,
    /// How long it lasts.
    #[serde(rename = "for", with = "friendly")]
    pub lasts: Duration,
    /// Its kind.
    #[serde(rename = "do")]
    pub cause: OutageCause,
}

/// The kind of an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutageCause {
    /// SIGKILL, and a restart: callers are refused.
    Kill,
    /// SIGSTOP, and SIGCONT: callers wait.
    Pause,
}

impl Outage {
    /// Whether it is going on at this time.
    #[must_use]
    pub fn has(&self, time: Duration) -> bool {
        (self.at..self.at + self.lasts).contains(&time)
    }

    /// The words for its end.
    #[must_use]
    pub fn end(&self) -> &'static str {
        match self.cause {
            OutageCause::Kill => "the generators are started again",
            OutageCause::Pause => "SIGCONT to the generators",
        }
    }
}

/// The words for its beginning.
impl fmt::Display for Outage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signal = match self.cause {
            OutageCause::Kill => "SIGKILL",
            OutageCause::Pause => "SIGSTOP",
        };
        write!(formatter, "{signal} to the generators, for {}", in_words(self.lasts))
    }
}

/// The outages of a seed, always the same ones for the same time: in each minute a long one, two or three short ones,
/// and a pause. There is time without an outage before each of them, and at the end. A shorter run has shorter ones.
#[must_use]
pub fn outages(seed: u64, duration: Duration) -> Vec<Outage> {
    // Unlike the standard generator, this one is the same in all versions and on all machines.
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let rounds = u32::try_from(duration.as_secs() / ROUND.as_secs()).unwrap_or(u32::MAX).max(1);
    let length = duration / rounds;
    (0..rounds).flat_map(|number| round(length * number, length, &mut random)).collect()
}

fn round(begins: Duration, length: Duration, random: &mut Xoshiro256PlusPlus) -> Vec<Outage> {
    let short = (OutageCause::Kill, SHORT);
    let mut kinds = vec![short, short, (OutageCause::Pause, PAUSE), (OutageCause::Kill, LONG)];
    if random.random() {
        kinds.push(short);
    }
    kinds.shuffle(random);
    let lengths: Vec<u64> =
        kinds.iter().map(|(_, (least, most))| random.random_range(*least..=*most)).collect();
    // The rest of the time is split among the times before them. None has less than a third of another.
    let left = 1000 - CALM.0 - CALM.1 - lengths.iter().sum::<u64>();
    let weights: Vec<u64> = kinds.iter().map(|_| random.random_range(50..=150)).collect();
    let all: u64 = weights.iter().sum();
    let mut share = CALM.0;
    let mut outages = Vec::new();
    for (((cause, _), lasts), weight) in kinds.into_iter().zip(lengths).zip(weights) {
        share += left * weight / all;
        let at = begins + thousandths(length, share);
        outages.push(Outage { at, lasts: thousandths(length, lasts), cause });
        share += lasts;
    }
    outages
}

/// The time, rounded to whole milliseconds.
fn thousandths(length: Duration, share: u64) -> Duration {
    let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(length.saturating_mul(share) / 1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn same_seed_makes_the_same_outages_at_all_times() {
        let minute = outages(1, ROUND);
        assert_eq!(minute, outages(1, ROUND));
        assert_ne!(minute, outages(2, ROUND));
        let told: Vec<String> = minute.iter().map(|it| format!("{:?} {it}", it.at)).collect();
        assert_eq!(
            told,
            [
                "9.54s SIGSTOP to the generators, for 4s 320ms",
                "16.56s SIGKILL to the generators, for 2s 700ms",
                "22.2s SIGKILL to the generators, for 1s 980ms",
                "30.78s SIGKILL to the generators, for 15s",
                "49.68s SIGKILL to the generators, for 3s",
            ]
        );
    }

    proptest! {
        #[test]
        fn each_minute_has_each_kind_and_calm_between(seed: u64, seconds in 1..600_u64) {
            let duration = Duration::from_secs(seconds);
            let outages = outages(seed, duration);
            let rounds = usize::try_from(seconds / 60).unwrap().max(1);
            let length = duration / u32::try_from(rounds).unwrap();
            let pauses = outages.iter().filter(|it| it.cause == OutageCause::Pause).count();
            prop_assert_eq!(pauses, rounds);
            prop_assert!((4 * rounds..=5 * rounds).contains(&outages.len()));
            let longest = outages.iter().map(|it| it.lasts).max().unwrap();
            prop_assert!(longest >= length / 5);
            let mut calm_since = Duration::ZERO;
            for outage in outages {
                prop_assert!(outage.at > calm_since && !outage.lasts.is_zero());
                prop_assert!(outage.has(outage.at) && !outage.has(outage.at + outage.lasts));
                calm_since = outage.at + outage.lasts;
            }
            prop_assert!(calm_since + length / 10 <= duration);
        }
    }
}
