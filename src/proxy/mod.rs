//! The way of a request, section by section of Pingora's phases: route, pick and lease a peer, forward, count.
//!
//! The accept loop in [`edge`] calls it for every request. It reads one snapshot per request and never waits for a lock; it
//! knows nothing of the controller that stores snapshots.

mod chunks;
mod connection;
pub mod edge;
mod failure;
mod forward;
mod head;
mod proxy_protocol;
mod refusal;
mod response;
pub mod tls;
mod wire;

use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Version, header};
use pingora::{
    BError, Error, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    protocols::{Digest, http::ServerSession},
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session},
    upstreams::peer::HttpPeer,
};

use self::{failure::Failure, forward::RequestId, refusal::Refusal};
use crate::{
    access_log::{AccessLog, Entry, shortened},
    metrics::{ErrorKind, Metrics},
    pool::{Lease, Peer, Refused},
    snapshot::{Service, Snapshot, SnapshotCell},
};

/// Where certificate authorities look for the proof that a name is ours, over plain HTTP (RFC 8555, section 8.3).
const ACME: &str = "/.well-known/acme-challenge/";
/// How often a request may meet a pool that has just begun to drain before that is called a fault.
const SNAPSHOTS_TRIED: usize = 8;

/// The proxy's logic, without its listeners.
pub struct Proxy {
    snapshot: Arc<SnapshotCell>,
    metrics: Arc<Metrics>,
    stopping: Arc<AtomicBool>,
    access_log: Option<AccessLog>,
}

/// One request, from its header to its end; dropping it gives its lease back on every way out.
pub struct RequestCtx {
    began: Instant,
    snapshot: Option<Arc<Snapshot>>,
    service: Option<Arc<Service>>,
    lease: Option<Lease>,
    /// Peers that could not be connected to, or lost this request.
    tried: Vec<Arc<Peer>>,
    /// The end of the try before, or the beginning of all: what lies between is not worth another look at the clock.
    connect_began: Instant,
    /// None until connected to a peer.
    connected: Option<Instant>,
    answered: bool,
    /// The second try after a lost connection, which there is but one of.
    retried: bool,
    failure: Option<Failure>,
    request_id: Option<RequestId>,
    traceparent: Option<HeaderValue>,
    /// Of the body, where nobody else counts it.
    received: u64,
    connect_took: Option<Duration>,
    header_took: Option<Duration>,
}

impl Proxy {
    /// Reads snapshots from `snapshot`; asks clients to leave once `stopping` is set.
    pub fn new(
        snapshot: Arc<SnapshotCell>,
        metrics: Arc<Metrics>,
        stopping: Arc<AtomicBool>,
        access_log: Option<AccessLog>,
    ) -> Self {
        Self { snapshot, metrics, stopping, access_log }
    }

    /// What the access log says of a request that has ended.
    fn entry(session: &mut Session, ctx: &RequestCtx, code: u16, now: Instant) -> Box<Entry> {
        let ends = connection::ends();
        let request = session.req_header();
        let header = |name: &HeaderName| request.headers.get(name).map(|value| shortened(value.as_bytes())).unwrap_or_default();
        let host = request.uri.authority().map(|host| shortened(host.as_str().as_bytes()));
        let kept = header(&forward::REQUEST_ID);
        let failure = connection::refused().map(Failure::Refused).or(ctx.failure.filter(|_| !ctx.answered || code == 499));
        let peer = ctx.lease.as_ref().map(Lease::peer).or(ctx.tried.last());
        Box::new(Entry {
            at: Some(SystemTime::now()),
            client: ends.as_ref().map(|ends| ends.client.to_string()).unwrap_or_default(),
            listener: ends.as_ref().map(|ends| ends.listener.to_string()).unwrap_or_default(),
            method: request.method.to_string(),
            host: host.unwrap_or_else(|| header(&header::HOST)),
            target: shortened(request.raw_path()),
            version: match request.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2.0",
                _ => "HTTP/1.1",
            },
            tls: ends.as_ref().and_then(|ends| ends.tls),
            status: code,
            bytes_sent: session.body_bytes_sent() as u64,
            bytes_received: session.body_bytes_read() as u64,
            duration: Some(now - ctx.began),
            connect: ctx.connect_took,
            header: ctx.header_took,
            service: ctx.service.as_ref().map(|service| service.name.clone()).unwrap_or_default(),
            pool: peer.map(|peer| peer.pool.clone()).unwrap_or_default(),
            peer: peer.map(|peer| peer.address.to_string()).unwrap_or_default(),
            retries: ctx.tried.len(),
            request_id: ctx.request_id.as_ref().map_or(kept, |id| id.as_str().to_owned()),
            ended: failure.map_or("ok", Failure::word),
            referer: header(&header::REFERER),
            user_agent: header(&header::USER_AGENT),
        })
    }

    /// Takes the snapshot that serves now and finds the request's service in it.
    fn route(&self, session: &Session, ctx: &mut RequestCtx) -> bool {
        let snapshot = self.snapshot.load_full();
        let request = session.req_header();
        let host = request
            .headers
            .get(header::HOST)
            .map(HeaderValue::as_bytes)
            .or_else(|| request.uri.authority().map(|a| a.as_str().as_bytes()));
        let host = host.and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default();
        // OPTIONS * is about the whole host.
        let path = Some(request.uri.path()).filter(|path| *path != "*").unwrap_or("/");
        ctx.service = snapshot.routes.find(host, path).map(Arc::clone);
        ctx.snapshot = Some(snapshot);
        ctx.service.is_some()
    }

    /// Picks a peer and counts the request in. A pool that drains was replaced after this request took its snapshot, and the
    /// newer snapshot is already there, because it is stored before the pool is closed.
    fn lease(&self, session: &Session, ctx: &mut RequestCtx) -> Option<Lease> {
        for _ in 0..SNAPSHOTS_TRIED {
            match ctx.service.as_ref()?.active.pick(&ctx.tried) {
                Ok(lease) => return Some(lease),
                Err(Refused::NobodyReady) => return None,
                Err(Refused::Draining) => {
                    let seen = ctx.snapshot.as_ref().map(|snapshot| snapshot.generation);
                    if self.snapshot.load().generation == seen? || !self.route(session, ctx) {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// Notes that the peer failed this try, and lets go of it.
    fn lost(ctx: &mut RequestCtx, kind: ErrorKind) {
        connection::arrived();
        ctx.connected = None;
        ctx.connect_began = Instant::now();
        ctx.failure = Some(Failure::Peer(kind));
        if let Some(lease) = ctx.lease.take() {
            lease.peer().metrics.error(kind);
            ctx.tried.push(Arc::clone(lease.peer()));
        }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> RequestCtx {
        let now = Instant::now();
        RequestCtx {
            began: now,
            snapshot: None,
            service: None,
            lease: None,
            tried: Vec::new(),
            connect_began: now,
            connected: None,
            answered: false,
            retried: false,
            failure: None,
            request_id: None,
            traceparent: None,
            received: 0,
            connect_took: None,
            header_took: None,
        }
    }

    /// None of Pingora's: its compression would cost an allocation per request and is never on.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, _ctx: &mut RequestCtx) -> Result<()> {
        connection::arrived();
        // Pingora's read timeout would cut a WebSocket whose client only listens.
        if session.is_upgrade_req() {
            session.set_read_timeout(None);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        let Some(ends) = connection::ends() else {
            return Err(Error::new_in(ErrorType::InternalError));
        };
        if session.is_http2()
            && let Err(refusal) = head::judge_h2(session.req_header_mut(), &ends.limits)
        {
            connection::refuse(refusal);
            ctx.failure = Some(Failure::Refused(refusal));
            answer(session, ctx, Failure::Refused(refusal)).await?;
            return Ok(true);
        }
        if ends.redirect_to_https && !session.req_header().uri.path().starts_with(ACME) {
            redirect(session).await?;
            return Ok(true);
        }
        if self.route(session, ctx) {
            return Ok(false);
        }
        ctx.failure = Some(Failure::NoRoute);
        answer(session, ctx, Failure::NoRoute).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        let mut lease = self.lease(session, ctx);
        if lease.is_none() && ctx.retried {
            // Nobody else is ready: the same peer, over a connection made for this.
            ctx.tried.clear();
            lease = self.lease(session, ctx);
        }
        let http_peer = lease.as_ref().and_then(|lease| lease.peer().http_peer(ctx.retried));
        let Some(service) = &ctx.service else {
            return Err(Error::new_in(ErrorType::InternalError));
        };
        let (Some(lease), Some(mut http_peer)) = (lease, http_peer) else {
            // A try that failed before says more than that there is nobody left.
            if ctx.failure.is_none() {
                service.metrics.no_ready_peer.inc();
                ctx.failure = Some(Failure::NobodyReady);
            }
            return Err(Error::new_up(ErrorType::HTTPStatus(503)));
        };
        service.upstream.apply(&mut http_peer, lease.peer());
        http_peer.options.connection_timeout = Some(service.timeouts.connect);
        http_peer.options.total_connection_timeout = Some(service.timeouts.connect);
        http_peer.options.idle_timeout = Some(service.timeouts.idle);
        ctx.lease = Some(lease);
        Ok(http_peer)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: RawFd,
        _digest: Option<&Digest>,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        // Taking a kept connection takes no time; the clock is looked at for a new one only.
        let connected = if reused { ctx.connect_began } else { Instant::now() };
        ctx.connected = Some(connected);
        ctx.connect_took = Some(connected - ctx.connect_began);
        if let Some(service) = &ctx.service {
            if !reused {
                service.active.metrics.connect.observe((connected - ctx.connect_began).as_secs_f64());
            }
            // A connection that requests share is not shut for the sake of one.
            let socket = (!service.upstream.is_h2()).then_some(fd);
            connection::await_response(socket, connected, service.timeouts.response);
        }
        Ok(())
    }

    /// Nothing was sent, so any method may try another peer.
    fn fail_to_connect(&self, _session: &mut Session, _peer: &HttpPeer, ctx: &mut RequestCtx, mut e: BError) -> BError {
        if let Some(lease) = &ctx.lease {
            lease.peer().connect_failed.notify_one();
        }
        let kind = match Failure::of(&e, false) {
            Failure::Peer(ErrorKind::ConnectTimeout) => ErrorKind::ConnectTimeout,
            _ => ErrorKind::Connect,
        };
        Self::lost(ctx, kind);
        let retries = ctx.service.as_ref().map_or(0, |service| service.retries);
        e.set_retry(ctx.tried.len() <= retries);
        e
    }

    /// A request that may already have been acted on is sent again only if doing it twice is doing it once.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut e: BError,
        ctx: &mut RequestCtx,
        _reused: bool,
    ) -> BError {
        let failure = connection::refused().map_or_else(|| Failure::of(&e, connection::late()), Failure::Refused);
        connection::arrived();
        let again = failure == Failure::Peer(ErrorKind::Closed)
            && !ctx.retried
            && !ctx.answered
            && session.req_header().method.is_idempotent()
            && !session.is_upgrade_req()
            && !session.as_ref().retry_buffer_truncated()
            && session.response_written().is_none();
        match failure {
            Failure::Peer(kind) => Self::lost(ctx, kind),
            _ => ctx.failure = Some(failure),
        }
        ctx.retried |= again;
        e.set_retry(again);
        e
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        let trusted = ctx.snapshot.as_ref().map(|snapshot| snapshot.trusted_proxies.as_slice()).unwrap_or_default();
        let Some(ends) = connection::ends() else {
            return Err(Error::new_in(ErrorType::InternalError));
        };
        forward::set(request, &ends, trusted)?;
        if ctx.snapshot.as_ref().is_some_and(|snapshot| snapshot.tracing) {
            forward::set_traceparent(request, &mut ctx.traceparent)?;
        }
        forward::set_request_id(request, &mut ctx.request_id)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        let Some(bytes) = body.as_ref().map(Bytes::len) else { return Ok(()) };
        connection::extend();
        if !session.is_http2() {
            return Ok(());
        }
        ctx.received += bytes as u64;
        if connection::ends().and_then(|ends| ends.limits.body_bytes).is_some_and(|most| ctx.received > most) {
            connection::refuse(Refusal::BodyBytes);
            return Err(Error::new_down(ErrorType::HTTPStatus(413)));
        }
        // A body that ends with an empty frame would end twice towards an HTTP/1 peer (cloudflare/pingora#935).
        if end && bytes == 0 {
            *body = None;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS {
            connection::extend();
            return Ok(());
        }
        connection::arrived();
        let unasked = response.status == http::StatusCode::SWITCHING_PROTOCOLS && !session.is_upgrade_req();
        if unasked || !response::is_unambiguous(response) {
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        ctx.answered = true;
        if let (Some(connected), Some(service)) = (ctx.connected, &ctx.service) {
            let took = connected.elapsed();
            ctx.header_took = Some(took);
            service.active.metrics.response_header.observe(took.as_secs_f64());
        }
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS
            && let Some(lease) = &mut ctx.lease
        {
            lease.upgrade();
            connection::upgrade();
        }
        Ok(())
    }

    /// The last moment at which a client can still be asked to leave.
    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, _ctx: &mut RequestCtx) -> Result<()> {
        // A client of HTTP/1.0 knows no chunks; for it the body ends with the connection.
        if session.req_header().version == Version::HTTP_10 && response.remove_header(&header::TRANSFER_ENCODING).is_some() {
            session.set_keepalive(None);
        }
        if self.stopping.load(Relaxed) || connection::ends_after_this() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        let refused = connection::refused().map(Failure::Refused);
        let failure = *ctx.failure.get_or_insert_with(|| refused.unwrap_or_else(|| Failure::of(e, false)));
        if failure != Failure::ClientGone && session.response_written().is_none() {
            // Whoever has gone in the meantime cannot be told.
            drop(answer(session, ctx, failure).await);
        }
        FailToProxy { error_code: failure.status(), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _e: Option<&Error>, ctx: &mut RequestCtx) {
        let now = Instant::now();
        connection::await_header(Some(now + connection::idle_timeout()));
        let written = session.response_written().map(|response| response.status.as_u16());
        let code = written.or(ctx.failure.map(Failure::status)).unwrap_or(Failure::ClientGone.status());
        let method = &session.req_header().method;
        let counter = match (&ctx.lease, &ctx.service) {
            (Some(lease), _) => &lease.peer().metrics.requests,
            (None, Some(service)) => &service.metrics.unserved,
            (None, None) => &self.metrics.unrouted,
        };
        counter.inc(code, method);
        if let Some(log) = &self.access_log {
            log.write(Self::entry(session, ctx, code, now));
        }
        if let Some(service) = &ctx.service {
            service.active.metrics.duration.observe((now - ctx.began).as_secs_f64());
            if !ctx.tried.is_empty() || ctx.retried {
                if ctx.answered { service.metrics.retries_succeeded.inc() } else { service.metrics.retries_failed.inc() }
            }
        }
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &RequestCtx, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &RequestCtx,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// Answers in place of a peer.
async fn answer(session: &mut Session, ctx: &mut RequestCtx, failure: Failure) -> Result<()> {
    if is_grpc(session) {
        // A status of HTTP means nothing to it; this is a whole answer.
        let mut response = ResponseHeader::build(200, Some(3))?;
        response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))?;
        response.insert_header("grpc-status", failure.grpc_status())?;
        response.insert_header("grpc-message", failure.body().trim_end())?;
        return end_with(session, response).await;
    }
    let status = failure.status();
    let id = forward::request_id(session.req_header(), &mut ctx.request_id);
    let page = ctx.service.as_ref().and_then(|service| service.error_pages.get(&status));
    let accept = session.req_header().headers.get(header::ACCEPT).map(HeaderValue::as_bytes).unwrap_or_default();
    let (content_type, body) = if memchr::memmem::find(accept, b"application/json").is_some() {
        let message = failure.body().trim_end().trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        ("application/json", serde_json::json!({"status": status, "error": message, "request_id": id}).to_string())
    } else if let Some(page) = page {
        // An id has graphic characters only, of which these mean something in HTML.
        let id = id.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;");
        ("text/html; charset=utf-8", page.text.replace("{request_id}", &id))
    } else {
        ("text/plain; charset=utf-8", failure.body().to_owned())
    };
    let mut response = ResponseHeader::build(status, Some(6))?;
    response.insert_header(forward::X_REQUEST_ID, id)?;
    response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static(content_type))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    if failure == Failure::NobodyReady {
        response.insert_header(header::RETRY_AFTER, HeaderValue::from_static("1"))?;
    }
    if failure != Failure::NoRoute {
        // What is left of the request is of no use any more, so the connection is not either.
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(response), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}

/// Sends the client to the same place over HTTPS, on its usual port.
async fn redirect(session: &mut Session) -> Result<()> {
    let request = session.req_header();
    let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let host = host.or_else(|| request.uri.authority().map(|authority| authority.as_str().as_bytes())).unwrap_or_default();
    let port = host.iter().rposition(|byte| *byte == b':').filter(|at| !host.iter().skip(*at).any(|byte| *byte == b']'));
    let host = host.get(..port.unwrap_or(host.len())).unwrap_or_default();
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let location = HeaderValue::from_bytes(&[b"https://", host, path.as_bytes()].concat());
    // 301 is the one that every client knows; 308 keeps the method and the body.
    let status = if matches!(request.method, Method::GET | Method::HEAD) { 301 } else { 308 };
    let mut response = ResponseHeader::build(status, Some(2))?;
    response.insert_header(header::LOCATION, location.unwrap_or(HeaderValue::from_static("/")))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
    end_with(session, response).await
}

/// Writes a header that is the whole answer.
async fn end_with(session: &mut Session, response: ResponseHeader) -> Result<()> {
    match &mut *session.downstream_session {
        // Pingora's own way never says that it is the end, and the client would see its stream cut off.
        ServerSession::H2(stream) => stream.write_response_header(Box::new(response), true),
        _ => session.write_response_header(Box::new(response), true).await,
    }
}

fn is_grpc(session: &Session) -> bool {
    let content_type = session.req_header().headers.get(header::CONTENT_TYPE);
    session.is_http2() && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
