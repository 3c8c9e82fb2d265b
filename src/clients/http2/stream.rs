//! One request of a client's HTTP/2 connection, between Pingora's session of it and Pingora's proxy.
//!
//! While the proxy waits for a peer that speaks HTTP/2 as well, it looks at nothing but that peer and this session, and the peer's
//! connection is shared with other requests. So when such a peer is late, or the client is with its body, it is this session that says
//! so, and the request ends as any other that fails: answered, counted and logged. All the rest is passed on.
//!
//! [`crate::clients::http2`] makes one per request; [`crate::clients::connection`] says when it is given up.

use std::{
    future::{Future, poll_fn},
    pin::pin,
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

use crate::clients::{backpressure, connection};

/// A request of HTTP/2.
pub(super) struct StreamSession(pub HttpSession);

/// Writes; while the client takes nothing, the response is stalled.
async fn written<F: Future>(write: F) -> F::Output {
    let mut write = pin!(write);
    poll_fn(|cx| backpressure::writing(cx, |cx| write.as_mut().poll(cx))).await
}

/// Messages of other protocols, of which HTTP/2 has none.
type Messages = Box<dyn tokio_stream::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

#[async_trait]
impl Session for StreamSession {
    /// Fails once the request is given up.
    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let given_up = poll_fn(|_| if connection::given_up() { Poll::Ready(()) } else { Poll::Pending });
        tokio::select! {
            biased;
            read = self.0.read_body_or_idle(no_body_expected) => read,
            () = given_up => Error::e_explain(ErrorType::ReadTimedout, "the request is given up"),
        }
    }

    fn req_header(&self) -> &RequestHeader {
        self.0.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.0.req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.0.read_body_bytes().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.0.drain_request_body().await
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.0.write_response_header(response, end)
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, end: bool) -> Result<()> {
        self.0.write_response_header_ref(response, end)
    }

    async fn write_body(&mut self, bytes: Bytes, end: bool) -> Result<()> {
        written(self.0.write_body(bytes, end)).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.0.write_trailers(trailers)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        written(self.0.response_duplex_vec(tasks)).await
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.0.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.0.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.0.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.0.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.0.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.0.response_written()
    }

    async fn shutdown(&mut self, code: u32, _why: &str) {
        self.0.shutdown_with_reason(code.into());
    }

    async fn abandon(&mut self, _why: &str) {
        self.0.shutdown();
    }

    fn is_body_done(&mut self) -> bool {
        self.0.is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.0.finish()
    }

    fn is_body_empty(&mut self) -> bool {
        self.0.is_body_empty()
    }

    fn body_bytes_sent(&self) -> usize {
        self.0.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.0.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.0.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.0.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.0.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.0.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.0.pseudo_raw_h1_request_header()
    }

    fn enable_retry_buffering(&mut self) {
        self.0.enable_retry_buffering();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.0.retry_buffer_truncated()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.0.get_retry_buffer()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<Messages> {
        None
    }

    fn restore_custom_message_reader(&mut self, _reader: Messages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
