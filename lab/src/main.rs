//! The `lab` program, which is called as `cargo lab`.

use std::process::ExitCode;

use lab::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    lab::run(workqueue::parse::<Cli>(&[])).await.unwrap_or_else(|error| {
        eprintln!("Error: {error:#}");
        ExitCode::from(2)
    })
}
