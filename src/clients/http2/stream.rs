//! One request of a client's HTTP/2 connection, between Pingora's session of it and Pingora's proxy.
//!
//! It bounds the request's body and how slowly the client sends it and reads the answer, as `http1` does for HTTP/1. While the proxy
//! waits for a peer that speaks HTTP/2 as well, this session is all that can end the request, because the peer's connection is
//! shared with other requests. So a late peer is noticed here, and the request ends as any other that fails: answered, counted
//! and logged. All the rest is passed on.
//!
//! [`crate::clients::http2`] makes one per request; [`crate::clients::connection`] says when it is given up.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora::{
    Error, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    protocols::{
        Digest, SocketDigest,
        http::{
            HttpTask,
            custom::{CustomMessageWrite, server::Session},
            v2::server::HttpSession,
        },
        l4::socket::SocketAddr,
    },
};

use crate::clients::{
    backpressure,
    connection::{self, Wait},
    reject::Rejection,
};

/// What a client may read before it opens its window again: half of the window that HTTP/2 begins with.
const UNSEEN: u64 = 32 * 1024;

/// A request of HTTP/2.
pub(super) struct StreamSession {
    inner: HttpSession,
    /// The connection's, which all of its streams share.
    socket: Option<Arc<SocketDigest>>,
    /// Bytes of the body so far, and how many there may be.
    received: u64,
    body_bytes: Option<u64>,
}

impl StreamSession {
    pub(super) fn new(inner: HttpSession, body_bytes: Option<u64>) -> Self {
        let socket = inner.digest().and_then(|digest| digest.socket_digest.clone());
        Self { inner, socket, received: 0, body_bytes }
    }

    /// Counts bytes of the body.
    fn received(&mut self, bytes: usize) -> Result<()> {
        connection::moved(bytes);
        self.received += bytes as u64;
        if self.body_bytes.is_some_and(|most| self.received > most) {
            connection::refuse(Rejection::BodyBytes);
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is too long");
        }
        Ok(())
    }
}

/// Waits for a write of `bytes`; fails when the client reads too slowly.
async fn paced<T>(socket: Option<&SocketDigest>, bytes: usize, write: impl Future<Output = Result<T>>) -> Result<T> {
    let mut write = pin!(write);
    let Some(socket) = socket else { return write.await };
    poll_fn(|cx| match backpressure::writing(cx, |cx| write.as_mut().poll(cx)) {
        Poll::Ready(written) => {
            connection::wrote(socket, bytes as u64);
            Poll::Ready(written)
        }
        Poll::Pending if connection::expired(Wait::Reader) && connection::reads_too_slowly(socket) => {
            connection::refuse(Rejection::SlowReader);
            Poll::Ready(
                Error::e_explain(ErrorType::WriteTimedout, "the client reads too slowly").map_err(|e: Box<Error>| e.into_down()),
            )
        }
        Poll::Pending => {
            connection::waits_to_write(socket, UNSEEN);
            Poll::Pending
        }
    })
    .await
}

/// Ends a request by a message to its client. While a peer that speaks HTTP/2 does not take the body, and after that while its answer
/// is waited for, Pingora's proxy does not look at this session; messages are all that it looks at. The only message is that the
/// request is given up.
struct GiveUp;

#[async_trait]
impl CustomMessageWrite for GiveUp {
    fn set_write_timeout(&mut self, _timeout: Option<Duration>) {}

    async fn write_custom_message(&mut self, _message: Bytes) -> Result<()> {
        Error::e_explain(ErrorType::WriteTimedout, "the peer does not take the body").map_err(|e: Box<Error>| e.into_up())
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Messages of other protocols, of which HTTP/2 has none.
type Messages = Box<dyn tokio_stream::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

#[async_trait]
impl Session for StreamSession {
    /// Fails once the request is given up, and when the body is too long or comes too slowly.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let read = {
            let mut read = pin!(self.inner.read_body_or_idle(no_body_expected));
            poll_fn(|cx| match read.as_mut().poll(cx) {
                Poll::Ready(read) => Poll::Ready(read),
                Poll::Pending if connection::given_up() => {
                    Poll::Ready(Error::e_explain(ErrorType::ReadTimedout, "the request is given up"))
                }
                Poll::Pending if no_body_expected => Poll::Pending,
                Poll::Pending if connection::expired(Wait::Body) => {
                    connection::refuse(Rejection::SlowBody);
                    Poll::Ready(Error::e_explain(ErrorType::ReadTimedout, "the body comes too slowly"))
                }
                Poll::Pending => {
                    connection::waits();
                    Poll::Pending
                }
            })
            .await?
        };
        self.received(read.as_ref().map_or(0, Bytes::len))?;
        Ok(read)
    }

    fn req_header(&self) -> &RequestHeader {
        self.inner.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner.req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.inner.read_body_bytes().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.inner.drain_request_body().await
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.inner.write_response_header(response, end)
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.inner.write_response_header_ref(response, end)
    }

    async fn write_body(&mut self, bytes: Bytes, end: bool) -> Result<()> {
        paced(self.socket.as_deref(), bytes.len(), self.inner.write_body(bytes, end)).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner.write_trailers(trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let body = |task: &HttpTask| if let HttpTask::Body(Some(bytes), _) = task { bytes.len() } else { 0 };
        let bytes = tasks.iter().map(body).sum();
        paced(self.socket.as_deref(), bytes, self.inner.response_duplex_vec(tasks)).await
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner.response_written()
    }

    async fn shutdown(&mut self, code: u32, _why: &str) {
        self.inner.shutdown_with_reason(code.into());
    }

    async fn abandon(&mut self, _why: &str) {
        self.inner.shutdown();
    }

    fn is_body_done(&mut self) -> bool {
        self.inner.is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.inner.finish()
    }

    fn is_body_empty(&mut self) -> bool {
        self.inner.is_body_empty()
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner.pseudo_raw_h1_request_header()
    }

    fn enable_retry_buffering(&mut self) {
        self.inner.enable_retry_buffering();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.inner.retry_buffer_truncated()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.inner.get_retry_buffer()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<Messages> {
        Some(Box::new(tokio_stream::empty()))
    }

    fn restore_custom_message_reader(&mut self, _reader: Messages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        (connection::shares_peer() && !self.inner.is_body_done()).then(|| Box::new(GiveUp) as Box<dyn CustomMessageWrite>)
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
