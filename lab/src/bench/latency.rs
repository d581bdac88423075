//! The latency of a round trip, from the moment at which its request was due to its mark.
//!
//! The requestor makes requests by a schedule, and does not wait for answers. If the machine is too busy for the
//! schedule, the latency counts from the time at which the request was due, not from its publish. Otherwise the slowest
//! round trips would hide the delay of those behind them (coordinated omission). After a longer standstill the requestor
//! begins its schedule anew, and so does this measurement.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use contract::facts::Received;
use contract::queues::Request;
use hdrhistogram::Histogram;
use jiff::Timestamp;
use requestor::next_due;
use tokio::time::Instant;

use super::deployment::BenchDeployment;
use super::round::{Round, real, whole};
use crate::stored_facts::each_fact;

/// The time at the beginning that does not count: the services connect and warm up.
const WARM_UP: Duration = Duration::from_secs(1);

/// The share of full speed.
const SHARE: f64 = 0.6;

/// Measures the latency at a low load, and at a high one.
pub(super) async fn measure(
    round: &mut Round<'_>,
    round_trips_per_second: f64,
) -> anyhow::Result<()> {
    let (calm, busy) = (round.sizes.calm, round.sizes.busy);
    at(round, "100", 100.0, calm).await?;
    at(round, "busy", round_trips_per_second * SHARE, busy).await
}

/// Measures the latency at this rate, for the figures of this load.
async fn at(round: &mut Round<'_>, load: &str, rate: f64, time: Duration) -> anyhow::Result<()> {
    let total = whole(rate * (WARM_UP + time).as_secs_f64());
    let mut deployment = BenchDeployment::new(round, false).await?;
    deployment.start_generator(&[])?;
    deployment.ready(Instant::now()).await?;
    let (rate_text, total_text) = (rate.to_string(), total.to_string());
    deployment.start_requestor(&[("REQUEST_RATE", &rate_text), ("REQUEST_TOTAL", &total_text)])?;
    deployment.received(total, round).await?;
    let (mut ends, mut round_trips) = (HashMap::new(), Vec::new());
    let connection = &deployment.connection;
    // The time in the fact is from before its write, and this one is from when the broker has received it.
    // Both clocks are those of this machine.
    each_fact(connection, |fact: Received, stored_at| {
        ends.insert(fact.id, stored_at);
    })
    .await?;
    each_fact(connection, |fact: Request, _| {
        round_trips.extend(ends.get(&fact.id).map(|end| (fact.requested_at, *end)));
    })
    .await?;
    ensure!(
        round_trips.len() as u64 == total,
        "of {total} round trips {} are there",
        round_trips.len()
    );
    round_trips.sort_unstable();
    let times = latencies(&round_trips, Duration::from_secs_f64(1.0 / rate));
    let mut histogram: Histogram<u64> = Histogram::new(3).context("three digits are possible")?;
    for time in times.into_iter().skip(whole(rate * WARM_UP.as_secs_f64()).try_into()?) {
        let microseconds =
            u64::try_from(time.as_micros()).context("no round trip takes that long")?;
        histogram.record(microseconds).context("the histogram grows by itself")?;
    }
    for (name, quantile) in [("median", 0.5), ("p99", 0.99)] {
        let value = real(histogram.value_at_quantile(quantile)) / 1000.0;
        round.figures.add(&format!("latency_{load}_{name}"), value);
    }
    Ok(())
}

/// The latency of each of these round trips, from the time at which it was due. Each has the times of its request and of
/// its mark. They are in the order of their requests.
fn latencies(round_trips: &[(Timestamp, Timestamp)], interval: Duration) -> Vec<Duration> {
    // No request is early, so the request with the smallest delay shows when the schedule began.
    let begun = |(index, (asked, _)): (u32, &(Timestamp, Timestamp))| *asked - interval * index;
    let Some(start) = (0..).zip(round_trips).map(begun).min() else { return Vec::new() };
    let since_start = |time: Timestamp| time.duration_since(start).unsigned_abs();
    let mut due = Duration::ZERO;
    let took = |(asked, end): &(Timestamp, Timestamp)| {
        let took = since_start(*end).saturating_sub(due);
        due = next_due(due, since_start(*asked), interval);
        took
    };
    round_trips.iter().map(took).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(milliseconds: u32) -> Timestamp {
        Timestamp::UNIX_EPOCH + MS * (1000 + milliseconds)
    }

    #[test]
    fn late_request_counts_as_waiting_since_it_was_due() {
        // One request each 10 ms. The machine stood still from 10 to 40.
        let round_trips = [(0, 1), (40, 41), (41, 43), (42, 44), (43, 46), (50, 51)];
        let round_trips = round_trips.map(|(asked, end)| (at(asked), at(end)));
        let took = latencies(&round_trips, 10 * MS);
        assert_eq!(took, [1, 31, 23, 14, 6, 1].map(|milliseconds| milliseconds * MS));
    }

    #[test]
    fn schedule_begins_with_the_request_that_was_on_time() {
        // Only the first one came late.
        let round_trips = [(3, 4), (10, 11), (20, 21)].map(|(asked, end)| (at(asked), at(end)));
        assert_eq!(latencies(&round_trips, 10 * MS), [4 * MS, MS, MS]);
        assert!(latencies(&[], MS).is_empty());
    }

    #[test]
    fn standstill_does_not_count_for_later_requests() {
        // One request each 10 ms. The machine stood still from 10 to 300. The requestor makes up for the last 100 ms.
        let mut round_trips = vec![(0, 1), (300, 301)];
        round_trips.extend((0..10).map(|index| (301 + index, 311 + index)));
        round_trips.extend((0..5).map(|index| (310 + 10 * index, 311 + 10 * index)));
        let round_trips: Vec<_> =
            round_trips.into_iter().map(|(asked, end)| (at(asked), at(end))).collect();
        let took: Vec<_> = latencies(&round_trips, 10 * MS);
        assert_eq!(took[..2], [MS, 291 * MS]);
        assert_eq!(took[2], 101 * MS);
        assert_eq!(took[12..], [MS; 5]);
    }
}
