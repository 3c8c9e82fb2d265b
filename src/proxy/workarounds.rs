//! The header of an upgrade request, held back until Pingora has noted that no body comes with it.
//!
//! Pingora learns of that by a message from one half of the request to the other. A peer that is quick enough with its 101 is read
//! before that message, whose end of a body then passes for the end of the WebSocket: it is closed as soon as it is open
//! (cloudflare/pingora#946). So the kernel keeps the header until the connection's task has nothing left to do, which is after the
//! message was read. Only a socket that was made for the request can be held, since Pingora shows those it keeps by number only.
//!
//! [`super::Proxy`] makes them, [`super::connection`] ends them.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use parking_lot::Mutex;
use pingora::{ErrorType, OrErr, upstreams::peer::HttpPeer};
use socket2::SockRef;

/// The socket that will be held.
pub(super) struct Corkable(Arc<Mutex<Option<OwnedFd>>>);

/// What is written to the socket stays here as long as this does, but for no more than the 200 ms of tcp(7).
pub(super) struct Cork(OwnedFd);

impl Corkable {
    /// Of the connection that will be made to this peer.
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

    /// From now on; none if there was no connection made.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn hold(self) -> io::Result<Option<Cork>> {
        // Taken, because the peer's options, which live as long as the WebSocket, would keep it open.
        let Some(socket) = self.0.lock().take() else { return Ok(None) };
        SockRef::from(&socket).set_tcp_cork(true)?;
        Ok(Some(Cork(socket)))
    }
}

impl Drop for Cork {
    fn drop(&mut self) {
        if let Err(e) = SockRef::from(&self.0).set_tcp_cork(false) {
            log::debug!("a socket that was held is gone error={e}");
        }
    }
}
