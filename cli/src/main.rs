//! The `decoupled` program.

use std::process::ExitCode;

use anyhow::Context as _;
use cli::Cli;
use tokio::runtime::Builder;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        workqueue::print_error(&*error);
        ExitCode::from(2)
    })
}

fn run() -> anyhow::Result<ExitCode> {
    workqueue::name_commands(contract::COMMANDS);
    let cli = workqueue::parse::<Cli>(&[]);
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let ended = runtime.block_on(cli::run(cli));
    // A signal may have ended the command while a line waits for a reader that stalls.
    runtime.shutdown_background();
    ended
}
