//! The ports of a broker, from the file that it writes.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::reserved_ports::ReservedPorts;

/// The ports on which a server listens; 0 for a port that it chooses itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) client: u16,
    pub(super) monitor: u16,
    /// The port for the other members of its cluster. A single broker has none.
    pub(super) cluster: Option<u16>,
}

impl Ports {
    /// The ports file of a server in this directory, once it is complete:
    /// `{"nats": ["nats://127.0.0.1:4222"], "monitoring": ["http://127.0.0.1:8222"]}`.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let file = fs::read_dir(directory).ok()?.next()?.ok()?.path();
        Self::written(&fs::read_to_string(file).ok()?)
    }

    fn written(text: &str) -> Option<Self> {
        let ports: Value = serde_json::from_str(text).ok()?;
        let port = |name: &str| ports[name][0].as_str()?.rsplit(':').next()?.parse().ok();
        let (client, monitor) = (port("nats")?, port("monitoring")?);
        Some(Self { client, monitor, cluster: port("cluster") })
    }

    /// Reserves the ports, if possible. It is only a precaution, so an error does not matter.
    pub(super) fn reserve(self) -> Option<ReservedPorts> {
        let ports = [Some(self.client), Some(self.monitor), self.cluster];
        let tell = |error: &io::Error| tracing::debug!(%error, "the ports are not reserved");
        ReservedPorts::bind(ports.into_iter().flatten()).inspect_err(tell).ok()
    }

    /// Removes the ports file of an earlier server, which a killed server leaves behind.
    pub(super) fn forget(directory: &Path) -> anyhow::Result<()> {
        for file in fs::read_dir(directory).context("cannot read the directory of the ports")? {
            let file = file.context("cannot read the directory of the ports")?.path();
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_file_has_no_ports() {
        let text = r#"{"nats":["nats://127.0.0.1:45103"],"monitoring":["http://127.0.0.1:37687"]}"#;
        let ports = Ports { client: 45103, monitor: 37687, cluster: None };
        assert_eq!(Ports::written(text), Some(ports));
        for length in 0..text.len() {
            assert_eq!(Ports::written(&text[..length]), None);
        }
    }

    #[test]
    fn member_of_a_cluster_has_a_port_for_the_others() {
        let text = r#"{"nats":["nats://127.0.0.1:1"],"monitoring":["http://127.0.0.1:2"],"cluster":["nats://127.0.0.1:3"]}"#;
        let ports = Ports { client: 1, monitor: 2, cluster: Some(3) };
        assert_eq!(Ports::written(text), Some(ports));
    }
}
