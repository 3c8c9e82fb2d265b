//! Workarounds for faults of Pingora that need the socket of a connection to a peer. Remove each when a Pingora release fixes its fault.
//!
//! **cloudflare/pingora#946** Pingora reports the end of the request body by a message from one half of the request to the other. If
//! the peer's 101 is read before that message, Pingora takes the end of the body for the end of the WebSocket and closes it at once.
//! Therefore TCP_CORK keeps the header of an upgrade request in the kernel until the connection's task is idle, which is after the
//! message was read. [`super::Proxy`] creates the [`Cork`], [`crate::clients::connection::Connection::watch`] drops it.
//!
//! **Uploads from HTTP/1 to HTTP/2** If an HTTP/2 peer does not open its window, Pingora logs the timeout of the write and then waits
//! for a response without polling the client's session (`bidirection_down_to_up` in `proxy_h2.rs` of 0.9.1). Nothing can end such a
//! request except its connection to the peer, which other requests share. Therefore an upload that may not fit into the window gets a
//! connection of its own, which the response timeout shuts down. An upload over HTTP/2 has a session of ours, which ends it.
//!
//! Both need a new connection, because Pingora exposes a reused one only by its descriptor number.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use http::header;
use parking_lot::Mutex;
use pingora::{ErrorType, OrErr, http::RequestHeader, upstreams::peer::HttpPeer};
use socket2::SockRef;

/// What a peer takes on a new HTTP/2 stream until it opens the window (RFC 9113, section 6.9.2), unless its settings say less.
const INITIAL_WINDOW: u64 = 65_535;

/// Gets a second descriptor of the socket to a peer when it is created.
pub(super) struct NewSocket(Arc<Mutex<Option<OwnedFd>>>);

/// Keeps written bytes in the kernel until it is dropped, or for 200 ms (TCP_CORK in tcp(7)).
pub(super) struct Cork(OwnedFd);

impl NewSocket {
    /// Hooks into the connection that will be opened to this peer.
    pub(super) fn of(http_peer: &mut HttpPeer) -> Self {
        let socket = Arc::default();
        let new_socket = Self(Arc::clone(&socket));
        http_peer.options.upstream_tcp_sock_tweak_hook = Some(Arc::new(move |made| {
            let made = made.as_fd().try_clone_to_owned();
            *socket.lock() = Some(made.or_err(ErrorType::ConnectError, "a second descriptor of a socket")?);
            Ok(())
        }));
        new_socket
    }

    /// The descriptor; none if no connection was opened.
    pub(super) fn take(self) -> Option<OwnedFd> {
        // Take the descriptor out: the peer's options live as long as the request and would keep the socket open.
        self.0.lock().take()
    }
}

impl Cork {
    /// # Errors
    /// When the socket option cannot be set.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        SockRef::from(&socket).set_tcp_cork(true)?;
        Ok(Self(socket))
    }
}

/// Whether an HTTP/2 peer may have to open its window for the body of this request.
pub(super) fn may_exceed_window(request: &RequestHeader) -> bool {
    let length = request.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    length.map_or(request.headers.contains_key(header::TRANSFER_ENCODING), |length| length > INITIAL_WINDOW)
}

impl Drop for Cork {
    fn drop(&mut self) {
        if let Err(e) = SockRef::from(&self.0).set_tcp_cork(false) {
            log::debug!("cannot uncork a socket error={e}");
        }
    }
}
