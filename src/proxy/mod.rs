//! Handles one request in the phases of Pingora's [`ProxyHttp`]: route, pick and lease a peer, forward, count.
//!
//! [`crate::clients`] calls it for every request. It reads one snapshot per request, never waits for a lock, and never calls the
//! controller, which stores the snapshots.

mod accounting;
mod canary;
mod context;
mod failure;
mod forwarding;
mod hash_key;
mod log_entry;
mod mirror;
mod own_response;
mod preview;
mod upstream_response;
mod workarounds;

use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version, header};
use pingora::{
    BError, Error, ErrorType, OrErr, Result,
    http::{RequestHeader, ResponseHeader},
    modules::http::HttpModules,
    protocols::Digest,
    proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session},
    server::configuration::ServerConf,
    upstreams::peer::HttpPeer,
};

use tokio::sync::mpsc;

use self::{
    context::RequestCtx,
    failure::Failure,
    workarounds::{Cork, NewSocket, may_exceed_window},
};
use crate::{
    access_log::AccessLog,
    acme::ChallengeStore,
    clients::connection::Connection,
    metrics::{ErrorKind, Metrics},
    snapshot::SnapshotCell,
    token::Token,
};

/// How many idle connections to peers are kept, over all peers.
const KEPT_CONNECTIONS: usize = 1024;
/// Pingora's bound on tries. Never reached: `retries` and the single retry after a lost connection are lower.
const TRIES: usize = 16;
/// The proxy's logic, without its listeners.
pub struct Proxy {
    /// The snapshots that requests read.
    pub snapshot: Arc<SnapshotCell>,
    /// The counters of requests without a service.
    pub metrics: Arc<Metrics>,
    /// Once set, client connections are closed after their response.
    pub stopping: Arc<AtomicBool>,
    /// None if it is off.
    pub access_log: Option<AccessLog>,
    /// The responses to ACME authorities.
    pub challenges: ChallengeStore,
    /// The token of clients that may preview.
    pub token: Arc<Token>,
}

impl Proxy {
    /// Wraps this logic into Pingora's proxy for `threads` workers.
    pub fn app(self, threads: usize) -> Arc<HttpProxy<Self>> {
        let conf =
            ServerConf { threads, upstream_keepalive_pool_size: KEPT_CONNECTIONS, max_retries: TRIES, ..ServerConf::default() };
        let mut proxy = HttpProxy::new(self, Arc::new(conf));
        proxy.handle_init_modules();
        Arc::new(proxy)
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> RequestCtx {
        RequestCtx::new()
    }

    /// No modules: Pingora's compression is never enabled here, and costs an allocation per request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
        let connection = Connection::of(&session.downstream_session).ok_or_else(|| Error::new_in(ErrorType::InternalError))?;
        connection.response.end();
        let is_last_request = connection.is_last_request();
        ctx.connection = Some(Arc::clone(connection));
        // `clients::head` leaves an `Upgrade` field in the handshake of a WebSocket only.
        ctx.upgrades = session.is_upgrade_req();
        // Pingora's read timeout would cut a WebSocket whose client only listens.
        if ctx.upgrades {
            session.set_read_timeout(None);
        }
        if self.stopping.load(Relaxed) || is_last_request {
            session.set_keepalive(None);
        }
        // HTTP/1.0 has no interim responses (RFC 9110, section 15.2).
        if session.req_header().version == Version::HTTP_10 {
            session.set_ignore_info_resp(true);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        if let Some(token) = ChallengeStore::token(session.req_header().uri.path()) {
            if let Some(key_authorization) = self.challenges.get(token) {
                own_response::challenge(session, key_authorization).await?;
                return Ok(true);
            }
        } else if ctx.connection()?.client.redirect_to_https {
            own_response::redirect(session).await?;
            return Ok(true);
        }
        let routed = ctx.route(&self.snapshot, session.req_header());
        let routed = routed.map_err(Failure::from).and_then(|()| preview::choose(session, ctx, &self.token));
        let Err(failure) = routed else { return Ok(false) };
        if let Failure::Rejected(rejection) = failure {
            ctx.connection()?.reject(rejection);
        }
        ctx.failure = Some(failure);
        own_response::failure(session, ctx, failure).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        let mut lease = ctx.pick(&self.snapshot, session.req_header());
        if lease.is_none() && ctx.retried {
            // No other peer is ready: try the same one again, over a new connection.
            ctx.tried.clear();
            lease = ctx.pick(&self.snapshot, session.req_header());
        }
        let speaks_h2 = ctx.service.as_ref().is_some_and(|service| service.upstream.is_h2());
        let own_connection =
            if speaks_h2 { !own_response::is_h2(session) && may_exceed_window(session.req_header()) } else { ctx.upgrades };
        let fresh = ctx.retried || own_connection;
        let http_peer = lease.as_ref().and_then(|lease| lease.peer().http_peer(fresh));
        let Some(service) = &ctx.service else {
            return Err(Error::new_in(ErrorType::InternalError));
        };
        let (Some(lease), Some(mut http_peer)) = (lease, http_peer) else {
            // Keep the failure of an earlier try: it says more than "no ready peer".
            if ctx.failure.is_none() {
                if !ctx.is_preview {
                    service.metrics.no_ready_peer.inc();
                }
                ctx.failure = Some(Failure::NoReadyPeer);
            }
            return Err(Error::new_up(ErrorType::HTTPStatus(503)));
        };
        service.upstream.apply(&mut http_peer, lease.peer());
        http_peer.options.connection_timeout = Some(service.timeouts.connect);
        http_peer.options.total_connection_timeout = Some(service.timeouts.connect);
        // A fresh connection has a key of its own, so that no other request would find it again.
        http_peer.options.idle_timeout = Some(if fresh { Duration::ZERO } else { service.timeouts.idle });
        if speaks_h2 && !own_response::is_grpc(session) {
            // An HTTP/2 peer can stall a body forever by flow control, and its shared connection is not closed for one request.
            // A gRPC stream may pause for any time.
            http_peer.options.write_timeout = Some(service.timeouts.response);
        }
        ctx.lease = Some(lease);
        ctx.tries += 1;
        ctx.new_socket = own_connection.then(|| NewSocket::of(&mut http_peer));
        Ok(http_peer)
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: RawFd,
        _digest: Option<&Digest>,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        // Only a new connection takes time and needs a clock read.
        let connected = if reused { ctx.connect_began } else { Instant::now() };
        ctx.connected = Some(connected);
        ctx.connect_took = Some(connected - ctx.connect_began);
        let mut own_socket = ctx.new_socket.take().and_then(NewSocket::take);
        if ctx.upgrades
            && let Some(socket) = own_socket.take()
        {
            let cork = Cork::new(socket).or_err(ErrorType::ConnectError, "corking an upgrade")?;
            ctx.connection()?.hold_until_idle(Box::new(cork));
        }
        if let Some(service) = &ctx.service {
            if !reused {
                service.active.metrics.connect.observe((connected - ctx.connect_began).as_secs_f64());
            }
            // A shared HTTP/2 connection is not closed for one late response.
            let socket = (!service.upstream.is_h2()).then_some(fd);
            let connection = ctx.connection()?;
            connection.response.begin(socket, connected, service.timeouts.response);
            if let Some(socket) = own_socket {
                connection.response.own_socket(socket);
            }
            // A gRPC stream may pause for any time.
            if service.upstream.is_h2() && own_response::is_grpc(session) {
                connection.let_body_pause();
            }
        }
        Ok(())
    }

    /// Called for HTTP/2 sessions, which are aborted by a message; see `clients::http2`.
    async fn custom_forwarding(
        &self,
        _session: &mut Session,
        ctx: &mut RequestCtx,
        _to_upstream: Option<mpsc::Sender<Bytes>>,
        to_client: mpsc::Sender<Bytes>,
    ) -> Result<()> {
        ctx.connection()?.response.abort_by(to_client);
        Ok(())
    }

    /// No byte was sent, so a request of any method may try another peer.
    fn fail_to_connect(&self, _session: &mut Session, _peer: &HttpPeer, ctx: &mut RequestCtx, mut e: BError) -> BError {
        if let Some(lease) = &ctx.lease {
            lease.peer().connect_failed.notify_one();
        }
        let kind = match Failure::of(&e, false) {
            Failure::Peer(kind @ (ErrorKind::ConnectTimeout | ErrorKind::Local)) => kind,
            _ => ErrorKind::Connect,
        };
        ctx.lost(kind);
        ctx.leaves_canary = true;
        let retries = ctx.service.as_ref().map_or(0, |service| service.retries);
        // A shortage of this process affects every peer, so no other peer is tried.
        e.set_retry(kind != ErrorKind::Local && ctx.tried.len() <= retries);
        e
    }

    /// A request that the peer has not processed is retried as after a failed connect. Otherwise the peer may have acted on it, so
    /// only an idempotent one is retried, once.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut e: BError,
        ctx: &mut RequestCtx,
        reused: bool,
    ) -> BError {
        let has_timed_out = ctx.connection.as_ref().is_some_and(|connection| connection.response.has_timed_out());
        let failure = ctx.rejection().map_or_else(|| Failure::of(&e, has_timed_out), Failure::Rejected);
        ctx.end_response_wait();
        let retries = ctx.service.as_ref().map_or(0, |service| service.retries);
        let again = failure == Failure::Peer(ErrorKind::Closed)
            && (failure::is_unprocessed(&e) && ctx.tries <= retries
                || !ctx.retried && session.req_header().method.is_idempotent())
            && !ctx.answered
            && !ctx.upgrades
            && !session.as_ref().retry_buffer_truncated()
            && own_response::status_sent(session).is_none();
        match failure {
            Failure::Peer(kind) => ctx.lost(kind),
            _ => ctx.failure = Some(failure),
        }
        ctx.retried |= again;
        ctx.leaves_canary |= !reused;
        e.set_retry(again);
        e
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        // HTTP/1.1 towards the peer requires a Host, which a client of HTTP/1.0 may omit. Then the host is the address that the
        // client connected to (RFC 9110, section 7.1).
        if session.req_header().version == Version::HTTP_10
            && !request.headers.contains_key(header::HOST)
            && let Some(local) = session.server_addr().and_then(|address| address.as_inet())
        {
            request.insert_header(header::HOST, local.to_string())?;
        }
        // Pingora removes TE as a hop-by-hop field, but gRPC needs it to get its status in trailers (RFC 9110, section 10.1.4).
        if ctx.service.as_ref().is_some_and(|service| service.upstream.is_h2()) && own_response::is_grpc(session) {
            request.insert_header(header::TE, "trailers")?;
        }
        let trusted = ctx.snapshot.as_ref().map(|snapshot| snapshot.trusted_proxies.as_slice()).unwrap_or_default();
        forwarding::set(request, &ctx.connection()?.client, trusted)?;
        if ctx.snapshot.as_ref().is_some_and(|snapshot| snapshot.tracing) {
            forwarding::set_traceparent(request, &mut ctx.traceparent)?;
        }
        forwarding::set_request_id(request, &mut ctx.request_id)?;
        mirror::copy(session, request, ctx);
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        let Some(bytes) = body.as_ref().map(Bytes::len) else { return Ok(()) };
        ctx.connection()?.response.extend();
        // Workaround: Pingora sends an HTTP/1 peer two ends of a body that ends with an empty frame (cloudflare/pingora#935).
        if end && bytes == 0 && own_response::is_h2(session) {
            *body = None;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        let upgrades = response.status == StatusCode::SWITCHING_PROTOCOLS;
        let interim = response.status.is_informational() && !upgrades;
        let response_wait = &ctx.connection()?.response;
        if interim {
            response_wait.extend();
        } else {
            response_wait.end();
        }
        if upgrades && !ctx.upgrades || !upstream_response::is_unambiguous(response) {
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        if interim {
            return Ok(());
        }
        ctx.answered = true;
        canary::set_cookie(response, ctx)?;
        // An earlier try may have failed.
        ctx.failure = None;
        if let (Some(connected), Some(service)) = (ctx.connected, &ctx.service) {
            let took = connected.elapsed();
            ctx.header_took = Some(took);
            service.active.metrics.response_header.observe(took.as_secs_f64());
        }
        if upgrades && let Some(lease) = &mut ctx.lease {
            lease.upgrade();
            ctx.connection()?.upgrade();
        }
        Ok(())
    }

    /// The last phase that can still set `Connection: close`.
    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, _ctx: &mut RequestCtx) -> Result<()> {
        // HTTP/1.0 has no chunked encoding; the end of the connection ends the body.
        if session.req_header().version == Version::HTTP_10 && response.remove_header(&header::TRANSFER_ENCODING).is_some() {
            session.set_keepalive(None);
        }
        if self.stopping.load(Relaxed) {
            session.set_keepalive(None);
        }
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        let rejected = ctx.rejection().map(Failure::Rejected);
        let failure = *ctx.failure.get_or_insert_with(|| rejected.unwrap_or_else(|| Failure::of(e, false)));
        if failure != Failure::ClientGone && own_response::status_sent(session).is_none() {
            // Fails if the client has closed the connection meanwhile.
            drop(own_response::failure(session, ctx, failure).await);
        }
        FailToProxy { error_code: failure.status(), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _e: Option<&Error>, ctx: &mut RequestCtx) {
        accounting::ended(self, session, ctx);
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
