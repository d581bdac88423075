//! A machine whose clock is wrong: its programs report that, and do not use the clock.

use std::path::{Path, PathBuf};

use contract::facts::RECEIVED;
use contract::queues::REQUESTS;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use testkit::eventually::eventually;
use testkit::process::logged;
use tokio::process::Command;

use crate::api::{ACCEPTS, accepted, post};
use crate::deployment::{
    Deployment, PATIENT, Service, admin, api_addr, programs, ready, succeeded,
};

/// The error of the clock in seconds: more than `FACTS_MAX_AGE`.
const OFF: i64 = 25 * 3600;

/// The number of requests.
const COUNT: u64 = 200;

/// Makes the time of day wrong for a program, once the file of `CLOCK_IS_WRONG` exists, or from the beginning without
/// that variable. Monotonic clocks stay right.
const WRONG_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, clock, time);
    const char *file = getenv("CLOCK_IS_WRONG");
    if (clock == CLOCK_REALTIME && (!file || access(file, F_OK) == 0)) time->tv_sec += OFF;
    return result;
}
"#;

/// Compiles the library that makes a clock wrong by this many seconds, with the compiler that Rust links with.
async fn wrong_clock(directory: &Path, off: i64) -> PathBuf {
    let (source, library) = (directory.join("clock.c"), directory.join(format!("clock{off}.so")));
    std::fs::write(&source, WRONG_CLOCK).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", &format!("-DOFF={off}"), "-o"]).arg(&library).arg(&source);
    assert!(compiler.status().await.unwrap().success());
    library
}

#[tokio::test]
async fn wrong_clock_rejects_no_request() {
    let deployment = Deployment::with(&PATIENT).await;
    let directory = tempfile::tempdir().unwrap();
    for (off, complaint) in [(OFF, "clock is 25h ahead of"), (-OFF, "clock is 25h behind")] {
        let library = wrong_clock(directory.path(), off).await;
        let wrong = ("LD_PRELOAD", library.to_str().unwrap());
        let name = |name: &str| format!("{name}{off}");
        let generator = deployment.run(Service::Generator, &name("generator"), &[wrong]).await;
        let gateway = deployment.gateway(&name("gateway"), &[wrong]).await;
        logged(&gateway, ACCEPTS).await;
        accepted(&post(api_addr(&gateway).await, None, &json!({})).await);
        let total = [wrong, ("REQUEST_TOTAL", "200"), ("REQUEST_RATE", "max")];
        let mut requestor = deployment.run(Service::Requestor, &name("requestor"), &total).await;
        for process in [&generator, &gateway] {
            eventually("it says that its clock is wrong", async || {
                match admin(process, "/readyz").await {
                    (503, reason) if reason.contains(complaint) => Ok(()),
                    other => Err(other),
                }
            })
            .await;
        }
        succeeded(&mut requestor).await;
        assert!(requestor.log_text().contains(complaint), "{}", requestor.log_text());
    }
    // A machine with the right clock takes part, and notices no difference.
    let generator = deployment.run(Service::Generator, "right", &[]).await;
    ready(&generator).await;
    succeeded(&mut deployment.ask(COUNT).await).await;
    let verdict = deployment.verdict().await;
    assert_eq!(verdict.complete as u64, 3 * COUNT + 2, "{verdict}");
    assert!(verdict.is_clean() && verdict.cannot_tell.is_none(), "{verdict}");
    assert_eq!(verdict.dead_lettered, 0, "{verdict}");
}

#[tokio::test]
async fn commands_use_the_clock_of_the_broker() {
    let deployment = Deployment::start().await;
    let directory = tempfile::tempdir().unwrap();
    let library = wrong_clock(directory.path(), OFF).await;
    let backup = directory.path().join("backup");
    for words in
        [&["queues", "pause", "REQUESTS", "--for=10m"][..], &["backup", backup.to_str().unwrap()]]
    {
        let mut command = Command::new(&programs().await.decoupled);
        command.env_clear().env("LD_PRELOAD", &library).args(words);
        let output = command.args(["--nats-url", deployment.url()]).output().await.unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && told.contains("clock is 25h ahead of"), "{told}");
    }
    let paused_until = deployment.queue_state(REQUESTS).await.paused_until();
    let manifest = std::fs::read_to_string(backup.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let made_at = manifest["backup"]["made_at"].as_str().unwrap().parse().unwrap();
    for moment in [paused_until.unwrap(), made_at] {
        let off = moment.duration_since(Timestamp::now()).abs();
        assert!(off < SignedDuration::from_hours(1), "{moment} is off by {off:#}");
    }
}

#[tokio::test]
async fn changed_clock_makes_no_store_look_replaced() {
    let deployment = Deployment::with(&PATIENT).await;
    let directory = tempfile::tempdir().unwrap();
    let library = wrong_clock(directory.path(), OFF).await;
    let is_set = directory.path().join("is-set");
    let settings = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("CLOCK_IS_WRONG", is_set.to_str().unwrap()),
        ("REQUEST_RATE", "100"),
    ];
    let _generator = deployment.run(Service::Generator, "generator", &[]).await;
    let mut requestor = deployment.run(Service::Requestor, "requestor", &settings).await;
    deployment.facts_reach(RECEIVED, COUNT).await;
    std::fs::write(&is_set, "").unwrap();
    eventually("its clock is wrong", async || match admin(&requestor, "/readyz").await {
        (503, _) => Ok(()),
        other => Err(other),
    })
    .await;
    let so_far = deployment.facts(RECEIVED).await;
    deployment.facts_reach(RECEIVED, so_far + COUNT).await;
    requestor.terminate().unwrap();
    succeeded(&mut requestor).await;
    let verdict = deployment.verdict().await;
    assert!(verdict.is_clean() && verdict.cannot_tell.is_none(), "{verdict}");
}
