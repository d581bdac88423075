//! The subcommand `healthcheck` of each service.

use std::path::Path;
use std::process::Output;

use testkit::eventually::eventually;
use testkit::process::{Process, logged};
use testkit::reserved_ports::ReservedPorts;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::deployment::{Deployment, Service, admin_addr, programs};

async fn healthcheck(program: &Path, admin_addr: &str) -> Output {
    let mut command = Command::new(program);
    command.arg("healthcheck").env("ADMIN_ADDR", admin_addr).env_remove("RUST_BACKTRACE");
    command.output().await.unwrap()
}

/// Waits until the check has this exit status and this output.
async fn becomes(program: &Path, process: &Process, status: i32, words: &str) {
    let addr = admin_addr(process).await.to_string();
    eventually(&format!("the check ends with {status}"), async || {
        let output = healthcheck(program, &addr).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(status) && said.contains(words) {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
}

#[tokio::test]
async fn healthcheck_reports_readiness_with_its_reason() {
    let mut deployment = Deployment::start().await;
    for (service, name) in [(Service::Requestor, "requestor"), (Service::Generator, "generator")] {
        let replica = deployment.run(service, name, &[]).await;
        let program = programs().await.of(service);
        becomes(program, &replica, 0, "").await;
        deployment.broker.kill().await.unwrap();
        becomes(program, &replica, 1, "not ready: not connected to the broker").await;
        deployment.broker.restart().await.unwrap();
        becomes(program, &replica, 0, "").await;
    }
}

#[tokio::test]
async fn gateway_is_healthy_with_a_broker_or_without() {
    let mut deployment = Deployment::start().await;
    let program = &programs().await.gateway;
    let gateway = deployment.gateway("gateway", &[]).await;
    logged(&gateway, "connected to the broker").await;
    becomes(program, &gateway, 0, "").await;
    deployment.broker.kill().await.unwrap();
    logged(&gateway, "lost the connection").await;
    // The page then shows no service.
    becomes(program, &gateway, 0, "").await;
}

#[tokio::test]
async fn service_that_listens_everywhere_is_asked_on_this_machine() {
    let deployment = Deployment::start().await;
    let everywhere = [("ADMIN_ADDR", "0.0.0.0:0")];
    let generator = deployment.run(Service::Generator, "generator", &everywhere).await;
    becomes(programs().await.of(Service::Generator), &generator, 0, "").await;
}

#[tokio::test]
async fn healthcheck_without_an_answer_is_unhealthy() {
    let (_held, port) = ReservedPorts::free().unwrap();
    let nobody = format!("127.0.0.1:{port}");
    // Accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_addr = silent.local_addr().unwrap().to_string();
    for (addr, words) in [
        (nobody.as_str(), format!("no service answers at {nobody} (ADMIN_ADDR)")),
        (&silent_addr, format!("no service answers at {silent_addr} (ADMIN_ADDR): silent")),
        (
            "127.0.0.1:0",
            "ADMIN_ADDR is 127.0.0.1:0: with port 0 the service chooses a port".to_owned(),
        ),
    ] {
        let output = healthcheck(programs().await.of(Service::Generator), addr).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{addr}: {said}");
        assert!(said.contains(&words), "{addr}: {said}");
    }
}
