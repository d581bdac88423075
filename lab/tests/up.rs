//! `cargo lab up`, as somebody calls it.

use std::process::Output;

use tokio::process::Command;

async fn up(words: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.arg("up").args(words).envs(settings.iter().copied()).env_remove("RUST_BACKTRACE");
    command.output().await.unwrap()
}

#[tokio::test]
async fn a_setting_that_no_service_understands_ends_it_at_once_with_what_is_wrong() {
    // For an hour, if nobody notices.
    let output = up(&["--for", "1h"], &[("WORK_TIME", "200")]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("generator-1 cannot start"), "{said}");
    assert!(said.contains("write a number with a unit, such as 250ms"), "{said}");
}

#[tokio::test]
async fn nobody_is_told_to_kill_what_does_not_run() {
    let output = up(&["--requestors", "0", "--generators", "0", "--for", "100ms"], &[]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    let kills: Vec<&str> =
        said.lines().map(str::trim).filter(|line| line.starts_with("kill -")).collect();
    let [broker] = kills[..] else { panic!("{kills:?}") };
    let (signal, id) = broker.rsplit_once(' ').unwrap();
    assert_eq!(signal, "kill -9");
    assert!(id.parse::<u32>().unwrap() > 1, "{broker}");
}
