//! Ports that are reserved for a server while it does not run.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// Sockets that are bound to the ports of a server that is down, and never listen. So connections are refused, as they
/// are by a server that is down, and no process gets the ports as free ones. Without these sockets another server may
/// take a port, or a client that reconnects, because it needs a port of its own as well.
#[derive(Debug)]
pub struct ReservedPorts {
    _sockets: Vec<TcpSocket>,
}

impl ReservedPorts {
    /// Whether the server can bind its ports while they are reserved. On Linux two sockets can share a port, if both set
    /// `SO_REUSEADDR` and the other one does not listen. Elsewhere the ports have to be released first.
    pub const CAN_BE_SHARED: bool = cfg!(target_os = "linux");

    /// Reserves these ports.
    ///
    /// # Errors
    ///
    /// If another process uses one of them.
    pub fn bind(ports: impl IntoIterator<Item = u16>) -> io::Result<Self> {
        let sockets: io::Result<_> = ports.into_iter().map(socket).collect();
        Ok(Self { _sockets: sockets? })
    }

    /// Reserves a free port, for a server whose port other processes have to know before it runs.
    ///
    /// # Errors
    ///
    /// If the operating system has none.
    pub fn free() -> io::Result<(Self, u16)> {
        let socket = socket(0)?;
        let port = socket.local_addr()?.port();
        Ok((Self { _sockets: vec![socket] }, port))
    }
}

fn socket(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // The earlier connections of the server keep its port busy for some time.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}
