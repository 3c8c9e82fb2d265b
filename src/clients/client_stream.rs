//! The bytes of one client connection, between its socket and Pingora.
//!
//! With HTTP/1, a header is read completely, bounded in time and size, and judged before Pingora reads a byte of it. Then Pingora
//! gets exactly that header and its body, whose end is found here too, and nothing of the next request. So a peer never gets bytes
//! that two parsers could read differently, a rejection is answered and counted, and pipelined requests wait for their turn. With
//! HTTP/2, and once a connection is upgraded, bytes pass unchanged.
//!
//! [`super::edge`] makes one per connection. It holds the [`Connection`], reports the pace of the bytes to it, and hands it to Pingora
//! as part of the digest of each session.

pub(super) mod chunks;
mod traits;

use std::{
    future::poll_fn,
    io,
    os::fd::RawFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use pingora::protocols::{SocketDigest, raw_connect::ProxyDigest};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tokio_util::io::poll_read_buf;

use self::chunks::Chunks;
use super::{
    backpressure,
    closing::Closing,
    connection::{Connection, Wait},
    frame_watcher::FrameWatcher,
    head::{self, Body, Scan},
    linger, paced,
    reject::Rejection,
    socket::Socket,
};
use crate::config::Limits;

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How many bytes one read asks for, outside of bodies.
const READ_AHEAD: usize = 4096;
/// Collects small writes that belong together into one packet.
const WRITE_BUFFER: usize = 4096;

/// A client's connection.
pub(super) struct ClientStream {
    /// None once it was taken to answer a rejection or to linger.
    socket: Option<BufWriter<Socket>>,
    fd: RawFd,
    digest: Arc<SocketDigest>,
    connection: Arc<Connection>,
    /// Carries `connection` to the sessions of this stream.
    connection_digest: Option<Arc<ProxyDigest>>,
    /// Bytes that were read, and that Pingora has not taken.
    pending: BytesMut,
    /// How many further bytes pass unchanged: the header, and a body of known length.
    exactly: u64,
    /// The chunked body that follows them.
    chunks: Option<Chunks>,
    /// How many of the pending bytes were accepted as parts of the chunked body.
    passed: usize,
    mode: Mode,
    /// Follows the HTTP/2 frames that are sent.
    frames: Option<FrameWatcher>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Requests,
    H2,
    /// A WebSocket.
    Through,
}

/// What the client sends next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Request,
    H2,
}

/// Whether a client may begin with HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http2Start {
    No,
    /// If the first bytes are the preface.
    Maybe,
    /// The TLS handshake has agreed on it; the h2 library judges what follows.
    Agreed,
}

/// Why there is no next request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client has closed the connection, or idle connections are closed.
    Closed,
    Rejected(Rejection),
}

impl ClientStream {
    pub(super) fn new(socket: Socket, connection: Arc<Connection>) -> Self {
        let fd = socket.fd();
        Self {
            socket: Some(BufWriter::with_capacity(WRITE_BUFFER, socket)),
            fd,
            digest: Arc::new(SocketDigest::from_raw_fd(fd)),
            connection_digest: connection.digest(),
            connection,
            pending: BytesMut::new(),
            exactly: 0,
            chunks: None,
            passed: 0,
            mode: Mode::Requests,
            frames: None,
        }
    }

    /// Follows the HTTP/2 frames that are sent.
    pub(super) fn watch(&mut self, frames: FrameWatcher) {
        self.frames = Some(frames);
    }

    fn written<'a>(&mut self, polled: &Poll<io::Result<usize>>, all: impl IntoIterator<Item = &'a [u8]>) {
        if let (Some(frames), Poll::Ready(Ok(written))) = (&mut self.frames, polled) {
            let mut left = *written;
            for bytes in all {
                let bytes = bytes.get(..left.min(bytes.len())).unwrap_or_default();
                frames.written(bytes);
                left -= bytes.len();
            }
        }
    }

    /// Whether all of the last request was taken, so that another one may follow.
    pub(super) fn is_between_requests(&self) -> bool {
        self.mode == Mode::Requests && self.exactly == 0 && self.passed == 0 && self.chunks.is_none_or(|chunks| chunks.done())
    }

    /// Waits for the next header, judges it, and lets Pingora read it. `closing` closes connections without a request; `h2` applies to
    /// the first header of a connection.
    ///
    /// # Errors
    /// When the connection ends, or its next header is rejected.
    pub(super) async fn next(&mut self, limits: &Limits, h2: Http2Start, closing: &Closing) -> Result<Next, End> {
        let mut scan = Scan::default();
        let mut begun = false;
        let mut closed = pin!(closing.closed().fuse());
        let mut is_closing = false;
        loop {
            if h2 != Http2Start::Agreed && self.pending.starts_with(b"\r\n") {
                // Some clients send one too many after a body (RFC 9112, section 2.2).
                self.pending.advance(2);
                scan = Scan::default();
            }
            let begins = !self.pending.is_empty() && H2_PREFACE.starts_with(head_of(&self.pending));
            let maybe_h2 = h2 == Http2Start::Agreed || h2 == Http2Start::Maybe && begins;
            let decided = if begins { self.pending.len() >= H2_PREFACE.len() } else { !self.pending.is_empty() };
            if maybe_h2 && decided {
                self.mode = Mode::H2;
                self.connection.await_header(None);
                return Ok(Next::H2);
            }
            if !maybe_h2 && let Some(length) = scan.end(&self.pending, limits).map_err(End::Rejected)? {
                self.connection.await_header(None);
                return self.take(length, limits).map(|()| Next::Request).map_err(End::Rejected);
            }
            if !self.pending.is_empty() && !begun {
                begun = true;
                self.connection.await_header(Some(Instant::now() + limits.header_timeout));
            }
            let read = poll_fn(|cx| {
                if self.connection.has_expired(Wait::Header) {
                    let why = if self.pending.is_empty() { Rejection::Idle } else { Rejection::HeaderTimeout };
                    return Poll::Ready(Err(End::Rejected(why)));
                }
                if let Poll::Ready(read) = self.poll_fill(cx) {
                    return Poll::Ready(read.map_err(|_| End::Closed));
                }
                // A request of which a byte has arrived, here or at the kernel, is served.
                if !self.pending.is_empty() {
                    return Poll::Pending;
                }
                is_closing |= closed.as_mut().poll(cx).is_ready();
                let has_unread = || self.socket.as_ref().is_some_and(|socket| socket.get_ref().has_unread());
                if is_closing && !has_unread() { Poll::Ready(Err(End::Closed)) } else { Poll::Pending }
            });
            if read.await? == 0 {
                return Err(End::Closed);
            }
        }
    }

    /// Judges a complete header, and lets it and its body pass.
    fn take(&mut self, length: usize, limits: &Limits) -> Result<(), Rejection> {
        let head = head::judge(self.pending.get(..length).unwrap_or_default(), limits)?;
        let mut length = length;
        if let Some(rewritten) = head.rewritten {
            self.pending.advance(length);
            length = rewritten.len();
            let rest = std::mem::replace(&mut self.pending, BytesMut::from(rewritten.as_slice()));
            self.pending.extend_from_slice(&rest);
        }
        self.exactly = length as u64;
        self.chunks = None;
        self.connection.begin_request();
        match head.body {
            Body::Length(body) => self.exactly += body,
            Body::Chunked => self.chunks = Some(Chunks::new(limits.body_bytes)),
        }
        Ok(())
    }

    /// Answers a rejection, and lets the client read it.
    pub(super) async fn reject(mut self, rejection: Rejection) {
        if let Some(socket) = self.socket.take() {
            linger::reject(socket, rejection).await;
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Ok(0)) };
        self.pending.reserve(READ_AHEAD);
        poll_read_buf(Pin::new(socket), cx, &mut self.pending)
    }

    /// Like [`Self::poll_fill`], while a body is awaited.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let polled = self.poll_fill(cx);
        paced::body(&self.connection, polled, |bytes| *bytes)
    }

    /// Writes or flushes. An HTTP/1 response that has to wait is stalled; on an HTTP/2 connection each stream has its own stall.
    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(Pin<&mut BufWriter<Socket>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let (connection, digest) = (&self.connection, &self.digest);
        // What the kernel has accepted is not what the client has taken.
        let mut write = |cx: &mut Context<'_>| paced::response(connection, digest, poll(Pin::new(&mut *socket), cx), 0, 0);
        if self.mode == Mode::H2 { write(cx) } else { backpressure::writing(connection, cx, write) }
    }

    fn give(&mut self, most: u64, buf: &mut ReadBuf<'_>) -> usize {
        let given = self.pending.len().min(buf.remaining()).min(usize::try_from(most).unwrap_or(usize::MAX));
        buf.put_slice(self.pending.get(..given).unwrap_or_default());
        self.pending.advance(given);
        given
    }

    fn poll_through(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.pending.is_empty() {
            let Some(socket) = &mut self.socket else { return Poll::Ready(Ok(())) };
            return Pin::new(socket).poll_read(cx, buf);
        }
        self.give(u64::MAX, buf);
        Poll::Ready(Ok(()))
    }
}

/// The part that may be a preface.
fn head_of(pending: &[u8]) -> &[u8] {
    pending.get(..H2_PREFACE.len()).unwrap_or(pending)
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let Some(mut socket) = self.socket.take() else { return };
        if (!self.pending.is_empty() || !self.is_between_requests())
            && self.mode == Mode::Requests
            && !self.connection.is_upgraded()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(linger::close(socket));
        } else if !socket.buffer().is_empty() {
            // The beginning of a response that broke off. If the socket has no room for it, its client does not read.
            drop(Pin::new(&mut socket).poll_flush(&mut Context::from_waker(Waker::noop())));
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.mode != Mode::Requests {
            return this.poll_through(cx, buf);
        }
        if this.exactly > 0 {
            if this.pending.is_empty() {
                if this.exactly >= buf.remaining() as u64
                    && let Some(socket) = &mut this.socket
                {
                    let before = buf.filled().len();
                    let polled = Pin::new(socket).poll_read(cx, buf).map_ok(|()| buf.filled().len() - before);
                    this.exactly -= ready!(paced::body(&this.connection, polled, |bytes| *bytes))? as u64;
                    return Poll::Ready(Ok(()));
                }
                if ready!(this.poll_body(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            this.exactly -= this.give(this.exactly, buf) as u64;
            return Poll::Ready(Ok(()));
        }
        if let Some(mut chunks) = this.chunks
            && !(chunks.done() && this.passed == 0)
        {
            if this.passed == 0 {
                if this.pending.is_empty() && ready!(this.poll_body(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
                this.passed = chunks.pass(&this.pending).map_err(|rejection| {
                    this.connection.reject(rejection);
                    io::Error::from(io::ErrorKind::InvalidData)
                })?;
                this.chunks = Some(chunks);
            }
            this.passed -= this.give(this.passed as u64, buf);
            return Poll::Ready(Ok(()));
        }
        // The request is over. What comes now is the answer to an upgrade, the next request, or the client's end.
        if this.connection.is_upgraded() {
            this.mode = Mode::Through;
            return this.poll_through(cx, buf);
        }
        if this.connection.response.is_aborted() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if this.pending.is_empty() && ready!(this.poll_fill(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        // Nothing wakes this read: `next` handles what was read.
        Poll::Pending
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = self.poll_down(cx, |socket, cx| socket.poll_write(cx, bytes));
        self.written(&polled, [bytes]);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket.is_none() {
            return Poll::Ready(Ok(()));
        }
        // The bytes were counted when they were written.
        self.poll_down(cx, |socket, cx| socket.poll_flush(cx).map_ok(|()| 0)).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Some(socket) => Pin::new(socket).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, all: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = self.poll_down(cx, |socket, cx| socket.poll_write_vectored(cx, all));
        self.written(&polled, all.iter().map(|bytes| &**bytes));
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}
