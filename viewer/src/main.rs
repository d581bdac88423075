//! The `viewer` program: reads its settings, starts its logs, and runs; or asks one that runs.

use anyhow::Error;
use clap::Parser;
use viewer::Settings;
use worker::Command;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    if settings.command == Some(Command::Healthcheck) {
        return Ok(worker::healthcheck(settings.admin_addr).await?);
    }
    worker::init_telemetry(&settings.telemetry).map_err(Error::msg)?;
    let stop = worker::stop_on_signals()?;
    Ok(viewer::run(settings, &stop).await?)
}
