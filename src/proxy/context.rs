//! The state of one request: its service, its leased peer, and the outcome of each try.
//!
//! [`super::Proxy`] passes one from the first phase of a request to the last. Nothing here waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, header};
use pingora::{Error, ErrorType, Result, http::RequestHeader};

use super::{
    canary::{self, Position},
    failure::Failure,
    forwarding::RequestId,
    hash_key,
    workarounds::NewSocket,
};
use crate::{
    clients::{connection::Connection, reject::Rejection},
    metrics::ErrorKind,
    pool::{Lease, Peer, PickError},
    route::NoRoute,
    snapshot::{Mirror, Service, Snapshot, SnapshotCell},
};

/// How often a request may find its pool draining and load a newer snapshot; more would be a fault of ours.
const SNAPSHOTS_TRIED: usize = 8;

/// One request, from its header to its end. Dropping it releases its lease.
pub struct RequestCtx {
    /// The client's connection or stream; none before the first phase, which gets it from the session.
    pub(super) connection: Option<Arc<Connection>>,
    pub(super) began: Instant,
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// For a request that chose another pool: the service as it would be with that pool as the active one.
    pub(super) service: Option<Arc<Service>>,
    /// The service that was found, while `service` is that of its canary.
    pub(super) routed: Option<Arc<Service>>,
    /// The client's position; none before it is needed.
    pub(super) position: Option<Position>,
    /// Whether a try failed, so that the request stays on the active pool. An idle connection that the peer has closed is no failure.
    pub(super) leaves_canary: bool,
    /// Whether the request, or its listener, chose the pool; it may be one that is not active.
    pub(super) is_preview: bool,
    pub(super) lease: Option<Lease>,
    /// Set if a copy was sent to another pool, to compare the responses.
    pub(super) compared: Option<Arc<Mirror>>,
    /// Peers that failed this request.
    pub(super) tried: Vec<Arc<Peer>>,
    pub(super) tries: usize,
    /// End of the last try, or begin of the request. Reused as the begin of the next try, which saves a clock read.
    pub(super) connect_began: Instant,
    /// When the peer was connected; none before that.
    pub(super) connected: Option<Instant>,
    pub(super) answered: bool,
    /// Set on a retry after the peer was connected; it needs a new connection.
    pub(super) retried: bool,
    /// Why the request failed, or why its response broke off.
    pub(super) failure: Option<Failure>,
    pub(super) request_id: Option<RequestId>,
    pub(super) traceparent: Option<HeaderValue>,
    /// Set on a request that needs a connection of its own, until its peer is connected.
    pub(super) new_socket: Option<NewSocket>,
    /// Whether the request is a WebSocket handshake.
    pub(super) upgrades: bool,
    pub(super) connect_took: Option<Duration>,
    pub(super) header_took: Option<Duration>,
}

impl RequestCtx {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            connection: None,
            began: now,
            snapshot: None,
            service: None,
            routed: None,
            position: None,
            leaves_canary: false,
            is_preview: false,
            lease: None,
            compared: None,
            tried: Vec::new(),
            tries: 0,
            connect_began: now,
            connected: None,
            answered: false,
            retried: false,
            failure: None,
            request_id: None,
            traceparent: None,
            new_socket: None,
            upgrades: false,
            connect_took: None,
            header_took: None,
        }
    }

    /// The client's connection or stream.
    ///
    /// # Errors
    /// Before the first phase; there are no calls then.
    pub(super) fn connection(&self) -> Result<&Connection> {
        self.connection.as_deref().ok_or_else(|| Error::new_in(ErrorType::InternalError))
    }

    /// Why the client's connection or stream was rejected, if it was.
    pub(super) fn rejection(&self) -> Option<Rejection> {
        self.connection.as_ref()?.rejection()
    }

    /// Ends the wait for a response header. The peer's socket may be closed from now on.
    pub(super) fn end_response_wait(&self) {
        if let Some(connection) = &self.connection {
            connection.response.end();
        }
    }

    /// Loads the current snapshot and finds the request's service in it.
    ///
    /// # Errors
    /// When no service matches.
    pub(super) fn route(&mut self, current: &SnapshotCell, request: &RequestHeader) -> std::result::Result<(), NoRoute> {
        let snapshot = current.load_full();
        let host = request
            .headers
            .get(header::HOST)
            .map(HeaderValue::as_bytes)
            .or_else(|| request.uri.authority().map(|a| a.as_str().as_bytes()));
        let host = host.and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default();
        // `OPTIONS *` asks about the whole host.
        let path = Some(request.uri.path()).filter(|path| *path != "*").unwrap_or("/");
        let found = snapshot.routes.find(host, path).map(Arc::clone);
        self.snapshot = Some(snapshot);
        self.service = found.as_ref().ok().map(Arc::clone);
        found.map(drop)
    }

    /// Picks and leases a peer, of the canary's pool if the request belongs there. If the pool drains, it was replaced after this request loaded its snapshot; the newer snapshot is
    /// already visible, because it is stored before the pool is closed.
    pub(super) fn pick(&mut self, current: &SnapshotCell, request: &RequestHeader) -> Option<Lease> {
        if let Some(routed) = self.routed.take() {
            self.service = Some(routed);
        }
        for _ in 0..SNAPSHOTS_TRIED {
            if let Some(lease) = canary::pick(self, request) {
                return Some(lease);
            }
            let pool = &self.service.as_ref()?.active;
            let client = self.connection.as_ref().map(|connection| connection.client.address);
            let key = pool.hash_by().and_then(|by| hash_key::of(by, request, client, &self.snapshot.as_ref()?.trusted_proxies));
            if self.is_preview {
                return pool.pick_preview(&self.tried, key);
            }
            match pool.pick(&self.tried, key) {
                Ok(lease) => return Some(lease),
                Err(PickError::NoReadyPeer) => return None,
                Err(PickError::Draining) => {
                    let seen = self.snapshot.as_ref().map(|snapshot| snapshot.generation);
                    if current.load().generation == seen? || self.route(current, request).is_err() {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The peer that the request runs on, or the failed peer that began the response.
    pub(super) fn answering_peer(&self) -> Option<&Arc<Peer>> {
        self.lease.as_ref().map(Lease::peer).or(self.tried.last().filter(|_| self.answered))
    }

    /// Records that the peer failed this try, and releases its lease.
    pub(super) fn lost(&mut self, kind: ErrorKind) {
        self.end_response_wait();
        self.connected = None;
        self.connect_began = Instant::now();
        self.failure = Some(Failure::Peer(kind));
        if let Some(lease) = self.lease.take() {
            lease.peer().metrics.error(kind);
            lease.peer().failed();
            self.tried.push(Arc::clone(lease.peer()));
        }
    }
}
