//! A port of loopback for a process that is started, stopped and started again by a test.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

/// Bound, never listening: while the process is stopped nothing can connect, and the system gives the port to no other socket,
/// not even to an outgoing connection. A listener that sets `SO_REUSEADDR`, as servers do, can still have it.
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
