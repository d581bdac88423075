//! Ports that are held for a server while it does not run.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// Sockets that are bound to the ports of a server that is down, and never listen: connections
/// are refused, as with a server that is down, and no process gets the ports as free ones. Without
/// them, the next server that starts may take one, or a client that tries to reconnect, which has to
/// connect *from* some port as well.
#[derive(Debug)]
pub struct Held {
    _sockets: Vec<TcpSocket>,
}

impl Held {
    /// Whether the server can take its ports while they are held, so that there is no moment in
    /// between. Linux lets a socket have a port next to another one, where both allow that with
    /// `SO_REUSEADDR` and the other does not listen; elsewhere they have to be free.
    pub const CAN_BE_SHARED: bool = cfg!(target_os = "linux");

    /// Holds these ports.
    ///
    /// # Errors
    ///
    /// If another process has one of them.
    pub fn bind(ports: impl IntoIterator<Item = u16>) -> io::Result<Self> {
        let sockets: io::Result<_> = ports.into_iter().map(socket).collect();
        Ok(Self { _sockets: sockets? })
    }

    /// Holds a free port, for a server whose port others have to know before it runs.
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
    // The connections that the server had keep their port busy for some time.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}
