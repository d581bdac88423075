//! The `requestor` program: reads its settings, starts its logs, and runs; or asks one that runs.

use std::error::Error;
use std::process::ExitCode;

use requestor::{RETIRED, RequestorSettings};
use workqueue::Command;

// One thread is enough beside a broker, and faster than two.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    workqueue::name_commands(contract::COMMANDS);
    workqueue::exit_code(run().await)
}

async fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let settings: RequestorSettings = workqueue::parse(RETIRED);
    if settings.command == Some(Command::Healthcheck) {
        return Ok(workqueue::healthcheck(settings.service.admin_addr).await?);
    }
    let _logs = workqueue::init_telemetry(&settings.service.telemetry)?;
    let stop = workqueue::stop_on_signals()?;
    Ok(requestor::run(settings, &stop).await?)
}
