//! A client's HTTP/2 connection: its limits, and its requests, each with a [`Connection`] of its own.
//!
//! [`super::edge`] hands over a connection that begins with HTTP/2. Pingora accepts the streams; none is answered here.

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

use self::stream::StreamSession;
use super::{
    backpressure::{self, STALLED_STREAMS},
    client_stream::ClientStream,
    connection::{ClientInfo, Connection},
    frame_watcher::FrameWatcher,
    head,
    linger::LINGER,
    listener::ListenerState,
    reject::Rejection,
    shared::Shared,
};
use crate::access_log::{Entry, shortened};

/// The limit of the h2 library, as a multiple of `header_bytes`: higher than ours, so that almost every header that is too long is
/// rejected, and counted, here.
const HEADERS: u32 = 4;
/// How many bytes a client may send unasked on a stream, and on all streams of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How much of a response the library buffers, per stream.
const SEND_BUFFER: usize = 16 * 1024;
/// How long a client without a request may take to answer GOAWAY and PING when the process stops.
const GOAWAY_LINGER: Duration = Duration::from_secs(1);

/// One connection, as an application of Pingora's server.
struct Http2App<A> {
    shared: Arc<Shared<A>>,
    listening: Arc<ListenerState>,
    client: Arc<ClientInfo>,
    options: HttpServerOptions,
    requests: AtomicU32,
    /// How many responses were handed to the library from their beginning to their end. One of a stream that was reset is not, and
    /// nothing of it has to be sent any more.
    complete: Arc<AtomicU32>,
    /// Set when the client shall send no further requests on this connection.
    last: watch::Sender<bool>,
    /// How many requests run.
    running: AtomicUsize,
    /// Notified when the first of them begins and when the last one ends.
    changed: Notify,
    /// One permit for each response that may wait for the client.
    unread: Arc<Semaphore>,
}

/// Serves a connection until it ends.
pub(super) async fn serve<A: HttpServerApp + Send + Sync + 'static>(
    shared: &Arc<Shared<A>>,
    mut stream: Box<ClientStream>,
    listening: &Arc<ListenerState>,
    connection: &Connection,
    stopping: &ShutdownWatch,
) {
    let limits = &listening.limits;
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(limits.idle_timeout);
    let (last, mut is_last) = watch::channel(*stopping.borrow());
    let h2 = Arc::new(Http2App {
        shared: Arc::clone(shared),
        listening: Arc::clone(listening),
        client: Arc::clone(&connection.client),
        options,
        requests: AtomicU32::new(0),
        complete: Arc::default(),
        last,
        running: AtomicUsize::new(0),
        changed: Notify::new(),
        unread: Arc::new(Semaphore::new(STALLED_STREAMS)),
    });
    let written = Arc::new(AtomicU32::new(0));
    let report = {
        let h2 = Arc::clone(&h2);
        move |rejection| h2.shared.rejections.connection(rejection, h2.client.address, &h2.client.listener)
    };
    stream.watch(FrameWatcher::new(report, Arc::clone(&written)));
    let mut stopping = stopping.clone();
    let mut last_watch = is_last.clone();
    last_watch.mark_unchanged();
    let mut served = pin!(h2.process_new(stream as Stream, &last_watch));
    tokio::select! {
        _ = &mut served => return,
        _ = is_last.wait_for(|is_last| *is_last) => {}
        _ = stopping.changed() => drop(h2.last.send_replace(true)),
    }
    // After GOAWAY Pingora waits for the client without a bound. Dropping the connection closes it.
    tokio::select! {
        _ = served => {}
        () = h2.is_over(&written) => {}
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Http2App<A> {
    /// Returns when no request has run for `idle_timeout`, or at once when the process closes idle connections and every response was
    /// sent.
    async fn is_over(&self, written: &AtomicU32) {
        loop {
            if self.running.load(SeqCst) > 0 {
                self.changed.notified().await;
                continue;
            }
            let unused = async {
                self.shared.closing.closed().await;
                // The library may still have to send what it buffers of a response.
                if written.load(Relaxed) < self.complete.load(Relaxed) {
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

/// Counts a request that runs.
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

/// The access log entry of a rejected request.
fn entry_of(request: &RequestHeader, client: &ClientInfo) -> Entry {
    let host = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or_else(|| request.headers.get(header::HOST).map(HeaderValue::as_bytes)).unwrap_or_default();
    Entry {
        method: request.method.to_string(),
        host: shortened(host),
        target: shortened(request.raw_path()),
        version: "HTTP/2.0",
        tls: client.tls,
        ..Entry::default()
    }
}

/// Answers a rejected request.
async fn answer(stream: &mut HttpSession, rejection: Rejection) -> pingora::Result<()> {
    let body = rejection.body();
    let mut response = ResponseHeader::build(rejection.status(), Some(5))?;
    for (name, value) in rejection.fields() {
        response.insert_header(name, value)?;
    }
    let is_head = stream.req_header().method == Method::HEAD;
    stream.write_response_header(Box::new(response), is_head)?;
    if is_head {
        return Ok(());
    }
    // A client with a closed window does not read it.
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
        let judged = match head::judge_h2(stream.req_header_mut(), limits) {
            Ok(()) if self.listening.has_too_many_unread() => Err(Rejection::UnreadResponses),
            judged => judged,
        };
        if let Err(rejection) = judged {
            let request = entry_of(stream.req_header(), &self.client);
            self.shared.rejections.request(rejection, self.client.address, &self.client.listener, request);
            match answer(&mut stream, rejection).await {
                Ok(()) => drop(self.complete.fetch_add(1, Relaxed)),
                Err(e) => log::debug!("a client did not read why its request was rejected reason={rejection} error={e}"),
            }
            return None;
        }
        let connection = Connection::new(Arc::clone(&self.client), Arc::clone(&self.shared.rejections));
        let session =
            ServerSession::new_custom(Box::new(StreamSession::new(stream, Arc::clone(&connection), Arc::clone(&self.complete))));
        let request = self.shared.app.process_new_http(session, stopping);
        connection.watch(backpressure::bounded(&connection, request, &self.listening.stalled, Some(&self.unread))).await;
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
