//! The ports of a broker: read from it while it runs, and held for it while it does not.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tokio::net::TcpSocket;

/// The ports that a server listens on; 0 for one that it has yet to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) client: u16,
    pub(super) monitor: u16,
    /// For the other members of its cluster. A broker on its own has none.
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

    /// Removes the ports file of an earlier server: one that is killed leaves it behind.
    pub(super) fn forget(directory: &Path) -> anyhow::Result<()> {
        for file in fs::read_dir(directory).context("cannot read the directory of the ports")? {
            let file = file.context("cannot read the directory of the ports")?.path();
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }
}

/// Sockets that are bound to the ports of a server that is down, and never listen: connections
/// are refused, as with a server that is down, and no process gets the ports as free ones. Without
/// them, the next broker that starts may take one, or a client that tries to reconnect, which has to
/// connect *from* some port as well.
#[derive(Debug)]
pub(super) struct Held {
    _sockets: Vec<TcpSocket>,
}

impl Held {
    /// Whether the server can take its ports while they are held, so that there is no moment in
    /// between. Linux lets a socket have a port next to another one, where both allow that with
    /// `SO_REUSEADDR` and the other does not listen; elsewhere they have to be free.
    pub(super) const CAN_BE_SHARED: bool = cfg!(target_os = "linux");

    /// Holds the ports, if they can be held. It is a precaution, and nothing to fail for.
    pub(super) fn bind(ports: Ports) -> Option<Self> {
        let tell = |error: &io::Error| tracing::debug!(%error, "the ports are not held");
        let ports = [Some(ports.client), Some(ports.monitor), ports.cluster];
        let sockets: io::Result<_> = ports.into_iter().flatten().map(socket).collect();
        Some(Self { _sockets: sockets.inspect_err(tell).ok()? })
    }

    /// Holds a free port, for a server whose port others have to know before it runs.
    pub(super) fn free() -> io::Result<(Self, u16)> {
        let socket = socket(0)?;
        let port = socket.local_addr()?.port();
        Ok((Self { _sockets: vec![socket] }, port))
    }
}

fn socket(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // The connections that the server had keep their port busy for some time.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_half_written_names_no_ports() {
        let text = r#"{"nats":["nats://127.0.0.1:45103"],"monitoring":["http://127.0.0.1:37687"]}"#;
        let ports = Ports { client: 45103, monitor: 37687, cluster: None };
        assert_eq!(Ports::written(text), Some(ports));
        for length in 0..text.len() {
            assert_eq!(Ports::written(&text[..length]), None);
        }
    }

    #[test]
    fn a_member_of_a_cluster_has_a_port_for_the_others() {
        let text = r#"{"nats":["nats://127.0.0.1:1"],"monitoring":["http://127.0.0.1:2"],"cluster":["nats://127.0.0.1:3"]}"#;
        let ports = Ports { client: 1, monitor: 2, cluster: Some(3) };
        assert_eq!(Ports::written(text), Some(ports));
    }
}
