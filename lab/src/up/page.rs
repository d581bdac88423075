//! The page that shows the flow in a browser: the viewer, as a process of the lab's.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context;
use testkit::process::Process;
use testkit::programs::Programs;
use tokio::process::Command;

/// Where the page is, if nobody else is there.
const ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8085);

/// The viewer. It is killed when this is dropped.
pub(super) struct Page {
    addr: SocketAddr,
    process: Process,
}

impl Page {
    /// Starts the viewer of the brokers at this address, which asks for strings through this API, if there
    /// is one. It may replay dead letters: whoever is on this machine may do that anyway.
    pub(super) fn start(
        programs: &Programs,
        url: &str,
        api: Option<SocketAddr>,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let addr = free().context("cannot find a port for the page")?;
        let mut command = Command::new(&programs.viewer);
        command.env("LOG_FORMAT", "pretty").env("NATS_URL", url).env("REPLAY", "on");
        command.env("VIEWER_ADDR", addr.to_string());
        if let Some(api) = api {
            command.env("API_URL", format!("http://{api}"));
        }
        let process = Process::spawn(command, directory.join("viewer.log"))?;
        Ok(Self { addr, process })
    }

    /// Where a browser finds it.
    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// Stops it. It has nothing to finish.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        self.process.kill().await.map(drop)
    }
}

/// The usual address, or another where somebody has that one.
fn free() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(ADDR);
    listener.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?.local_addr()
}
