//! The viewer as a process.

use std::net::SocketAddr;

use testkit::eventually::eventually;
use testkit::process::Process;
use tokio::process::Command;

use crate::deployment::{Deployment, programs};

pub struct Viewer {
    pub process: Process,
    pub addr: SocketAddr,
}

impl Viewer {
    /// Starts one that may replay, on a port that is free.
    pub async fn start(deployment: &Deployment) -> Self {
        Self::with(deployment, "127.0.0.1:0", &[("REPLAY", "on")]).await
    }

    pub async fn with(deployment: &Deployment, addr: &str, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new(&programs().await.viewer);
        command.env_clear().env("NATS_URL", deployment.url()).env("LOG_FORMAT", "pretty");
        command.env("VIEWER_ADDR", addr).envs(settings.iter().copied());
        // One after another may log to the same file.
        let name = format!("viewer-{}", contract::RequestId::new());
        let process = Process::spawn(command, deployment.log(&name)).unwrap();
        let addr = eventually("the page is there", async || {
            let log = process.log_text();
            let addr =
                log.split_once("the page is at http://").and_then(|it| it.1.split('/').next());
            addr.and_then(|addr| addr.parse().ok()).ok_or(log)
        })
        .await;
        Self { process, addr }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }
}
