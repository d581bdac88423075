//! What the two sides cost: processor time for each loop, memory, and what they need when there is nothing
//! to do.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::deployment::{self, Deployment, Each};
use super::figures::{Known, Target};
use super::{Round, real};

const PROCESSOR: Each<Known> = Each {
    broker: microseconds("processor_broker", "processor time of the broker for a loop"),
    requestor: microseconds("processor_requestor", "processor time of the requestor for a loop"),
    generator: microseconds("processor_generator", "processor time of the generator for a loop"),
};

const PROCESSOR_SHARE: Known =
    Known::percent("processor_share", "processor time of both services, against the broker's")
        .with(Target::AtMost(45.0));

const PEAK: Each<Known> = Each {
    broker: megabytes("memory_broker", "memory of the broker, the most", None),
    requestor: megabytes("memory_requestor", "memory of the requestor, the most", MOST_AT_WORK),
    generator: megabytes("memory_generator", "memory of the generator, the most", MOST_AT_WORK),
};

const IDLE: [Known; 2] = [
    megabytes("idle_memory_requestor", "memory of an idle requestor", MOST_IDLE),
    megabytes("idle_memory_generator", "memory of an idle generator", MOST_IDLE),
];

const MOST_AT_WORK: Option<Target> = Some(Target::AtMost(20.0));
const MOST_IDLE: Option<Target> = Some(Target::AtMost(10.0));

const IDLE_PROCESSOR: [Known; 2] = [
    idle("idle_processor_requestor", "processor time of an idle requestor"),
    idle("idle_processor_generator", "processor time of an idle generator"),
];

const READY: [Known; 2] = [
    ready("ready_generator", "a generator is ready after"),
    ready("ready_requestor", "a requestor is ready after"),
];

const SIZE: [Known; 2] = [
    megabytes("size_requestor", "program of the requestor", MOST_IDLE),
    megabytes("size_generator", "program of the generator", MOST_IDLE),
];

const fn microseconds(name: &'static str, title: &'static str) -> Known {
    Known { name, title, unit: "µs", digits: 1, target: None }
}

const fn megabytes(name: &'static str, title: &'static str, target: Option<Target>) -> Known {
    Known { name, title, unit: "MB", digits: 1, target }
}

/// What `ps` and `top` show as nothing: less than a thousandth of a processor.
const fn idle(name: &'static str, title: &'static str) -> Known {
    Known { name, title, unit: "%", digits: 2, target: Some(Target::AtMost(0.1)) }
}

const fn ready(name: &'static str, title: &'static str) -> Known {
    Known { name, title, unit: "ms", digits: 0, target: Some(Target::AtMost(100.0)) }
}

/// Notes what that many loops have cost.
pub(super) fn of_loops(round: &mut Round<'_>, processor: Each<Duration>) {
    let loops = real(round.sizes.requests);
    let per_loop = |time: Duration| time.as_secs_f64() * 1e6 / loops;
    let Each { broker, requestor, generator } = processor;
    round.figures.add(&PROCESSOR.broker, per_loop(broker));
    round.figures.add(&PROCESSOR.requestor, per_loop(requestor));
    round.figures.add(&PROCESSOR.generator, per_loop(generator));
    let share = (requestor + generator).as_secs_f64() / broker.as_secs_f64();
    round.figures.add(&PROCESSOR_SHARE, share * 100.0);
}

/// Notes the most memory that each had in any part of the round so far.
pub(super) fn of_memory(round: &mut Round<'_>) {
    let peak = round.peak;
    round.figures.add(&PEAK.broker, megabytes_of(peak.broker));
    round.figures.add(&PEAK.requestor, megabytes_of(peak.requestor));
    round.figures.add(&PEAK.generator, megabytes_of(peak.generator));
}

/// Measures starting, and doing nothing.
pub(super) async fn of_idleness(round: &mut Round<'_>) -> anyhow::Result<()> {
    let mut deployment = Deployment::new(round, false).await?;
    // Whoever is the first on a broker declares what is on it, and is not counted.
    deployment.start_generator()?;
    deployment.ready(Instant::now()).await?;
    let started = Instant::now();
    deployment.start_generator()?;
    let generator = deployment.ready(started).await?;
    let started = Instant::now();
    deployment.start_requestor(&[("REQUEST_RATE", "0")])?;
    let requestor = deployment.ready(started).await?;
    for (known, time) in READY.iter().zip([generator, requestor]) {
        round.figures.add(known, time.as_secs_f64() * 1000.0);
    }
    deployment.note_usage();
    let before = deployment.processor();
    sleep(round.sizes.idle).await;
    deployment.note_usage();
    let after = deployment.processor();
    let (requestor, generator) = deployment.memory();
    round.figures.add(&IDLE[0], megabytes_of(requestor));
    round.figures.add(&IDLE[1], megabytes_of(generator));
    let percent = |before: Duration, after: Duration, processes: f64| {
        after.saturating_sub(before).as_secs_f64() * 100.0
            / round.sizes.idle.as_secs_f64()
            / processes
    };
    let requestor = percent(before.requestor, after.requestor, 1.0);
    let generator = percent(before.generator, after.generator, 2.0);
    round.figures.add(&IDLE_PROCESSOR[0], requestor);
    round.figures.add(&IDLE_PROCESSOR[1], generator);
    for (known, program) in SIZE.iter().zip([&round.programs.requestor, &round.programs.generator])
    {
        round.figures.add(known, real(deployment::size(program)?) / 1e6);
    }
    Ok(())
}

/// From what the system calls kB, which has 1,024 bytes.
fn megabytes_of(kilobytes: u64) -> f64 {
    real(kilobytes) * 1.024 / 1000.0
}
