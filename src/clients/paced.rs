//! Accounts for reads of a request body and writes of a response, and ends them when the client is too slow.
//!
//! [`super::client_stream`] and [`super::http2`] pass every such poll through here, so that `min_rate` is one rule for both protocols.

use std::{io, task::Poll};

use pingora::{Error, ErrorType, protocols::SocketDigest};

use super::{
    connection::{Connection, Wait},
    reject::Rejection,
};

/// The client was slower than `min_rate` for too long.
pub(super) enum TooSlow {
    /// It sends the request body too slowly.
    Body,
    /// It reads the response too slowly.
    Reader,
}

/// Accounts for a read of a request body; `bytes` is its length.
pub(super) fn body<T, E: From<TooSlow>>(
    connection: &Connection,
    polled: Poll<Result<T, E>>,
    bytes: impl FnOnce(&T) -> usize,
) -> Poll<Result<T, E>> {
    match &polled {
        Poll::Ready(Ok(read)) => connection.body_arrived(bytes(read)),
        Poll::Ready(Err(_)) => {}
        Poll::Pending if connection.has_expired(Wait::Body) => {
            connection.reject(Rejection::SlowBody);
            return Poll::Ready(Err(TooSlow::Body.into()));
        }
        Poll::Pending => connection.await_body(),
    }
    polled
}

/// Accounts for a write of a response. `granted`: how many bytes the client has asked for by HTTP/2 flow control; `unseen`: how many
/// it may read without a visible sign.
pub(super) fn response<T, E: From<TooSlow>>(
    connection: &Connection,
    socket: &SocketDigest,
    polled: Poll<Result<T, E>>,
    granted: u64,
    unseen: u64,
) -> Poll<Result<T, E>> {
    match &polled {
        Poll::Ready(_) => connection.reader_read(socket, granted),
        Poll::Pending if connection.has_expired(Wait::Reader) && connection.reads_too_slowly(socket) => {
            connection.reject(Rejection::SlowReader);
            return Poll::Ready(Err(TooSlow::Reader.into()));
        }
        Poll::Pending => connection.await_reader(socket, unseen),
    }
    polled
}

impl From<TooSlow> for io::Error {
    fn from(_: TooSlow) -> Self {
        io::ErrorKind::TimedOut.into()
    }
}

impl From<TooSlow> for Box<Error> {
    fn from(slow: TooSlow) -> Self {
        let error = match slow {
            TooSlow::Body => Error::explain(ErrorType::ReadTimedout, "the client sends the body too slowly"),
            TooSlow::Reader => Error::explain(ErrorType::WriteTimedout, "the client reads the response too slowly"),
        };
        error.into_down()
    }
}
