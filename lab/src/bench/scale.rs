//! The growth with waiting requests, with facts, with replicas, with browsers and with brokers.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use testkit::process::Process;
use testkit::usage;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::cost::{megabytes_of, microseconds_of_each};
use super::deployment::{BenchDeployment, ready};
use super::growth;
use super::round::{Each, Round, milliseconds};
use super::saturation::{self, Load, Run};

/// The interval at which a program that ends by itself is polled.
const POLL: Duration = Duration::from_millis(2);

/// Requests a second while browsers show the page.
const RATE: &str = "100";

/// Measures all curves.
pub(super) async fn measure(round: &mut Round<'_>) -> anyhow::Result<()> {
    for amount in round.sizes.amounts {
        requests_and_facts(round, *amount).await?;
    }
    for &replicas in round.sizes.replicas {
        let load =
            Load { requestors: replicas, generators: replicas, ..Load::of(round.sizes.requests) };
        round_trips(round, load, ("replicas of each service", replicas.into())).await?;
    }
    for browsers in round.sizes.browsers {
        pages(round, *browsers).await?;
    }
    for brokers in [1, 3] {
        let load = Load { brokers, ..Load::of(round.sizes.requests / 2) };
        round_trips(round, load, ("brokers", brokers.into())).await?;
    }
    Ok(())
}

/// Measures round trips at full speed, and the cost of each.
async fn round_trips(
    round: &mut Round<'_>,
    load: Load,
    along: (&'static str, u64),
) -> anyhow::Result<()> {
    let Run { round_trips_per_second, processor } = saturation::run(round, load).await?;
    round.curves.add(along, "round trips", "/s", round_trips_per_second);
    let Each { broker, requestor, generator } = processor;
    let mut cost = |title, time| {
        round.curves.add(along, title, "µs", microseconds_of_each(load.requests, time));
    };
    cost("processor time of the brokers for each", broker);
    cost("of the requestors", requestor);
    cost("of the generators", generator);
    Ok(())
}

/// Measures with this many requests that wait, and then with as many that are complete.
async fn requests_and_facts(round: &mut Round<'_>, amount: u64) -> anyhow::Result<()> {
    let mut deployment = growth::backlog(round, amount).await?;
    programs(round, &mut deployment, ("requests waiting", amount)).await?;
    deployment.received(amount, round).await?;
    deployment.stop().await?;
    programs(round, &mut deployment, ("requests done", amount)).await
}

/// Measures the time of each program to start, that of the audit, and their memory. The services continue to run.
async fn programs(
    round: &mut Round<'_>,
    deployment: &mut BenchDeployment,
    along: (&'static str, u64),
) -> anyhow::Result<()> {
    let programs = round.programs;
    let started = Instant::now();
    let (gateway, addr) = gateway(round, deployment).await?;
    round.curves.add(along, "gateway ready", "ms", milliseconds(started.elapsed()));
    let started = Instant::now();
    first_update(addr).await?;
    round.curves.add(along, "first update of the page", "ms", milliseconds(started.elapsed()));
    let started = Instant::now();
    let mut audit =
        deployment.spawn(&programs.decoupled, &["audit", "--json"], &[("RUST_LOG", "error")])?;
    let mut audit_memory = 0;
    while audit.try_wait()?.is_none() {
        audit_memory = usage::peak_memory(audit.id()).unwrap_or_default().max(audit_memory);
        sleep(POLL).await;
    }
    round.curves.add(along, "audit", "s", started.elapsed().as_secs_f64());
    let verdict = audit.log_text();
    let verdict: Value = serde_json::from_str(&verdict).with_context(|| verdict.clone())?;
    ensure!(verdict["requested"] == along.1 && verdict["lost"] == 0, "{verdict}");
    let mut memory =
        |title, kilobytes| round.curves.add(along, title, "MB", megabytes_of(kilobytes));
    memory("broker", deployment.broker_memory());
    memory("gateway", usage::peak_memory(gateway.id()).unwrap_or_default());
    memory("audit", audit_memory);
    drop(gateway);
    // Last, because the generator takes requests from its start on.
    let started = Instant::now();
    deployment.start_requestor(&[("REQUEST_RATE", "0")])?;
    round.curves.add(
        along,
        "requestor ready",
        "ms",
        milliseconds(deployment.ready(started).await?),
    );
    let started = Instant::now();
    deployment.start_generator(&[])?;
    round.curves.add(
        along,
        "generator ready",
        "ms",
        milliseconds(deployment.ready(started).await?),
    );
    Ok(())
}

/// The usage of the gateway while this many browsers show its page.
async fn pages(round: &mut Round<'_>, browsers: u64) -> anyhow::Result<()> {
    let mut deployment = BenchDeployment::new(round, false).await?;
    deployment.start_generator(&[])?;
    deployment.start_requestor(&[("REQUEST_RATE", RATE)])?;
    deployment.ready(Instant::now()).await?;
    let (gateway, addr) = gateway(round, &deployment).await?;
    let mut tabs = JoinSet::new();
    for _ in 0..browsers {
        let mut connection = follow(addr).await?;
        tabs.spawn(async move { copy(&mut connection, &mut sink()).await });
    }
    let used = || usage::processor_time(gateway.id()).context("the gateway has ended");
    let before = used()?;
    sleep(round.sizes.idle).await;
    let share = used()?.saturating_sub(before).div_duration_f64(round.sizes.idle) * 100.0;
    ensure!(tabs.try_join_next().is_none(), "a browser lost its connection");
    let along = ("browsers", browsers);
    round.curves.add(along, "processor time of the gateway", "%", share);
    let memory = usage::peak_memory(gateway.id()).unwrap_or_default();
    round.curves.add(along, "memory of the gateway", "MB", megabytes_of(memory));
    Ok(())
}

async fn gateway(
    round: &Round<'_>,
    deployment: &BenchDeployment,
) -> anyhow::Result<(Process, SocketAddr)> {
    let settings = [("GATEWAY_ADDR", "127.0.0.1:0")];
    let mut gateway = deployment.spawn(&round.programs.gateway, &[], &settings)?;
    ready(&mut gateway).await?;
    let addr = gateway.logged_addr("gateway listens addr=");
    Ok((gateway, addr.context("the gateway does not say where it listens")?))
}

/// Reads the updates of the page, as a browser does.
async fn follow(addr: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut connection = TcpStream::connect(addr).await.context("cannot reach the gateway")?;
    let request = format!("GET /api/events HTTP/1.1\r\nHost: {addr}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.context("cannot ask the gateway")?;
    Ok(connection)
}

async fn first_update(addr: SocketAddr) -> anyhow::Result<()> {
    let mut connection = follow(addr).await?;
    let mut events = Vec::new();
    while !String::from_utf8_lossy(&events).contains("event: snapshot") {
        let read = connection.read_buf(&mut events).await.context("cannot read an update")?;
        ensure!(read > 0, "the gateway ended the updates");
    }
    Ok(())
}
