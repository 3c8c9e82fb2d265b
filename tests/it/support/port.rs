//! A free loopback port for a process that cannot choose one itself, or that a test restarts. Also used by `make bench`.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// A socket that is bound and never listens. While it exists, the kernel gives the port to no other socket, not even to an
/// outgoing connection, and a client cannot connect. A process that sets `SO_REUSEADDR`, as servers do, can listen on the port.
pub struct Port {
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl Port {
    pub fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }
}
