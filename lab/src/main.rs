//! The `lab` program, which is called as `cargo lab`.

use std::process::ExitCode;

use lab::LabCli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    lab::run(workqueue::parse::<LabCli>(&[])).await.unwrap_or_else(|error| {
        workqueue::print_error(&*error);
        ExitCode::from(2)
    })
}
