//! Workaround for cloudflare/pingora#946: delays the header of an upgrade request. Remove it when a Pingora release fixes the issue.
//!
//! Pingora reports the end of the request body by a message from one half of the request to the other. If the peer's 101 is read
//! before that message, Pingora takes the end of the body for the end of the WebSocket and closes it at once. Therefore TCP_CORK
//! keeps the request header in the kernel until the connection's task is idle, which is after the message was read. This needs a
//! new connection, because Pingora exposes a reused one only by its descriptor number.
//!
//! [`super::Proxy`] creates the cork, [`crate::clients::connection::Connection::watch`] drops it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use parking_lot::Mutex;
use pingora::{ErrorType, OrErr, upstreams::peer::HttpPeer};
use socket2::SockRef;

/// Gets a descriptor of the socket when it is created.
pub(super) struct Corkable(Arc<Mutex<Option<OwnedFd>>>);

/// Keeps written bytes in the kernel until it is dropped, or for 200 ms (TCP_CORK in tcp(7)).
pub(super) struct Cork(OwnedFd);

impl Corkable {
    /// Hooks into the connection that will be opened to this peer.
    pub(super) fn of(http_peer: &mut HttpPeer) -> Self {
        let socket = Arc::default();
        let holder = Self(Arc::clone(&socket));
        http_peer.options.upstream_tcp_sock_tweak_hook = Some(Arc::new(move |made| {
            let made = made.as_fd().try_clone_to_owned();
            *socket.lock() = Some(made.or_err(ErrorType::ConnectError, "a second descriptor of a socket")?);
            Ok(())
        }));
        holder
    }

    /// Corks the socket; none if no connection was opened.
    ///
    /// # Errors
    /// When the socket option cannot be set.
    pub(super) fn hold(self) -> io::Result<Option<Cork>> {
        // Take the descriptor out: the peer's options live as long as the WebSocket and would keep the socket open.
        let Some(socket) = self.0.lock().take() else { return Ok(None) };
        SockRef::from(&socket).set_tcp_cork(true)?;
        Ok(Some(Cork(socket)))
    }
}

impl Drop for Cork {
    fn drop(&mut self) {
        if let Err(e) = SockRef::from(&self.0).set_tcp_cork(false) {
            log::debug!("cannot uncork a socket error={e}");
        }
    }
}
