//! Permits to start jobs: how many a replica asks for at a time, how many are granted, and how long they are valid.
//! Without input or output.
//!
//! All replicas of a service share one counter for each queue and second of the clock. A replica that asks for
//! permits adds their number to the counter, and gets the total. The part of its number within the limit is
//! granted. So no order of requests and answers grants more than the limit in a second, and a total beyond the limit
//! means that the second is used up.

use std::num::NonZeroU32;

use sha2::{Digest, Sha256};

use crate::queue::Queue;

/// The stream of the counters.
pub(crate) const STREAM: &str = "RATES";

/// The subjects of this stream.
pub(crate) const SUBJECTS: &str = "rates.>";

/// The counter of a queue for this second of the clock.
pub(crate) fn subject(queue: Queue, second: i64) -> String {
    format!("rates.{}.{second}", queue.stream)
}

/// The counter of a key for this second of the clock. A key may be any text, so its digest stands for it.
pub(crate) fn subject_of_key(queue: Queue, key: &str, second: i64) -> String {
    let digest = Sha256::digest(key);
    let (digest, _) = digest.split_first_chunk::<16>().expect("it has 32 bytes");
    format!("rates.{}.{:032x}-{second}", queue.stream, u128::from_be_bytes(*digest))
}

/// The number of seconds until the turn of a job whose request made the counter reach this total; 0 within the limit.
/// So jobs that are refused together do not return together.
pub(crate) fn turn(total: u64, limit: NonZeroU32) -> u64 {
    total.saturating_sub(1) / u64::from(limit.get())
}

/// The most permits that a replica asks for at a time, and the most jobs that it takes from the queue to wait for
/// one.
///
/// It is a fiftieth of the rate: enough that a request is worth its cost, and so few that little is lost when a
/// replica dies. But it is at least 25, so that five replicas with three lanes make at most one request for ten jobs
/// at a rate a little above 100: five leases, and for each replica one request that finds the second used up. Below
/// 100 it is a quarter of the rate, so that several replicas get a share.
pub(crate) fn size(limit: NonZeroU32) -> usize {
    let limit = usize::try_from(limit.get()).unwrap_or(usize::MAX);
    (limit / 50).max(limit.div_ceil(4).min(25))
}

/// Permits that are valid for one second of the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    second: i64,
    left: u64,
}

impl Lease {
    /// The part of the `asked` permits that is granted in this second, if they made the counter reach this total.
    pub(crate) fn granted(second: i64, asked: u64, total: u64, limit: NonZeroU32) -> Self {
        let before = total.saturating_sub(asked);
        Self { second, left: asked.min(u64::from(limit.get()).saturating_sub(before)) }
    }

    /// How many permits are left at this second.
    pub(crate) fn left(&self, now: i64) -> u64 {
        if self.second == now { self.left } else { 0 }
    }

    /// Adds permits of the same second, or replaces those of an earlier one.
    pub(crate) fn add(&mut self, other: Self) {
        if other.second == self.second {
            self.left += other.left;
        } else if other.left > 0 {
            *self = other;
        }
    }

    /// Spends a permit, if one is left.
    pub(crate) fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Takes back a permit that was spent in vain.
    pub(crate) fn take_back(&mut self) {
        self.left += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn limit(jobs: u32) -> NonZeroU32 {
        NonZeroU32::new(jobs).unwrap()
    }

    #[test]
    fn lease_size_is_worth_a_request_and_leaves_others_a_share() {
        let sizes = [1, 4, 10, 50, 100, 101, 1000, 2000, 50_000].map(|jobs| size(limit(jobs)));
        assert_eq!(sizes, [1, 1, 3, 13, 25, 25, 25, 40, 1000]);
    }

    #[test]
    fn five_replicas_ask_at_most_once_for_ten_jobs_above_100() {
        for jobs in (101..2000).chain([10_000, 1_000_000]) {
            // Of each size two fifths of a tenth are kept for the other lanes.
            let size = size(limit(jobs));
            let of_one_lane = u32::try_from(size - 2 * (size / 10)).unwrap();
            let questions = jobs.div_ceil(of_one_lane) + 4;
            assert!(questions * 10 <= jobs, "{questions} for {jobs}");
        }
    }

    #[test]
    fn refused_jobs_are_spread_over_the_next_seconds() {
        let turns: Vec<u64> = (1..=7).map(|total| turn(total, limit(2))).collect();
        assert_eq!(turns, [0, 0, 1, 1, 2, 2, 3]);
    }

    #[test]
    fn each_key_of_a_queue_has_a_counter_of_its_own() {
        let queue = Queue::new("CALLS", "calls");
        let of_key = |key| subject_of_key(queue, key, 7);
        assert_eq!(of_key("a.example.com"), of_key("a.example.com"));
        assert_ne!(of_key("a.example.com"), of_key("b.example.com"));
        let subject = of_key("> *.\r\n");
        let token = subject.strip_prefix("rates.CALLS.").unwrap();
        assert!(token.ends_with("-7") && !token.contains(['.', '*', '>', ' ', '\n']), "{subject}");
    }

    #[test]
    fn lease_ends_with_its_second() {
        let mut lease = Lease::granted(7, 2, 2, limit(10));
        assert_eq!((lease.left(6), lease.left(7), lease.left(8)), (0, 2, 0));
        lease.spend();
        lease.spend();
        lease.spend();
        assert_eq!(lease.left(7), 0);
    }

    #[test]
    fn leases_of_one_second_add_up() {
        let mut lease = Lease::granted(7, 2, 2, limit(10));
        lease.add(Lease::granted(7, 3, 5, limit(10)));
        lease.add(Lease::default());
        lease.add(Lease::granted(8, 3, 99, limit(10)));
        assert_eq!((lease.left(7), lease.left(8)), (5, 0));
        lease.add(Lease::granted(8, 3, 3, limit(10)));
        assert_eq!((lease.left(7), lease.left(8)), (0, 3));
    }

    #[test]
    fn permits_beyond_the_limit_are_not_granted() {
        for (asked, total, granted) in [(3, 3, 3), (3, 10, 3), (3, 11, 2), (3, 13, 0), (3, 99, 0)] {
            assert_eq!(Lease::granted(1, asked, total, limit(10)).left(1), granted, "{total}");
        }
    }

    /// What happens next in a deployment.
    #[derive(Clone, Debug)]
    enum Step {
        /// A replica asks. The broker counts at once, and the answer is under way.
        Ask(usize, u64),
        /// An answer comes, in whatever order.
        Answer(usize),
        /// A replica starts what it can.
        Start(usize, u64),
        /// An answer never comes.
        Lose(usize),
        /// A second passes.
        Tick,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..5_usize, 1..30_u64).prop_map(|(replica, asked)| Step::Ask(replica, asked)),
            4 => any::<usize>().prop_map(Step::Answer),
            4 => (0..5_usize, 1..30_u64).prop_map(|(replica, jobs)| Step::Start(replica, jobs)),
            1 => any::<usize>().prop_map(Step::Lose),
            1 => Just(Step::Tick),
        ];
        vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn no_second_exceeds_the_limit(most in 1..60_u32, steps in steps()) {
            let (mut now, mut counters) = (0_i64, BTreeMap::<i64, u64>::new());
            let mut answers = Vec::new();
            let mut leases = [Lease::default(); 5];
            let mut started = BTreeMap::<i64, u64>::new();
            for step in steps {
                match step {
                    Step::Ask(replica, asked) => {
                        let total = counters.entry(now).or_default();
                        *total += asked;
                        answers.push((replica, now, asked, *total));
                    }
                    Step::Answer(which) if !answers.is_empty() => {
                        let (replica, second, asked, total) =
                            answers.remove(which % answers.len());
                        leases[replica].add(Lease::granted(second, asked, total, limit(most)));
                    }
                    Step::Lose(which) if !answers.is_empty() => {
                        answers.remove(which % answers.len());
                    }
                    Step::Start(replica, jobs) => {
                        for _ in 0..jobs.min(leases[replica].left(now)) {
                            leases[replica].spend();
                            *started.entry(now).or_default() += 1;
                        }
                    }
                    Step::Tick => now += 1,
                    Step::Answer(_) | Step::Lose(_) => {}
                }
            }
            prop_assert!(started.values().all(|jobs| *jobs <= u64::from(most)), "{started:?}");
        }
    }
}
