//! One request of a client's HTTP/2 connection, between Pingora's session of it and Pingora's proxy.
//!
//! It bounds the length of the request body and the pace of the client, as `client_stream` does for HTTP/1. While the proxy waits for a peer
//! that uses HTTP/2 as well, only this session can end the request, because the peer's connection is shared with other requests. So
//! the response timeout is noticed here, and the request ends like any other that fails: answered, counted and logged. Everything
//! else is delegated.
//!
//! [`super::serve`] makes one per request. Its digest hands the stream's [`Connection`] to the proxy.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
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
        Digest,
        http::{
            HttpTask,
            custom::{CustomMessageWrite, server::Session},
            v2::server::HttpSession,
        },
        l4::socket::SocketAddr,
    },
};

use crate::clients::{backpressure, body_limit::BodyLimit, connection::Connection, paced};

/// What a client may read before it opens its window again: half of the window that HTTP/2 begins with.
const UNSEEN: u64 = 32 * 1024;

/// A request of HTTP/2.
pub(super) struct StreamSession {
    inner: HttpSession,
    connection: Arc<Connection>,
    /// As the TCP connection's, with the stream's [`Connection`].
    digest: Digest,
    body: BodyLimit,
    /// Counts this response once it is complete; none afterwards.
    complete: Option<Arc<AtomicU32>>,
}

impl StreamSession {
    /// `complete` counts the responses that were handed to the library from their beginning to their end.
    pub(super) fn new(inner: HttpSession, connection: Arc<Connection>, complete: Arc<AtomicU32>) -> Self {
        let socket_digest = inner.digest().and_then(|digest| digest.socket_digest.clone());
        let digest = Digest { socket_digest, proxy_digest: connection.digest(), ..Digest::default() };
        let body = BodyLimit::new(connection.client.limits.body_bytes);
        Self { inner, connection, digest, body, complete: Some(complete) }
    }

    /// Counts the response if `sent` says that it has ended.
    fn ended<T>(&mut self, sent: Result<T>, ends: impl FnOnce(&T) -> bool) -> Result<T> {
        if sent.as_ref().is_ok_and(ends)
            && let Some(complete) = self.complete.take()
        {
            complete.fetch_add(1, Relaxed);
        }
        sent
    }
}

/// Waits for a write of `bytes`; fails when the client reads too slowly.
async fn paced_write<T>(
    connection: &Arc<Connection>,
    digest: &Digest,
    bytes: usize,
    write: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut write = pin!(write);
    let Some(socket) = &digest.socket_digest else { return write.await };
    poll_fn(|cx| {
        let polled = backpressure::writing(connection, cx, |cx| write.as_mut().poll(cx));
        paced::response(connection, socket, polled, bytes as u64, UNSEEN)
    })
    .await
}

/// Aborts a request by a message to its client. While an HTTP/2 peer does not take the body, and then until its response, Pingora's
/// proxy does not poll this session; it only waits for messages. The only message is that the request is aborted.
struct Abort;

#[async_trait]
impl CustomMessageWrite for Abort {
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
    /// Fails once the request is aborted, and when the body is too long or comes too slowly.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let Self { inner, connection, body, .. } = self;
        let mut read = pin!(inner.read_body_or_idle(no_body_expected));
        let length = |read: &Option<Bytes>| read.as_ref().map_or(0, Bytes::len);
        let read = poll_fn(|cx| match read.as_mut().poll(cx) {
            Poll::Pending if connection.response.is_aborted() => {
                Poll::Ready(Error::e_explain(ErrorType::ReadTimedout, "the request is aborted"))
            }
            Poll::Pending if no_body_expected => Poll::Pending,
            polled => paced::body(connection, polled, length),
        })
        .await?;
        if let Err(rejection) = body.add(length(&read) as u64) {
            connection.reject(rejection);
            return Error::e_explain(ErrorType::HTTPStatus(rejection.status()), "the body is too long");
        }
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
        let sent = self.inner.write_response_header(response, end);
        self.ended(sent, |()| end)
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        let sent = self.inner.write_response_header_ref(response, end);
        self.ended(sent, |()| end)
    }

    async fn write_body(&mut self, bytes: Bytes, end: bool) -> Result<()> {
        let sent = paced_write(&self.connection, &self.digest, bytes.len(), self.inner.write_body(bytes, end)).await;
        self.ended(sent, |()| end)
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        let sent = self.inner.write_trailers(trailers);
        self.ended(sent, |()| true)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let body = |task: &HttpTask| if let HttpTask::Body(Some(bytes), _) = task { bytes.len() } else { 0 };
        let bytes = tasks.iter().map(body).sum();
        let sent = paced_write(&self.connection, &self.digest, bytes, self.inner.response_duplex_vec(tasks)).await;
        self.ended(sent, |ends| *ends)
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
        let sent = self.inner.finish();
        self.ended(sent, |()| true)
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
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Some(&mut self.digest)
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
        (self.connection.response.is_shared() && !self.inner.is_body_done())
            .then(|| Box::new(Abort) as Box<dyn CustomMessageWrite>)
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
