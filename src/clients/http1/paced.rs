//! Reads and writes of a client's socket, with an account of how slow the client is.

use std::{io, task::Poll};

use pingora::protocols::SocketDigest;

use crate::clients::{
    connection::{self, Wait},
    reject::Rejection,
};

/// Accounts for a read of a body; fails when the client sends too slowly.
pub(super) fn read(polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    match &polled {
        Poll::Ready(Ok(bytes)) => connection::moved(*bytes),
        Poll::Ready(Err(_)) => {}
        Poll::Pending if connection::expired(Wait::Body) => {
            connection::refuse(Rejection::SlowBody);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending => connection::waits(),
    }
    polled
}

/// Accounts for a write; fails when the client reads too slowly.
pub(super) fn write<T>(socket: &SocketDigest, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    match &polled {
        // What the kernel has accepted is not what the client has taken.
        Poll::Ready(Ok(_)) => connection::wrote(socket, 0),
        Poll::Ready(Err(_)) => {}
        Poll::Pending if connection::expired(Wait::Reader) && connection::reads_too_slowly(socket) => {
            connection::refuse(Rejection::SlowReader);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending => connection::waits_to_write(socket, 0),
    }
    polled
}
