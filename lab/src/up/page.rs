//! The gateway, as a process of the lab's: the page that shows the flow, and the HTTP API.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use testkit::programs::Programs;
use tokio::time::{Instant, sleep};

use crate::replica::Replica;

/// How long the gateway may take to say where it listens, and how often to read its log.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Starts the gateway of the brokers at this address, on its usual port or a free one, and gives the address
/// where it listens. It may control the deployment: on this machine that is open to everyone anyway.
pub(super) async fn start(
    programs: &Programs,
    url: &str,
    copies: &str,
    directory: &Path,
) -> anyhow::Result<(SocketAddr, Replica)> {
    let settings = [("NATS_URL", url), ("REPLICAS", copies), ("CONTROL", "on")];
    let mut gateway = Replica::start(&programs.gateway, &[], "gateway", directory, settings)?;
    let process = &mut gateway.process;
    let until = Instant::now() + START_TIMEOUT;
    while Instant::now() < until && matches!(process.try_wait(), Ok(None)) {
        if let Some(addr) = process.logged_addr("gateway listens addr=") {
            return Ok((addr, gateway));
        }
        sleep(POLL).await;
    }
    bail!("the gateway does not say where it listens:\n{}", process.log_text())
}
