//! Waits for a peer's response header (`timeouts.response`), as part of a [`super::connection::Connection`].
//!
//! Pingora's read timeout is per read and also applies to the body, so it would cut a quiet event stream or WebSocket, and a slow
//! upload whose response comes at its end. This wait begins when a request has a connection to its peer, starts over with each piece
//! of the request body, and ends with the response header. When it times out the peer's socket is shut down, which Pingora sees as
//! closed. An HTTP/2 connection to a peer is shared with other requests, so it is left alone, and only the request is aborted.
//!
//! The descriptor is forgotten with the wait, so it is never used after its socket was closed: requests of a connection come one
//! after the other, and only the future that [`super::connection::Connection::watch`] polls can close the socket.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::mpsc;

use super::cells::{DurationCell, InstantCell, Slot};

/// No descriptor: nothing is awaited, or the peer's connection is shared.
const NO_SOCKET: RawFd = -1;

/// The wait of one request for its response header.
pub(crate) struct ResponseWait {
    until: InstantCell,
    timeout: DurationCell,
    /// The peer's socket, if no other request shares it.
    socket: AtomicI32,
    /// The peer's socket, of a connection that was opened for this request.
    own_socket: Slot<OwnedFd>,
    timed_out: AtomicBool,
    aborted: AtomicBool,
    /// Aborts a request whose body its peer does not take.
    abort: Slot<mpsc::Sender<Bytes>>,
}

impl ResponseWait {
    /// Begins the wait at `now`. `socket` is the peer's, or none if other requests share its connection.
    pub(crate) fn begin(&self, socket: Option<RawFd>, now: Instant, timeout: Duration) {
        self.timed_out.store(false, Relaxed);
        self.aborted.store(false, Relaxed);
        self.socket.store(socket.unwrap_or(NO_SOCKET), Relaxed);
        drop(self.own_socket.take());
        self.timeout.set(timeout);
        self.until.set(Some(now + timeout));
    }

    /// Shuts down `socket` when the wait times out. It is a descriptor of its own, so another task may close the peer's.
    pub(crate) fn own_socket(&self, socket: OwnedFd) {
        self.own_socket.set(socket);
    }

    /// Starts the wait over, because the request made progress.
    pub(crate) fn extend(&self) {
        if self.until.get().is_some() {
            self.until.set(Some(Instant::now() + self.timeout.get()));
        }
    }

    /// Ends the wait: the header has arrived, or will not. The peer's socket may be closed from now on.
    pub(crate) fn end(&self) {
        self.until.set(None);
        self.aborted.store(false, Relaxed);
        self.socket.store(NO_SOCKET, Relaxed);
        drop(self.own_socket.take());
        drop(self.abort.take());
    }

    /// Whether the wait timed out, and the peer's connection is gone for that.
    pub(crate) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Relaxed)
    }

    /// Whether the request has to end: its wait timed out, and other requests share the peer's connection.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Relaxed)
    }

    /// Whether a response is awaited from a peer whose connection other requests share.
    pub(super) fn is_shared(&self) -> bool {
        self.until.get().is_some() && self.socket.load(Relaxed) == NO_SOCKET
    }

    /// Sends a message to `abort` when the request has to end; drops it when the wait ends.
    pub(crate) fn abort_by(&self, abort: mpsc::Sender<Bytes>) {
        self.abort.set(abort);
    }

    /// When the wait times out.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until.get()
    }

    /// Times out. Returns whether the request's future has to notice that by itself.
    pub(super) fn expire(&self) -> bool {
        self.until.set(None);
        self.timed_out.store(true, Relaxed);
        let own_socket = self.own_socket.take();
        let borrowed = self.socket.swap(NO_SOCKET, Relaxed);
        let socket = own_socket.as_ref().map_or(borrowed, AsRawFd::as_raw_fd);
        if socket == NO_SOCKET {
            self.aborted.store(true, Relaxed);
            if let Some(abort) = self.abort.take() {
                // Fails if the request has ended, or is about to receive an earlier message.
                drop(abort.try_send(Bytes::new()));
            }
            return true;
        }
        if let Err(e) = shutdown(socket, Shutdown::Both) {
            log::debug!("the socket of a late peer was closed already error={e}");
        }
        false
    }
}

impl Default for ResponseWait {
    fn default() -> Self {
        Self {
            until: InstantCell::default(),
            timeout: DurationCell::default(),
            socket: AtomicI32::new(NO_SOCKET),
            own_socket: Slot::default(),
            timed_out: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            abort: Slot::default(),
        }
    }
}
