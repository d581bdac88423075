//! The steps of each lesson of the course, with their checks.

use tokio::process::Command;

#[tokio::test]
async fn lessons_pass_their_checks() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(["lesson", "--check"]).env_remove("RUST_BACKTRACE").kill_on_drop(true);
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap()).concat();
    assert!(output.status.success(), "{said}");
}
