//! A client's HTTP/2 connection: its bounds, and its requests, each of which is watched as a connection of HTTP/1 is.
//!
//! [`crate::clients`] hands over a connection that begins with HTTP/2. Pingora accepts the requests; none is answered here.

pub(super) mod refused;
mod stream;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
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
use tokio::sync::watch;

use self::{refused::FrameWatcher, stream::StreamSession};
use super::{
    Edge, ListenerState,
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

/// A connection, as Pingora asks for it.
struct Http2App<A> {
    edge: Edge<A>,
    listening: Arc<ListenerState>,
    ends: Arc<ClientInfo>,
    options: HttpServerOptions,
    requests: AtomicU32,
    /// Tells the client to begin no more requests here.
    last: watch::Sender<bool>,
}

/// Serves a connection until it ends.
pub(super) async fn serve<A: HttpServerApp + Send + Sync + 'static>(
    edge: &Edge<A>,
    mut wire: Box<ClientStream>,
    listening: &Arc<ListenerState>,
    ends: &Arc<ClientInfo>,
    stopping: &ShutdownWatch,
) {
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(listening.limits.idle_timeout);
    let (last, mut told) = watch::channel(*stopping.borrow());
    let h2 = Arc::new(Http2App {
        edge: edge.clone(),
        listening: Arc::clone(listening),
        ends: Arc::clone(ends),
        options,
        requests: AtomicU32::new(0),
        last,
    });
    let (edge, of, client) = (edge.clone(), Arc::clone(listening), ends.client);
    wire.watch(FrameWatcher::new(move |rejection| edge.reject(rejection, client, &of)));
    let mut stopping = stopping.clone();
    told.mark_unchanged();
    let mut served = pin!(h2.process_new(wire as Stream, &told));
    tokio::select! {
        _ = &mut served => return,
        _ = stopping.changed() => drop(h2.last.send_replace(true)),
    }
    served.await;
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
    let mut response = ResponseHeader::build(rejection.status(), Some(4))?;
    response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
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
        if self.requests.fetch_add(1, Relaxed) + 1 >= limits.requests_per_connection {
            self.last.send_if_modified(|last| !std::mem::replace(last, true));
        }
        let ServerSession::H2(mut stream) = session else { return None };
        if let Err(rejection) = head::judge_h2(stream.req_header_mut(), limits) {
            let request = described(stream.req_header(), &self.ends);
            self.edge.reject_request(rejection, self.ends.client, &self.listening, request);
            if let Err(e) = refuse(&mut stream, rejection).await {
                log::debug!("a client was not told why its request was rejected reason={rejection} error={e}");
            }
            return None;
        }
        let session = ServerSession::new_custom(Box::new(StreamSession::new(stream, limits.body_bytes)));
        connection::watched(Arc::clone(&self.ends), async {
            self.edge.app().process_new_http(session, stopping).await;
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
        options.initial_window_size(STREAM_WINDOW);
        options.initial_connection_window_size(CONNECTION_WINDOW);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
