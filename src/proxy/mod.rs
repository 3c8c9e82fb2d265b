//! The way of a request, section by section of Pingora's phases: route, pick and lease a peer, forward, count.
//!
//! [`crate::clients`] calls it for every request. It reads one snapshot per request and never waits for a lock; it
//! knows nothing of the controller that stores snapshots.

mod accounting;
mod context;
mod failure;
mod forwarding;
mod log_entry;
mod own_response;
mod upstream_response;
mod workarounds;

use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
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

use self::{context::RequestCtx, failure::Failure, workarounds::Corkable};
use crate::{
    access_log::AccessLog,
    acme::ChallengeStore,
    clients::{connection, reject::Rejection},
    metrics::{ErrorKind, Metrics},
    route::NoRoute,
    snapshot::SnapshotCell,
};

/// Unused connections to peers that are kept, over all peers.
const KEPT_CONNECTIONS: usize = 1024;
/// More tries than a request can use up: the bounds are `retries` and the rule for lost connections.
const TRIES: usize = 16;
/// The proxy's logic, without its listeners.
pub struct Proxy {
    snapshot: Arc<SnapshotCell>,
    metrics: Arc<Metrics>,
    stopping: Arc<AtomicBool>,
    access_log: Option<AccessLog>,
    challenges: ChallengeStore,
}

impl Proxy {
    /// Reads snapshots from `snapshot`; asks clients to leave once `stopping` is set.
    pub fn new(
        snapshot: Arc<SnapshotCell>,
        metrics: Arc<Metrics>,
        stopping: Arc<AtomicBool>,
        access_log: Option<AccessLog>,
        challenges: ChallengeStore,
    ) -> Self {
        Self { snapshot, metrics, stopping, access_log, challenges }
    }

    /// Pingora's proxy with this logic; `threads` workers drive it.
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

    /// None of Pingora's: its compression would cost an allocation per request and is never on.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
        connection::arrived();
        // `clients::head` leaves an `Upgrade` field in the handshake of a WebSocket only.
        ctx.upgrades = session.is_upgrade_req();
        // Pingora's read timeout would cut a WebSocket whose client only listens.
        if ctx.upgrades {
            session.set_read_timeout(None);
        }
        if self.stopping.load(Relaxed) || connection::ends_after_this() {
            session.set_keepalive(None);
        }
        // A client of HTTP/1.0 takes the first status for the last (RFC 9110, section 15.2).
        if session.req_header().version == Version::HTTP_10 {
            session.set_ignore_info_resp(true);
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        let Some(ends) = connection::ends() else {
            return Err(Error::new_in(ErrorType::InternalError));
        };
        if let Some(token) = ChallengeStore::token(session.req_header().uri.path()) {
            if let Some(key_authorization) = self.challenges.get(token) {
                own_response::challenge(session, key_authorization).await?;
                return Ok(true);
            }
        } else if ends.redirect_to_https {
            own_response::redirect(session).await?;
            return Ok(true);
        }
        let failure = match ctx.route(&self.snapshot, session.req_header()) {
            Ok(()) => return Ok(false),
            Err(NoRoute::NotFound) => Failure::NoRoute,
            Err(NoRoute::Ambiguous) => {
                let rejection = Rejection::BadRequest("a path that two services could take");
                connection::refuse(rejection);
                Failure::Refused(rejection)
            }
        };
        ctx.failure = Some(failure);
        own_response::failure(session, ctx, failure).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        let mut lease = ctx.pick(&self.snapshot, session.req_header());
        if lease.is_none() && ctx.retried {
            // Nobody else is ready: the same peer, over a connection made for this.
            ctx.tried.clear();
            lease = ctx.pick(&self.snapshot, session.req_header());
        }
        let http_peer = lease.as_ref().and_then(|lease| lease.peer().http_peer(ctx.retried || ctx.upgrades));
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
        if service.upstream.is_h2() && !own_response::is_grpc(session) {
            // An HTTP/2 peer can refuse to take a body for ever, and its connection is not shut down for one request. A gRPC
            // stream may pause for as long as its server likes.
            http_peer.options.write_timeout = Some(service.timeouts.response);
        }
        ctx.lease = Some(lease);
        ctx.tries += 1;
        ctx.holder = (ctx.upgrades && !service.upstream.is_h2()).then(|| Corkable::of(&mut http_peer));
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
        // Taking a kept connection takes no time; the clock is looked at for a new one only.
        let connected = if reused { ctx.connect_began } else { Instant::now() };
        ctx.connected = Some(connected);
        ctx.connect_took = Some(connected - ctx.connect_began);
        if let Some(holder) = ctx.holder.take()
            && let Some(cork) = holder.hold().or_err(ErrorType::ConnectError, "holding an upgrade")?
        {
            connection::until_idle(Box::new(cork));
        }
        if let Some(service) = &ctx.service {
            if !reused {
                service.active.metrics.connect.observe((connected - ctx.connect_began).as_secs_f64());
            }
            // A connection that requests share is not shut for the sake of one.
            let socket = (!service.upstream.is_h2()).then_some(fd);
            connection::await_response(socket, connected, service.timeouts.response);
            // A gRPC stream may pause for as long as the client likes.
            if service.upstream.is_h2() && own_response::is_grpc(session) {
                connection::allow_quiet_body();
            }
        }
        Ok(())
    }

    /// Called for sessions that are given up by a message: see [`crate::clients`].
    async fn custom_forwarding(
        &self,
        _session: &mut Session,
        _ctx: &mut RequestCtx,
        _to_upstream: Option<mpsc::Sender<Bytes>>,
        to_client: mpsc::Sender<Bytes>,
    ) -> Result<()> {
        connection::give_up_by(to_client);
        Ok(())
    }

    /// Nothing was sent, so any method may try another peer.
    fn fail_to_connect(&self, _session: &mut Session, _peer: &HttpPeer, ctx: &mut RequestCtx, mut e: BError) -> BError {
        if let Some(lease) = &ctx.lease {
            lease.peer().connect_failed.notify_one();
        }
        let kind = match Failure::of(&e, false) {
            Failure::Peer(kind @ (ErrorKind::ConnectTimeout | ErrorKind::Local)) => kind,
            _ => ErrorKind::Connect,
        };
        ctx.lost(kind);
        let retries = ctx.service.as_ref().map_or(0, |service| service.retries);
        // What this process lacks it lacks for every peer.
        e.set_retry(kind != ErrorKind::Local && ctx.tried.len() <= retries);
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
            && !ctx.upgrades
            && !session.as_ref().retry_buffer_truncated()
            && own_response::status_sent(session).is_none();
        match failure {
            Failure::Peer(kind) => ctx.lost(kind),
            _ => ctx.failure = Some(failure),
        }
        ctx.retried |= again;
        e.set_retry(again);
        e
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        // A peer is asked by HTTP/1.1, which has to name a host, also for a client of HTTP/1.0 that named none: it meant whoever
        // it has reached (RFC 9110, section 7.1).
        if session.req_header().version == Version::HTTP_10
            && !request.headers.contains_key(header::HOST)
            && let Some(local) = session.server_addr().and_then(|address| address.as_inet())
        {
            request.insert_header(header::HOST, local.to_string())?;
        }
        // Pingora drops it with the fields of a connection, but a call of gRPC asks so for its status (RFC 9110, section 10.1.4).
        if ctx.service.as_ref().is_some_and(|service| service.upstream.is_h2()) && own_response::is_grpc(session) {
            request.insert_header(header::TE, "trailers")?;
        }
        let trusted = ctx.snapshot.as_ref().map(|snapshot| snapshot.trusted_proxies.as_slice()).unwrap_or_default();
        let Some(ends) = connection::ends() else {
            return Err(Error::new_in(ErrorType::InternalError));
        };
        forwarding::set(request, &ends, trusted)?;
        if ctx.snapshot.as_ref().is_some_and(|snapshot| snapshot.tracing) {
            forwarding::set_traceparent(request, &mut ctx.traceparent)?;
        }
        forwarding::set_request_id(request, &mut ctx.request_id)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        _ctx: &mut RequestCtx,
    ) -> Result<()> {
        let Some(bytes) = body.as_ref().map(Bytes::len) else { return Ok(()) };
        connection::extend();
        // A body that ends with an empty frame would end twice towards an HTTP/1 peer (cloudflare/pingora#935).
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
        if interim {
            connection::extend();
        } else {
            connection::arrived();
        }
        if upgrades && !ctx.upgrades || !upstream_response::is_unambiguous(response) {
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        if interim {
            return Ok(());
        }
        ctx.answered = true;
        // An earlier try may have failed.
        ctx.failure = None;
        if let (Some(connected), Some(service)) = (ctx.connected, &ctx.service) {
            let took = connected.elapsed();
            ctx.header_took = Some(took);
            service.active.metrics.response_header.observe(took.as_secs_f64());
        }
        if upgrades && let Some(lease) = &mut ctx.lease {
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
        if self.stopping.load(Relaxed) {
            session.set_keepalive(None);
        }
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        let refused = connection::refused().map(Failure::Refused);
        let failure = *ctx.failure.get_or_insert_with(|| refused.unwrap_or_else(|| Failure::of(e, false)));
        if failure != Failure::ClientGone && own_response::status_sent(session).is_none() {
            // The client may have gone in the meantime.
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
