//! A client's HTTP/2 connection: its bounds, and its requests, each of which is watched as a connection of HTTP/1 is.
//!
//! [`crate::clients`] hands over a connection that begins with HTTP/2. Pingora accepts the requests; none is answered here.

pub(super) mod refused;
mod stream;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use pingora::{
    apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp},
    http::{RequestHeader, ResponseHeader},
    protocols::{
        Stream,
        http::{
            ServerSession,
            v2::server::{H2Options, HttpSession, default_h2_options},
        },
    },
    server::ShutdownWatch,
};
use tokio::sync::{Notify, Semaphore, watch};

use self::{refused::FrameWatcher, stream::StreamSession};
use super::{
    Edge, ListenerState,
    backpressure::{self, STALLED_STREAMS},
    connection::{self, ClientInfo},
    head,
    http1::{ClientStream, LINGER},
    reject::Rejection,
};
use crate::access_log::{Entry, shortened};

/// The library keeps so many times `header_bytes` of a header, so that the usual one that is too long is judged, and counted, by us.
const HEADERS: u32 = 4;
/// What a client may send on a stream, and on all of a connection, before it is asked for more.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What the library keeps of a response that it cannot send yet; of every stream, so that this times `streams_per_connection` counts.
const SEND_BUFFER: usize = 16 * 1024;
/// A client that was sent GOAWAY, and has no request, when the process stops: its answer to the PING may be on its way.
const GOAWAY_LINGER: Duration = Duration::from_secs(1);

/// A connection, as Pingora asks for it.
struct Http2App<A> {
    edge: Edge<A>,
    listening: Arc<ListenerState>,
    ends: Arc<ClientInfo>,
    options: HttpServerOptions,
    requests: AtomicU32,
    /// Tells the client to begin no more requests here.
    last: watch::Sender<bool>,
    /// Requests that run now.
    running: AtomicUsize,
    /// Notified when the first of them begins and when the last one ends.
    changed: Notify,
    /// Places for responses that wait for the client.
    unread: Arc<Semaphore>,
}

/// Serves a connection until it ends.
pub(super) async fn serve<A: HttpServerApp + Send + Sync + 'static>(
    edge: &Edge<A>,
    mut wire: Box<ClientStream>,
    listening: &Arc<ListenerState>,
    ends: &Arc<ClientInfo>,
    stopping: &ShutdownWatch,
) {
    let limits = &listening.limits;
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(limits.idle_timeout);
    let (last, mut goes) = watch::channel(*stopping.borrow());
    let h2 = Arc::new(Http2App {
        edge: edge.clone(),
        listening: Arc::clone(listening),
        ends: Arc::clone(ends),
        options,
        requests: AtomicU32::new(0),
        last,
        running: AtomicUsize::new(0),
        changed: Notify::new(),
        unread: Arc::new(Semaphore::new(STALLED_STREAMS)),
    });
    let written = Arc::new(AtomicU32::new(0));
    let (of, client, ended) = (Arc::clone(listening), ends.client, Arc::clone(&written));
    let count = edge.clone();
    wire.watch(FrameWatcher::new(move |rejection| count.reject(rejection, client, &of), ended));
    let mut stopping = stopping.clone();
    let mut told = goes.clone();
    told.mark_unchanged();
    let mut served = pin!(h2.process_new(wire as Stream, &told));
    tokio::select! {
        _ = &mut served => return,
        _ = goes.wait_for(|goes| *goes) => {}
        _ = stopping.changed() => drop(h2.last.send_replace(true)),
    }
    // After GOAWAY Pingora waits for the client, however long it takes. To drop the connection is to close it.
    tokio::select! {
        _ = served => {}
        () = h2.is_over(&written) => {}
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Http2App<A> {
    /// Returns when no request has run for as long as a connection may be idle, or at once where the process asks idle connections
    /// to go and every response was sent.
    async fn is_over(&self, written: &AtomicU32) {
        loop {
            if self.running.load(SeqCst) > 0 {
                self.changed.notified().await;
                continue;
            }
            let unused = async {
                self.edge.idle_closed().await;
                // A client that reads slowly has still to get what the library keeps of a response.
                if written.load(Relaxed) < self.requests.load(Relaxed) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(GOAWAY_LINGER).await;
            };
            tokio::select! {
                () = unused => return,
                () = tokio::time::sleep(self.listening.limits.idle_timeout) => return,
                () = self.changed.notified() => {}
            }
        }
    }
}

/// A request that runs.
struct Running<'a, A>(&'a Http2App<A>);

impl<'a, A> Running<'a, A> {
    fn new(h2: &'a Http2App<A>) -> Self {
        if h2.running.fetch_add(1, SeqCst) == 0 {
            h2.changed.notify_one();
        }
        Self(h2)
    }
}

impl<A> Drop for Running<'_, A> {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, SeqCst) == 1 {
            self.0.changed.notify_one();
        }
    }
}

/// What the access log says of a request that is refused.
fn described(request: &RequestHeader, ends: &ClientInfo) -> Entry {
    let host = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or_else(|| request.headers.get(header::HOST).map(HeaderValue::as_bytes)).unwrap_or_default();
    Entry {
        method: request.method.to_string(),
        host: shortened(host),
        target: shortened(request.raw_path()),
        version: "HTTP/2.0",
        tls: ends.tls,
        ..Entry::default()
    }
}

/// Answers a rejection.
async fn refuse(stream: &mut HttpSession, rejection: Rejection) -> pingora::Result<()> {
    let body = rejection.body();
    let mut response = ResponseHeader::build(rejection.status(), Some(5))?;
    response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    if rejection.status() == 503 {
        response.insert_header(header::RETRY_AFTER, HeaderValue::from_static("1"))?;
    }
    let is_head = stream.req_header().method == Method::HEAD;
    stream.write_response_header(Box::new(response), is_head)?;
    if is_head {
        return Ok(());
    }
    // A client that has opened no window does not read it.
    stream.set_write_timeout(Some(LINGER));
    stream.write_body(Bytes::from_static(body.as_bytes()), true).await
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> HttpServerApp for Http2App<A> {
    async fn process_new_http(self: &Arc<Self>, session: ServerSession, stopping: &ShutdownWatch) -> Option<ReusedHttpStream> {
        let limits = &self.listening.limits;
        let _running = Running::new(self);
        if self.requests.fetch_add(1, Relaxed) + 1 >= limits.requests_per_connection {
            self.last.send_if_modified(|last| !std::mem::replace(last, true));
        }
        let ServerSession::H2(mut stream) = session else { return None };
        let judged = head::judge_h2(stream.req_header_mut(), limits);
        let judged =
            judged.and_then(|()| if self.listening.has_too_many_unread() { Err(Rejection::UnreadResponses) } else { Ok(()) });
        if let Err(rejection) = judged {
            let request = described(stream.req_header(), &self.ends);
            self.edge.reject_request(rejection, self.ends.client, &self.listening, request);
            if let Err(e) = refuse(&mut stream, rejection).await {
                log::debug!("a client did not read why its request was rejected reason={rejection} error={e}");
            }
            return None;
        }
        let session = ServerSession::new_custom(Box::new(StreamSession::new(stream, limits.body_bytes)));
        connection::watched(Arc::clone(&self.ends), async {
            let request = self.edge.app().process_new_http(session, stopping);
            backpressure::bounded(request, &self.listening.stalled, Some(&self.unread)).await;
            if let Some(rejection) = connection::refused() {
                self.edge.count(rejection, &self.listening);
            }
        })
        .await;
        None
    }

    fn h2_options(&self) -> Option<H2Options> {
        let limits = &self.listening.limits;
        let mut options = default_h2_options();
        options.max_concurrent_streams(limits.streams_per_connection);
        options.max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX).saturating_mul(HEADERS));
        options.max_send_buffer_size(SEND_BUFFER);
        options.initial_window_size(STREAM_WINDOW);
        options.initial_connection_window_size(CONNECTION_WINDOW);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
