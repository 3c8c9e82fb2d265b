//! One request on its way: where it leads, the peer that is counted for it, and what came of each try.
//!
//! [`super::Proxy`] keeps one from the first phase of a request to the last. Nothing here waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, header};
use pingora::http::RequestHeader;

use super::{failure::Failure, forwarding::RequestId, workarounds::Corkable};
use crate::{
    clients::connection,
    metrics::ErrorKind,
    pool::{Lease, Peer, Refused},
    route::NoRoute,
    snapshot::{Service, Snapshot, SnapshotCell},
};

/// How often a request may meet a pool that has just begun to drain before that is called a fault.
const SNAPSHOTS_TRIED: usize = 8;

/// One request, from its header to its end; dropping it gives its lease back on every way out.
pub struct RequestCtx {
    pub(super) began: Instant,
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) lease: Option<Lease>,
    /// Peers that could not be connected to, or lost this request.
    pub(super) tried: Vec<Arc<Peer>>,
    pub(super) tries: usize,
    /// The end of the try before, or the beginning of all: what lies between is not worth another look at the clock.
    pub(super) connect_began: Instant,
    /// None until connected to a peer.
    pub(super) connected: Option<Instant>,
    pub(super) answered: bool,
    /// The second try after a lost connection, which there is but one of.
    pub(super) retried: bool,
    /// Why the request failed, or why its answer broke off.
    pub(super) failure: Option<Failure>,
    pub(super) request_id: Option<RequestId>,
    pub(super) traceparent: Option<HeaderValue>,
    /// Of an upgrade request that is not connected yet.
    pub(super) holder: Option<Corkable>,
    /// The handshake of a WebSocket.
    pub(super) upgrades: bool,
    pub(super) connect_took: Option<Duration>,
    pub(super) header_took: Option<Duration>,
}

impl RequestCtx {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            snapshot: None,
            service: None,
            lease: None,
            tried: Vec::new(),
            tries: 0,
            connect_began: now,
            connected: None,
            answered: false,
            retried: false,
            failure: None,
            request_id: None,
            traceparent: None,
            holder: None,
            upgrades: false,
            connect_took: None,
            header_took: None,
        }
    }

    /// Takes the snapshot that serves now and finds the request's service in it.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn route(&mut self, current: &SnapshotCell, request: &RequestHeader) -> Result<(), NoRoute> {
        let snapshot = current.load_full();
        let host = request
            .headers
            .get(header::HOST)
            .map(HeaderValue::as_bytes)
            .or_else(|| request.uri.authority().map(|a| a.as_str().as_bytes()));
        let host = host.and_then(|host| std::str::from_utf8(host).ok()).unwrap_or_default();
        // OPTIONS * is about the whole host.
        let path = Some(request.uri.path()).filter(|path| *path != "*").unwrap_or("/");
        let found = snapshot.routes.find(host, path).map(Arc::clone);
        self.snapshot = Some(snapshot);
        self.service = found.as_ref().ok().map(Arc::clone);
        found.map(drop)
    }

    /// Picks a peer and counts the request in. A pool that drains was replaced after this request took its snapshot, and the
    /// newer snapshot is already there, because it is stored before the pool is closed.
    pub(super) fn pick(&mut self, current: &SnapshotCell, request: &RequestHeader) -> Option<Lease> {
        for _ in 0..SNAPSHOTS_TRIED {
            match self.service.as_ref()?.active.pick(&self.tried) {
                Ok(lease) => return Some(lease),
                Err(Refused::NobodyReady) => return None,
                Err(Refused::Draining) => {
                    let seen = self.snapshot.as_ref().map(|snapshot| snapshot.generation);
                    if current.load().generation == seen? || self.route(current, request).is_err() {
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The peer that the request runs on, or that began its answer and failed.
    pub(super) fn answering_peer(&self) -> Option<&Arc<Peer>> {
        self.lease.as_ref().map(Lease::peer).or(self.tried.last().filter(|_| self.answered))
    }

    /// Notes that the peer failed this try, and lets go of it.
    pub(super) fn lost(&mut self, kind: ErrorKind) {
        connection::arrived();
        self.connected = None;
        self.connect_began = Instant::now();
        self.failure = Some(Failure::Peer(kind));
        if let Some(lease) = self.lease.take() {
            lease.peer().metrics.error(kind);
            self.tried.push(Arc::clone(lease.peer()));
        }
    }
}
