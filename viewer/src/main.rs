//! The `viewer` program: reads its settings, starts its logs, and runs.

use anyhow::Error;
use clap::Parser;
use viewer::Settings;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    worker::init_telemetry(&settings.telemetry).map_err(Error::msg)?;
    let stop = worker::stop_on_signals()?;
    Ok(viewer::run(settings, &stop).await?)
}
