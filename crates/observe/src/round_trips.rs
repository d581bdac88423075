//! How long a request takes from asking to marking, by the clocks of both sides.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::Instant;

use crate::snapshot::Latency;

/// For how long a round trip counts.
const WINDOW: Duration = Duration::from_secs(10);

/// The round trips that were measured last.
#[derive(Debug, Default)]
pub(crate) struct RoundTrips {
    /// When each was measured, and how many milliseconds it took.
    measured: VecDeque<(Instant, f64)>,
}

impl RoundTrips {
    /// Notes a round trip. Two clocks may differ by more than it took.
    pub(crate) fn note(&mut self, took: SignedDuration) {
        self.measured.push_back((Instant::now(), took.as_secs_f64() * 1000.0));
    }

    /// How long those of the last seconds took.
    pub(crate) fn latency(&mut self) -> Latency {
        while self.measured.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            self.measured.pop_front();
        }
        let mut sorted: Vec<f64> = self.measured.iter().map(|(_, took)| *took).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return Latency::default() };
        let at = |percent: usize| (sorted[last * percent / 100] * 10.0).round() / 10.0;
        let backwards = sorted.iter().filter(|took| **took < 0.0).count();
        Latency { round_trips: sorted.len(), backwards, median_ms: at(50), p99_ms: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_median_is_of_the_last_round_trips() {
        let mut round_trips = RoundTrips::default();
        assert_eq!(round_trips.latency(), Latency::default());
        for milliseconds in (0..=100).rev() {
            round_trips.note(SignedDuration::from_millis(milliseconds));
        }
        round_trips.note(SignedDuration::from_millis(-5));
        let latency = round_trips.latency();
        assert_eq!((latency.round_trips, latency.backwards), (102, 1));
        assert!((49.0..=51.0).contains(&latency.median_ms), "{latency:?}");
        assert!((98.0..=100.0).contains(&latency.p99_ms), "{latency:?}");
        tokio::time::advance(WINDOW * 2).await;
        assert_eq!(round_trips.latency(), Latency::default());
    }
}
