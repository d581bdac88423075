//! How long the whole loop takes, from asking to marking, by the clocks of those who did it.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::Instant;

use crate::picture::Latency;

/// For how long a loop counts.
const WINDOW: Duration = Duration::from_secs(10);

/// The loops that were measured last.
#[derive(Debug, Default)]
pub(super) struct Loops {
    /// When each was measured, and how many milliseconds it took.
    measured: VecDeque<(Instant, f64)>,
}

impl Loops {
    /// Notes a loop. Two clocks may differ by more than it took.
    pub(super) fn note(&mut self, took: SignedDuration) {
        self.measured.push_back((Instant::now(), took.as_secs_f64() * 1000.0));
    }

    /// What the loops of the last seconds took.
    pub(super) fn latency(&mut self) -> Latency {
        while self.measured.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            self.measured.pop_front();
        }
        let mut sorted: Vec<f64> = self.measured.iter().map(|(_, took)| *took).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return Latency::default() };
        let at = |percent: usize| (sorted[last * percent / 100] * 10.0).round() / 10.0;
        let backwards = sorted.iter().filter(|took| **took < 0.0).count();
        Latency { loops: sorted.len(), backwards, median_ms: at(50), p99_ms: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn half_of_the_loops_take_no_longer_than_the_median_and_old_ones_do_not_count() {
        let mut loops = Loops::default();
        assert_eq!(loops.latency(), Latency::default());
        for milliseconds in (0..=100).rev() {
            loops.note(SignedDuration::from_millis(milliseconds));
        }
        loops.note(SignedDuration::from_millis(-5));
        let latency = loops.latency();
        assert_eq!((latency.loops, latency.backwards), (102, 1));
        assert!((49.0..=51.0).contains(&latency.median_ms), "{latency:?}");
        assert!((98.0..=100.0).contains(&latency.p99_ms), "{latency:?}");
        tokio::time::advance(WINDOW * 2).await;
        assert_eq!(loops.latency(), Latency::default());
    }
}
