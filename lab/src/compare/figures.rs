//! The figures of one pair.

use std::time::Duration;

use serde::Serialize;

use super::plan::Outage;

/// The time after which an answer is late.
pub(super) const AT_ONCE: Duration = Duration::from_secs(1);

/// One of the four designs of a requestor and a generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Design {
    /// A call over HTTP, with a time-out and retries.
    Coupled,
    /// The same with a circuit breaker.
    CoupledWithBreaker,
    /// Plain publish and subscribe.
    FireAndForget,
    /// This system.
    Queue,
}

impl Design {
    /// All designs, in the order of the report.
    pub const ALL: [Self; 4] =
        [Self::Coupled, Self::CoupledWithBreaker, Self::FireAndForget, Self::Queue];

    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coupled => "coupled",
            Self::CoupledWithBreaker => "coupled, breaker",
            Self::FireAndForget => "fire and forget",
            Self::Queue => "queue",
        }
    }

    /// The first word of the names of its two programs.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Coupled => "coupled",
            Self::CoupledWithBreaker => "breaker",
            Self::FireAndForget => "forgetful",
            Self::Queue => "queue",
        }
    }

    /// The outcome of an unanswered request in its output.
    #[must_use]
    pub fn failed(self) -> &'static str {
        match self {
            Self::Coupled | Self::CoupledWithBreaker => "failed",
            Self::FireAndForget | Self::Queue => "lost",
        }
    }
}

/// A request, as its caller observed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CallerView {
    /// When it was made, counted from the beginning.
    pub(super) at: Duration,
    /// The time for which its caller was blocked.
    pub(super) held: Duration,
    /// The time until the answer, if there was one.
    pub(super) answered: Option<Duration>,
}

/// The observations of a pair.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Its requests.
    pub(super) requests: Vec<CallerView>,
    /// The number of effects beyond the first one of each request.
    pub(super) doubled: usize,
}

/// The outcomes of the requests that were made in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Answered within a second.
    pub at_once: usize,
    /// Answered after that.
    pub late: usize,
    /// Never answered.
    pub failed: usize,
}

impl Second {
    /// The number of all requests.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.at_once + self.late + self.failed
    }

    fn note(&mut self, request: &CallerView) {
        *match request.answered {
            Some(after) if after <= AT_ONCE => &mut self.at_once,
            Some(_) => &mut self.late,
            None => &mut self.failed,
        } += 1;
    }
}

/// The figures of one pair. Those in milliseconds are absent if no request was answered, or none was made.
#[derive(Clone, Debug, Serialize)]
pub struct PairFigures {
    /// The pair.
    pub design: Design,
    /// The number of requests that it made.
    pub asked: usize,
    /// Their outcomes.
    #[serde(flatten)]
    pub total: Second,
    /// How often the effect of a request happened beyond the first time.
    pub doubled: usize,
    /// The longest time until an answer.
    pub longest_wait_ms: Option<f64>,
    /// The time for which a caller was blocked: the median.
    pub held_median_ms: Option<f64>,
    /// The same: the 99th percentile.
    pub held_p99_ms: Option<f64>,
    /// The time until an answer without an outage: the median.
    pub calm_median_ms: Option<f64>,
    /// The outcomes of the requests, by the second in which they were made.
    pub seconds: Vec<Second>,
}

impl PairFigures {
    /// The figures of these observations in this many seconds, with these outages.
    pub(super) fn new(design: Design, seen: &Seen, outages: &[Outage], seconds: usize) -> Self {
        let Seen { requests, doubled } = seen;
        let mut total = Second::default();
        let mut by_second = vec![Second::default(); seconds.max(1)];
        for request in requests {
            total.note(request);
            // A request that was due in the last second may have been made a moment later.
            let second = usize::try_from(request.at.as_secs()).unwrap_or(usize::MAX);
            by_second[second.min(seconds.max(1) - 1)].note(request);
        }
        let is_calm = |request: &&CallerView| !outages.iter().any(|it| it.has(request.at));
        let answered = requests.iter().filter_map(|it| it.answered);
        let held = sorted(requests.iter().map(|it| it.held));
        let calm = sorted(requests.iter().filter(is_calm).filter_map(|it| it.answered));
        Self {
            design,
            asked: requests.len(),
            total,
            doubled: *doubled,
            longest_wait_ms: answered.max().map(milliseconds),
            held_median_ms: quantile(&held, 50),
            held_p99_ms: quantile(&held, 99),
            calm_median_ms: quantile(&calm, 50),
            seconds: by_second,
        }
    }
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times
}

/// The smallest of these sorted times that this many percent of them do not exceed.
fn quantile(times: &[Duration], percent: usize) -> Option<f64> {
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied().map(milliseconds)
}

fn milliseconds(time: Duration) -> f64 {
    time.div_duration_f64(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::plan::OutageCause;

    const MS: Duration = Duration::from_millis(1);

    fn request(at: u32, answered: Option<u32>) -> CallerView {
        CallerView { at: MS * at, held: MS, answered: answered.map(|after| MS * after) }
    }

    #[test]
    fn request_is_counted_in_the_second_it_was_asked() {
        let requests = vec![
            request(0, Some(1000)),
            request(999, Some(1001)),
            request(1000, None),
            // Made a moment after the end.
            request(2001, Some(50)),
        ];
        let seen = Seen { requests, doubled: 3 };
        let figures = PairFigures::new(Design::Queue, &seen, &[], 2);
        let second = |at_once, late, failed| Second { at_once, late, failed };
        assert_eq!(figures.seconds, [second(1, 1, 0), second(1, 0, 1)]);
        assert_eq!((figures.total, figures.asked), (second(2, 1, 1), 4));
        assert_eq!((figures.doubled, figures.longest_wait_ms), (3, Some(1001.0)));
    }

    #[test]
    fn calm_is_outside_of_outages() {
        let outage = Outage { at: MS * 100, lasts: MS * 900, cause: OutageCause::Kill };
        let requests = vec![request(50, Some(5)), request(100, Some(900)), request(1000, Some(7))];
        let seen = Seen { requests, doubled: 0 };
        let figures = PairFigures::new(Design::Coupled, &seen, &[outage], 2);
        assert_eq!(figures.calm_median_ms, Some(5.0));
        let never = PairFigures::new(Design::Coupled, &Seen::default(), &[outage], 0);
        assert_eq!((never.calm_median_ms, never.longest_wait_ms, never.asked), (None, None, 0));
    }

    #[test]
    fn quantile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=200).map(|number| MS * number).collect();
        assert_eq!([50, 99, 100].map(|it| quantile(&times, it)), [100.0, 198.0, 200.0].map(Some));
        assert_eq!(quantile(&times[..1], 50), Some(1.0));
        assert_eq!(quantile(&[], 50), None);
    }
}
