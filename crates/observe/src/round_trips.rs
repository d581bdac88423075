//! The time of a round trip and of each of its stages, by the clocks of both services.

use std::collections::VecDeque;
use std::time::Duration;

use contract::facts::Received;
use contract::queues::Acknowledgment;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::snapshot::{Latency, Percentiles};

/// The time for which a round trip counts.
const WINDOW: Duration = Duration::from_secs(10);

/// The number of times: the whole, and the stages waited, made, stored, marked.
const PARTS: usize = 5;

/// The round trips that were measured last.
#[derive(Debug, Default)]
pub(crate) struct RoundTrips {
    /// When each was measured, and its times in milliseconds.
    measured: VecDeque<(Instant, [f64; PARTS])>,
}

impl RoundTrips {
    /// Records a round trip. A time may be negative, because the clocks of two services may differ.
    pub(crate) fn note(&mut self, stored: &Acknowledgment, mark: &Received) {
        let Acknowledgment { requested_at, started_at, generated_at, stored_at, .. } = *stored;
        // Responses of older generators lack this time.
        let started_at = started_at.unwrap_or(generated_at);
        self.note_times([requested_at, started_at, generated_at, stored_at, mark.received_at]);
    }

    fn note_times(&mut self, [asked, started, made, stored, marked]: [Timestamp; PARTS]) {
        let parts =
            [(asked, marked), (asked, started), (started, made), (made, stored), (stored, marked)];
        let took = parts.map(|(from, to)| to.duration_since(from).as_secs_f64() * 1000.0);
        self.measured.push_back((Instant::now(), took));
    }

    /// The times of the last round trips.
    pub(crate) fn latency(&mut self) -> Latency {
        while self.measured.front().is_some_and(|(at, _)| at.elapsed() > WINDOW) {
            self.measured.pop_front();
        }
        let whole = self.measured.iter().map(|(_, took)| took[0]);
        let negative = whole.filter(|took| *took < 0.0).count();
        let round_trips = self.measured.len();
        let [whole, waited, made, stored, marked] =
            std::array::from_fn(|part| self.percentiles(part));
        Latency { round_trips, negative, whole, waited, made, stored, marked }
    }

    fn percentiles(&self, part: usize) -> Percentiles {
        let mut sorted: Vec<f64> = self.measured.iter().map(|(_, took)| took[part]).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return Percentiles::default() };
        let at = |percent: usize| (sorted[last * percent / 100] * 10.0).round() / 10.0;
        Percentiles { median_ms: at(50), p99_ms: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    /// Records a round trip of this length: it waited for a tenth of it, was made in two tenths, stored in three, and
    /// marked in four.
    fn note(round_trips: &mut RoundTrips, milliseconds: i64) {
        let asked = Timestamp::UNIX_EPOCH;
        let after = |tenths| asked + SignedDuration::from_micros(milliseconds * 100 * tenths);
        round_trips.note_times([0, 1, 3, 6, 10].map(after));
    }

    #[tokio::test(start_paused = true)]
    async fn median_is_of_the_last_round_trips() {
        let mut round_trips = RoundTrips::default();
        assert_eq!(round_trips.latency(), Latency::default());
        for milliseconds in (0..=100).rev() {
            note(&mut round_trips, milliseconds);
        }
        note(&mut round_trips, -5);
        let latency = round_trips.latency();
        assert_eq!((latency.round_trips, latency.negative), (102, 1));
        assert!((49.0..=51.0).contains(&latency.whole.median_ms), "{latency:?}");
        assert!((98.0..=100.0).contains(&latency.whole.p99_ms), "{latency:?}");
        tokio::time::advance(WINDOW * 2).await;
        assert_eq!(round_trips.latency(), Latency::default());
    }

    #[tokio::test(start_paused = true)]
    async fn stages_add_up_to_the_whole() {
        let mut round_trips = RoundTrips::default();
        note(&mut round_trips, 100);
        let Latency { whole, waited, made, stored, marked, .. } = round_trips.latency();
        let medians = [whole, waited, made, stored, marked].map(|part| part.median_ms.round());
        let expected = [100.0, 10.0, 20.0, 30.0, 40.0];
        let agree = medians.iter().zip(expected).all(|(is, should)| (is - should).abs() < 0.5);
        assert!(agree, "{medians:?}");
    }
}
