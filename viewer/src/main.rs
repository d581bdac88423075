//! The `viewer` program: reads its settings, starts its logs, and runs; or asks one that runs.

use anyhow::Error;
use clap::Parser;
use viewer::Settings;
use workqueue::Command;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    if settings.command == Some(Command::Healthcheck) {
        return Ok(workqueue::healthcheck(settings.admin_addr).await?);
    }
    workqueue::init_telemetry(&settings.telemetry).map_err(Error::msg)?;
    let stop = workqueue::stop_on_signals()?;
    Ok(viewer::run(settings, &stop).await?)
}
