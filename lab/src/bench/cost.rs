//! The cost of the two services: processor time for each round trip, memory, and both while idle.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::deployment::BenchDeployment;
use super::round::{Each, Round, milliseconds, real};

/// Records the cost of this many round trips.
pub(super) fn of_round_trips(round: &mut Round<'_>, processor: Each<Duration>) {
    let requests = round.sizes.requests;
    let per_round_trip = |time| microseconds_of_each(requests, time);
    let Each { broker, requestor, generator } = processor;
    round.figures.add("processor_broker", per_round_trip(broker));
    round.figures.add("processor_requestor", per_round_trip(requestor));
    round.figures.add("processor_generator", per_round_trip(generator));
    let share = (requestor + generator).as_secs_f64() / broker.as_secs_f64();
    round.figures.add("processor_share", share * 100.0);
}

/// The microseconds of this time for each of this many round trips.
pub(super) fn microseconds_of_each(round_trips: u64, time: Duration) -> f64 {
    time.as_secs_f64() * 1e6 / real(round_trips)
}

/// Records the largest memory of each process in the round so far.
pub(super) fn of_memory(round: &mut Round<'_>) {
    let Each { broker, requestor, generator } = round.peak;
    round.figures.add("memory_broker", megabytes_of(broker));
    round.figures.add("memory_requestor", megabytes_of(requestor));
    round.figures.add("memory_generator", megabytes_of(generator));
}

/// Measures the start, and idle services.
pub(super) async fn of_idleness(round: &mut Round<'_>) -> anyhow::Result<()> {
    let mut deployment = BenchDeployment::new(round, false).await?;
    // The first service on a broker declares the topology, so its start does not count.
    deployment.start_generator(&[])?;
    deployment.ready(Instant::now()).await?;
    let started = Instant::now();
    deployment.start_generator(&[])?;
    let generator = deployment.ready(started).await?;
    let started = Instant::now();
    deployment.start_requestor(&[("REQUEST_RATE", "0")])?;
    let requestor = deployment.ready(started).await?;
    round.figures.add("ready_generator", milliseconds(generator));
    round.figures.add("ready_requestor", milliseconds(requestor));
    deployment.note_usage();
    let before = deployment.processor;
    sleep(round.sizes.idle).await;
    deployment.note_usage();
    let after = deployment.processor;
    let (requestor, generator) = deployment.memory();
    round.figures.add("idle_memory_requestor", megabytes_of(requestor));
    round.figures.add("idle_memory_generator", megabytes_of(generator));
    let percent = |before: Duration, after: Duration, processes: f64| {
        after.saturating_sub(before).as_secs_f64() * 100.0
            / round.sizes.idle.as_secs_f64()
            / processes
    };
    let requestor = percent(before.requestor, after.requestor, 1.0);
    let generator = percent(before.generator, after.generator, 2.0);
    round.figures.add("idle_processor_requestor", requestor);
    round.figures.add("idle_processor_generator", generator);
    let programs = round.programs;
    for (name, program) in
        [("size_requestor", &programs.requestor), ("size_generator", &programs.generator)]
    {
        let metadata = fs::metadata(program);
        let metadata = metadata.with_context(|| format!("cannot look at {}", program.display()))?;
        round.figures.add(name, real(metadata.len()) / 1e6);
    }
    Ok(())
}

/// Converts from the system's kB, which has 1,024 bytes.
pub(super) fn megabytes_of(kilobytes: u64) -> f64 {
    real(kilobytes) * 1.024 / 1000.0
}
