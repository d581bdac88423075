//! Checks whether a started broker answers.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::{ConnectOptions, ServerInfo, jetstream};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::process::Process;

const PAUSE: Duration = Duration::from_millis(10);

/// The time limit of one try. It is well below the limit of all, because the server may become ready meanwhile.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Repeats `look` until it succeeds, or until the process ends.
pub(super) async fn unless_ended<T, E: Display>(
    process: &mut Process,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    loop {
        let missing = match look().await {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        if let Some(status) = process.try_wait()? {
            bail!("it has ended ({status}), and {missing:#}");
        }
        sleep(PAUSE).await;
    }
}

/// Succeeds if a server on this port accepts clients and their messages.
pub(super) async fn answers(port: u16, jetstream: bool) -> anyhow::Result<()> {
    timeout(PROBE_LIMIT, async {
        let info = info(port).await?;
        // The server wants credentials, which only the test has. JetStream is ready as well, because the server listens
        // for clients only after that.
        if info.auth_required || info.tls_required {
            return Ok(());
        }
        let options = ConnectOptions::new().name("testkit: are you there?");
        let url = format!("nats://127.0.0.1:{port}");
        let client = options.connect(url).await.context("it refuses a client")?;
        if jetstream {
            let jetstream = jetstream::new(client);
            jetstream.query_account().await.context("its JetStream does not answer")?;
        } else {
            client.flush().await.context("it does not answer")?;
        }
        Ok(())
    })
    .await
    .context("it does not answer")?
}

/// The server's first message on a connection, which describes the server.
pub(super) async fn info(port: u16) -> anyhow::Result<ServerInfo> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    let mut reader = BufReader::new(stream.context("it takes no connections")?);
    let mut line = String::new();
    reader.read_line(&mut line).await.context("it breaks off")?;
    let info = line.strip_prefix("INFO ");
    ensure!(info.is_some(), "it says no INFO, but: {}", line.trim());
    serde_json::from_str(info.unwrap_or_default()).context("its INFO is not as it should be")
}
