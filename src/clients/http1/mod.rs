//! The bytes of one client's connection, between its socket and Pingora.
//!
//! Under HTTP/1 a header is read here whole, bounded in time and size, and judged before Pingora sees a byte of it; then Pingora
//! is given exactly that header and its body, whose end is found here as well, and nothing of the request behind it. So what a
//! peer gets never hangs on how two parsers read the same bytes, a rejection can be answered and counted, and pipelined requests
//! wait for their turn. Under HTTP/2, and once a connection is upgraded, bytes go through as they come.
//!
//! [`crate::clients`] makes one per connection. How fast its bytes move is told to [`crate::clients::connection`].

pub(super) mod chunks;
mod paced;
mod traits;

use std::{
    future::poll_fn,
    io,
    os::fd::RawFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use pingora::protocols::SocketDigest;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf},
    time::timeout,
};
use tokio_util::io::poll_read_buf;

use self::chunks::Chunks;
use super::{
    backpressure,
    closing::Closing,
    connection::{self, Wait},
    head::{self, Body, Scan},
    http2::refused::FrameWatcher,
    reject::Rejection,
    socket::Socket,
};
use crate::config::Limits;

/// What an HTTP/2 client says first (RFC 9113, section 3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Read at once, outside of bodies.
const READ_AHEAD: usize = 4096;
/// Small writes that belong together are one packet.
const WRITE_BUFFER: usize = 4096;
/// A client that was refused while it was still sending has to read the answer before the connection is reset.
pub(super) const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 1024 * 1024;

/// A client's connection.
pub(super) struct ClientStream {
    /// None once it lingers without this.
    socket: Option<BufWriter<Socket>>,
    fd: RawFd,
    digest: Arc<SocketDigest>,
    /// Read, and not given to Pingora.
    pending: BytesMut,
    /// So many bytes more are given as they are.
    exactly: u64,
    /// After these, a chunked body.
    chunks: Option<Chunks>,
    /// So many of the pending bytes have passed as parts of the chunked body.
    passed: usize,
    mode: Mode,
    /// Of HTTP/2, as they go out.
    frames: Option<FrameWatcher>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Requests,
    H2,
    /// A WebSocket.
    Through,
}

/// What a client begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Request,
    H2,
}

/// Whether a client may begin with HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Http2Start {
    No,
    /// If it does so.
    Maybe,
    /// It has said so in the TLS handshake; whatever comes then is for h2 to judge.
    Agreed,
}

/// Why there is no next request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client has gone, or is asked to go while it has nothing to ask.
    Closed,
    Refused(Rejection),
}

impl ClientStream {
    pub(super) fn new(socket: Socket) -> Self {
        let fd = socket.fd();
        Self {
            socket: Some(BufWriter::with_capacity(WRITE_BUFFER, socket)),
            fd,
            digest: Arc::new(SocketDigest::from_raw_fd(fd)),
            pending: BytesMut::new(),
            exactly: 0,
            chunks: None,
            passed: 0,
            mode: Mode::Requests,
            frames: None,
        }
    }

    /// What it is spoken over.
    pub(super) fn socket(&self) -> Option<&Socket> {
        self.socket.as_ref().map(BufWriter::get_ref)
    }

    /// Looks at the frames of HTTP/2 that go out.
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

    /// Waits for the next header, judges it, and lets it through to Pingora. `closing` closes connections without a request;
    /// `h2` is for the first header of a connection.
    ///
    /// # Errors
    /// When there is none that may pass.
    pub(super) async fn next(&mut self, limits: &Limits, h2: Http2Start, closing: &Closing) -> Result<Next, End> {
        let mut scan = Scan::default();
        let mut begun = false;
        let mut closed = pin!(closing.closed());
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
                connection::await_header(None);
                return Ok(Next::H2);
            }
            if !maybe_h2 && let Some(length) = scan.end(&self.pending, limits).map_err(End::Refused)? {
                connection::await_header(None);
                return self.take(length, limits).map(|()| Next::Request).map_err(End::Refused);
            }
            if !self.pending.is_empty() && !begun {
                begun = true;
                connection::await_header(Some(Instant::now() + limits.header_timeout));
            }
            let read = poll_fn(|cx| {
                if connection::expired(Wait::Header) {
                    let why = if self.pending.is_empty() { Rejection::Idle } else { Rejection::HeaderTimeout };
                    return Poll::Ready(Err(End::Refused(why)));
                }
                if let Poll::Ready(read) = self.poll_fill(cx) {
                    return Poll::Ready(read.map_err(|_| End::Closed));
                }
                // Looked at only where there is nothing: a request that has begun is served.
                if self.pending.is_empty() && closed.as_mut().poll(cx).is_ready() {
                    Poll::Ready(Err(End::Closed))
                } else {
                    Poll::Pending
                }
            });
            if read.await? == 0 {
                return Err(End::Closed);
            }
        }
    }

    /// Lets a header pass, and what its body will be.
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
        match head.body {
            Body::Length(body) => self.exactly += body,
            Body::Chunked => self.chunks = Some(Chunks::new(limits.body_bytes)),
        }
        Ok(())
    }

    /// Answers a rejection, and lets the client read it.
    pub(super) async fn refuse(mut self, rejection: Rejection) {
        if let (Some(mut socket), Some(answer)) = (self.socket.take(), rejection.answer()) {
            let told = async {
                socket.write_all(answer.as_bytes()).await?;
                socket.flush().await
            };
            // Whoever does not read is not waited for.
            if matches!(timeout(LINGER, told).await, Ok(Ok(()))) {
                linger(socket).await;
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Ok(0)) };
        self.pending.reserve(READ_AHEAD);
        poll_read_buf(Pin::new(socket), cx, &mut self.pending)
    }

    /// As [`Self::poll_fill`], of a body that is being waited for.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let polled = self.poll_fill(cx);
        paced::read(polled)
    }

    /// Writes or flushes. A response of HTTP/1 that has to wait is stalled; on an HTTP/2 connection each stream is by itself.
    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(Pin<&mut BufWriter<Socket>>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let digest = &self.digest;
        let mut write = |cx: &mut Context<'_>| paced::write(digest, poll(Pin::new(&mut *socket), cx));
        if self.mode == Mode::H2 { write(cx) } else { backpressure::writing(cx, write) }
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

/// As much as a preface has.
fn head_of(pending: &[u8]) -> &[u8] {
    pending.get(..H2_PREFACE.len()).unwrap_or(pending)
}

/// Lets a client that is still sending read what it was told: closing at once would reset the connection.
async fn linger(mut socket: BufWriter<Socket>) {
    let gone = async {
        socket.shutdown().await?;
        tokio::io::copy(&mut socket.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // However it ends, it has ended.
    drop(timeout(LINGER, gone).await);
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let Some(mut socket) = self.socket.take() else { return };
        if (!self.pending.is_empty() || !self.is_between_requests())
            && self.mode == Mode::Requests
            && !connection::is_upgraded()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(linger(socket));
        } else if !socket.buffer().is_empty() {
            // The begin of an answer that broke off. The socket has room for it, or has a client that does not read.
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
                    this.exactly -= ready!(paced::read(polled))? as u64;
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
                    connection::refuse(rejection);
                    io::Error::from(io::ErrorKind::InvalidData)
                })?;
                this.chunks = Some(chunks);
            }
            this.passed -= this.give(this.passed as u64, buf);
            return Poll::Ready(Ok(()));
        }
        // The request is over. What comes now is the answer to an upgrade, the next request, or the client's end.
        if connection::is_upgraded() {
            this.mode = Mode::Through;
            return this.poll_through(cx, buf);
        }
        if connection::given_up() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if this.pending.is_empty() && ready!(this.poll_fill(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        // Nothing is woken: the wait for the next request finds it.
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
        // What is flushed was counted when it was written.
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
