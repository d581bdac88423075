//! The steps of the README: a job, and then its worker.

use std::path::Path;

use testkit::broker::{Broker, BrokerOptions};
use testkit::process::{Process, bound_to_this, logged};

#[tokio::test]
async fn worker_greets_the_name_that_was_submitted() {
    let broker = Broker::start(BrokerOptions::default()).await.unwrap();
    let hello = || {
        let mut command = bound_to_this(env!("CARGO_BIN_EXE_hello"));
        command.env_clear().env("NATS_URL", broker.url());
        command
    };
    let output = hello().arg("Ada").output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let id = said.strip_prefix("job ").and_then(|said| said.strip_suffix(" is stored\n")).unwrap();
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hello.log");
    let worker = Process::spawn(hello(), log).unwrap();
    logged(&worker, &format!("Hello, Ada! (job {id}, attempt 1)\n")).await;
}
