//! `lab bench`: how many loops a second the services and a broker of their own make on this machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::Context;
use clap::Args;
use contract::facts::{self, Bucket, Fact, Received};
use contract::queues::Request;
use contract::topology;
use jiff::Timestamp;
use tokio::process::Command;
use tokio::time::sleep;
use worker::NatsSettings;

use crate::broker::{Broker, BrokerOptions};
use crate::process::Process;
use crate::programs::{self, Programs};
use observe::audit::audit;

/// How long the last acknowledgments may take.
const LAST_WAIT: Duration = Duration::from_mins(1);

/// How often the memory of the processes is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// Settings of `lab bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchSettings {
    /// How many requests to send around, as fast as they go
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER")]
    pub requests: u64,

    /// How many generators answer
    #[arg(long, default_value_t = 2, value_name = "NUMBER")]
    pub generators: u32,

    /// How many times to do that, each with a new broker
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// One round.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// From the first request to the last mark.
    loops_per_second: f64,
    /// The most memory that the requestor had, in kB.
    requestor: u64,
    /// The most memory that any generator had, in kB.
    generator: u64,
}

/// Measures, and prints each round and the medians.
///
/// # Errors
///
/// Where something cannot be built or started, or anything was lost or doubled.
pub async fn bench(settings: &BenchSettings) -> anyhow::Result<()> {
    let programs = programs::build().await?;
    println!("{:>6} {:>10} {:>14} {:>14}", "round", "loops/s", "requestor", "generator");
    let mut loops = Vec::new();
    for number in 1..=settings.rounds {
        let round = round(settings, &programs).await?;
        println!(
            "{number:>6} {:>10.0} {:>11} kB {:>11} kB",
            round.loops_per_second, round.requestor, round.generator
        );
        loops.push(round.loops_per_second);
    }
    loops.sort_by(f64::total_cmp);
    println!(
        "median {:.0} loops/s, from {:.0} to {:.0}",
        loops[loops.len() / 2],
        loops[0],
        loops[loops.len() - 1]
    );
    Ok(())
}

async fn round(settings: &BenchSettings, programs: &Programs) -> anyhow::Result<Round> {
    let broker = Broker::start(BrokerOptions::default()).await?;
    let directory = tempfile::tempdir().context("cannot create a directory for the logs")?;
    let start = |program: &Path, name: &str, settings: &[(&str, &str)]| {
        let mut command = Command::new(program);
        command.env("NATS_URL", broker.url()).env("RUST_LOG", "warn").envs(settings.to_vec());
        command.env("API_ADDR", "127.0.0.1:0");
        Process::spawn(command, directory.path().join(name))
    };
    let generators = (1..=settings.generators)
        .map(|number| start(&programs.generator, &format!("generator-{number}.log"), &[]))
        .collect::<Result<Vec<_>, _>>()?;
    let total = settings.requests.to_string();
    let asking = [("REQUEST_RATE", "max"), ("REQUEST_TOTAL", total.as_str())];
    let mut requestor = start(&programs.requestor, "requestor.log", &asking)?;
    let mut memory = (0, 0);
    let status = loop {
        if let Some(status) = requestor.try_wait()? {
            break status;
        }
        memory.0 = requestor.peak_memory().unwrap_or_default().max(memory.0);
        for generator in &generators {
            memory.1 = generator.peak_memory().unwrap_or_default().max(memory.1);
        }
        sleep(SAMPLE).await;
    };
    ensure!(status.success(), "the requestor failed:\n{}", requestor.log_text());
    let connection = crate::connect(&NatsSettings::at(broker.url()), "lab bench").await?;
    let nats = connection.context();
    let verdict = audit(nats, LAST_WAIT).await?;
    let complete = u64::try_from(verdict.complete).unwrap_or_default();
    ensure!(complete == settings.requests && verdict.is_clean(), "not clean:\n{verdict}");
    let (first, last) = (first_asked(nats).await?, last_marked(nats).await?);
    let seconds = last.duration_since(first).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "it is shown without fractions")]
    let loops_per_second = settings.requests as f64 / seconds;
    Ok(Round { loops_per_second, requestor: memory.0, generator: memory.1 })
}

async fn first_asked(nats: &Context) -> anyhow::Result<Timestamp> {
    let first = topology::bucket_state(nats, facts::REQUESTED).await?.state.first_sequence;
    let request: Request = at(nats, facts::REQUESTED, first).await?;
    Ok(request.requested_at)
}

async fn last_marked(nats: &Context) -> anyhow::Result<Timestamp> {
    let last = topology::bucket_state(nats, facts::RECEIVED).await?.state.last_sequence;
    let received: Received = at(nats, facts::RECEIVED, last).await?;
    Ok(received.received_at)
}

async fn at<F: Fact>(nats: &Context, bucket: Bucket, sequence: u64) -> anyhow::Result<F> {
    let stream = nats.get_stream_no_info(bucket.stream).await.context("cannot read the facts")?;
    let message = stream.get_raw_message(sequence).await.context("cannot read the facts")?;
    F::decode(&message.payload).context("what stands there is no fact")
}
