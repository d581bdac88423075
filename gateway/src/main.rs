//! The `gateway` program: reads its settings, starts its logs, and runs; or checks whether a gateway runs.

use std::error::Error;
use std::process::ExitCode;

use gateway::GatewaySettings;
use mimalloc::MiMalloc;
use requestor::RETIRED;
use workqueue::Command;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    workqueue::name_commands(contract::COMMANDS);
    workqueue::exit_code(run().await)
}

async fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let settings: GatewaySettings = workqueue::parse(RETIRED);
    if settings.command == Some(Command::Healthcheck) {
        return Ok(workqueue::healthcheck(settings.admin_addr).await?);
    }
    let _logs = workqueue::init_telemetry(&settings.telemetry)?;
    let stop = workqueue::stop_on_signals()?;
    Ok(gateway::run(settings, &stop).await?)
}
