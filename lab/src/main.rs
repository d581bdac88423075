//! The `lab` program: `cargo lab`.

use std::process::ExitCode;

use lab::LabCli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    workqueue::name_commands(contract::COMMANDS);
    lab::run(workqueue::parse::<LabCli>(&[])).await.unwrap_or_else(|error| {
        workqueue::print_error(&*error);
        ExitCode::from(2)
    })
}
