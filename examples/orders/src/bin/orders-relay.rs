//! The relay of the order service. There may be several.

use anyhow::Context;
use orders::orders::TABLES;
use orders::relay::relay;
use orders::{OrderEvent, Program};
use workqueue::topology::Topology;
use workqueue::{Job, Service, above_zero, variable};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Some(program) = Program::start("orders.db", TABLES).await? else { return Ok(()) };
    let Program { settings, database, stop, .. } = &program;
    let interval = variable("POLL_INTERVAL").unwrap_or_else(|| "1s".to_owned());
    let interval = above_zero(&interval).map_err(anyhow::Error::msg).context("POLL_INTERVAL")?;
    let service = Service::new("relay").declares(&Topology::new(&[OrderEvent::QUEUE], &[]));
    let mut relayed = Ok(());
    let running = service.run_with(settings, stop, async |running| {
        let relaying = relay(database, &running.producer, interval);
        relayed = running.stopping.run_until_cancelled(relaying).await.unwrap_or(Ok(()));
        running.stopping.cancel();
    });
    running.await?;
    Ok(relayed?)
}
