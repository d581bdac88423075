//! The gateway as a process.

use std::net::SocketAddr;

use testkit::process::Process;

use crate::deployment::{Deployment, api_addr};

pub struct GatewayProcess {
    pub process: Process,
    pub addr: SocketAddr,
}

impl GatewayProcess {
    /// Starts a gateway with `CONTROL=on`, on a free port.
    pub async fn start(deployment: &Deployment) -> Self {
        Self::with(deployment, &[("CONTROL", "on")]).await
    }

    pub async fn with(deployment: &Deployment, settings: &[(&str, &str)]) -> Self {
        // Successive gateways may log to the same file.
        let name = format!("gateway-{}", workqueue::JobId::new());
        let process = deployment.gateway(&name, settings).await;
        let addr = api_addr(&process).await;
        Self { process, addr }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }
}
