//! The `decoupled` program.

use std::process::ExitCode;

use cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    workqueue::name_commands(contract::COMMANDS);
    cli::run(workqueue::parse::<Cli>(&[])).await.unwrap_or_else(|error| {
        workqueue::print_error(&*error);
        ExitCode::from(2)
    })
}
