//! One server of a pool: its address, whether it takes requests, and how many requests it has.
//!
//! The controller creates, opens and closes peers, probes set their readiness, and requests lease them. Readiness and admission
//! are separate: a successful probe must not reopen a peer that drains.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use pingora::{protocols::TcpKeepalive, upstreams::peer::HttpPeer};
use tokio::sync::Notify;

use super::health::Health;
use crate::{
    config::PeerAddress,
    metrics::{PeerGauges, PeerMetrics},
};

/// TCP keepalive, for connections to peers and to clients. A host that loses power closes no connection, and a WebSocket or an
/// event stream may be idle without limit; keepalive finds a dead connection within a minute.
pub const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    // 0 leaves the default of the system: a peer that reads an upload slowly is not dead.
    user_timeout: Duration::ZERO,
};

/// One server of a pool, with all state that must survive a reload.
pub struct Peer {
    /// The name of its service.
    pub service: String,
    /// The name of its pool.
    pub pool: String,
    /// The address as written in the configuration; it identifies the peer within the pool.
    pub address: PeerAddress,
    /// Its readiness, set by probes.
    pub health: Health,
    /// Its counters.
    pub metrics: PeerMetrics,
    /// Wakes the resolver, because the address may be outdated.
    pub connect_failed: Notify,
    target: ArcSwapOption<Target>,
    unresolved: ArcSwapOption<String>,
    open: AtomicBool,
    in_flight: AtomicUsize,
    upgraded: AtomicUsize,
    previews: AtomicUsize,
    /// Wakes the controller.
    changed: Arc<Notify>,
    /// Notified of each failure while the peer's pool is observed; otherwise none.
    observer: ArcSwapOption<Notify>,
}

/// The addresses of a peer at the moment.
#[derive(Debug)]
pub struct Target {
    /// Every address that its name resolves to.
    pub addresses: Vec<SocketAddr>,
    /// Cloned for each request; has the first of `addresses`.
    http_peer: HttpPeer,
}

/// One counted use of a peer by a request or an upgraded connection. Only dropping it ends the use.
pub struct Lease {
    peer: Arc<Peer>,
    upgraded: bool,
    preview: bool,
}

/// Part of the key of Pingora's connection pool, so that a peer that is opened again, or resolved again, reuses no older
/// connection.
static INCARNATION: AtomicU64 = AtomicU64::new(1);

impl Peer {
    /// Creates a closed peer without an address. It notifies `changed` of every change that the controller may wait for.
    pub fn new(service: &str, pool: &str, address: PeerAddress, metrics: PeerMetrics, changed: Arc<Notify>) -> Self {
        Self {
            service: service.to_owned(),
            pool: pool.to_owned(),
            address,
            health: Health::default(),
            metrics,
            connect_failed: Notify::new(),
            target: ArcSwapOption::empty(),
            unresolved: ArcSwapOption::empty(),
            open: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            upgraded: AtomicUsize::new(0),
            previews: AtomicUsize::new(0),
            changed,
            observer: ArcSwapOption::empty(),
        }
    }

    /// Lets requests in. Idle connections from before are not reused, because another process may listen there now.
    pub fn open(&self) {
        if self.open.load(SeqCst) {
            return;
        }
        if let Some(target) = self.target() {
            self.set_target(&target.addresses);
        }
        self.open.store(true, SeqCst);
    }

    /// Lets no more requests in. To drain, close first and read [`Peer::in_flight`] afterwards: see [`Lease::new`].
    pub fn close(&self) {
        self.open.store(false, SeqCst);
    }

    /// Whether requests are let in.
    pub fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }

    /// Requests and upgraded connections running on it.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(SeqCst)
    }

    /// Upgraded connections running on it.
    pub fn upgraded(&self) -> usize {
        self.upgraded.load(SeqCst)
    }

    /// The requests running on it that chose its pool; [`Peer::in_flight`] includes them.
    pub fn previews(&self) -> usize {
        self.previews.load(SeqCst)
    }

    /// Its addresses; none until its name is resolved.
    pub fn target(&self) -> Option<Arc<Target>> {
        self.target.load_full()
    }

    /// The upstream for one request; none until its name is resolved. With `fresh`, Pingora opens a new connection instead of
    /// reusing an idle one: for the retry after an idle connection turned out to be closed.
    pub fn http_peer(&self, fresh: bool) -> Option<Box<HttpPeer>> {
        let mut http_peer = Box::new(self.target.load().as_ref()?.http_peer.clone());
        if fresh {
            http_peer.group_key = next_incarnation();
        }
        Some(http_peer)
    }

    /// Sets its addresses, of which the first is used. An empty list is ignored.
    pub fn set_target(&self, addresses: &[SocketAddr]) {
        if let Some(first) = addresses.first() {
            let mut http_peer = HttpPeer::new(first, false, String::new());
            http_peer.group_key = next_incarnation();
            http_peer.options.tcp_keepalive = Some(KEEPALIVE);
            self.target.store(Some(Arc::new(Target { addresses: addresses.to_vec(), http_peer })));
        }
    }

    /// Sets the reason why its name cannot be resolved, or removes it. Addresses from an earlier lookup stay in use.
    pub fn set_unresolved(&self, cause: Option<&str>) {
        self.unresolved.store(cause.map(|cause| {
            let cause = cause.strip_prefix("failed to lookup address information: ").unwrap_or(cause);
            Arc::new(format!("cannot resolve {}: {cause}; is it running, and on this network?", self.address.host))
        }));
    }

    /// The reason why its name cannot be resolved, if so.
    pub fn unresolved(&self) -> Option<String> {
        self.unresolved.load().as_ref().map(|cause| cause.to_string())
    }

    /// Notifies the controller of a change.
    pub fn notify(&self) {
        self.changed.notify_one();
    }

    /// Sets what is notified of each failure, or removes it.
    pub fn observe(&self, observer: Option<Arc<Notify>>) {
        self.observer.store(observer);
    }

    /// Notifies the observer of a failed request, if there is one. Call it after the failure is counted.
    pub fn failed(&self) {
        if let Some(observer) = &*self.observer.load() {
            observer.notify_one();
        }
    }

    /// The values of its gauges, for one scrape.
    pub fn gauges(&self, draining: bool) -> PeerGauges {
        PeerGauges { in_flight: self.in_flight(), upgraded: self.upgraded(), ready: self.health.is_ready(), draining }
    }
}

fn next_incarnation() -> u64 {
    INCARNATION.fetch_add(1, SeqCst)
}

impl Lease {
    /// Counts a request in, unless the peer is closed.
    ///
    /// Increments the count first and checks admission second. A drain does the reverse: it closes the peer, then reads the
    /// count. These four operations are sequentially consistent, so either the drain sees this request or this request sees that
    /// the peer is closed. With the check before the count, both could miss each other: a peer would be reported drained while a
    /// request is on its way to it.
    pub fn new(peer: &Arc<Peer>) -> Option<Self> {
        peer.in_flight.fetch_add(1, SeqCst);
        let lease = Self { peer: Arc::clone(peer), upgraded: false, preview: false };
        peer.is_open().then_some(lease)
    }

    /// Counts a request in that chose this pool, whether or not the peer is open.
    pub fn preview(peer: &Arc<Peer>) -> Self {
        peer.in_flight.fetch_add(1, SeqCst);
        peer.previews.fetch_add(1, SeqCst);
        Self { peer: Arc::clone(peer), upgraded: false, preview: true }
    }

    /// Counts a copy of a request in, whether or not the peer is open.
    pub fn mirror(peer: &Arc<Peer>) -> Self {
        peer.in_flight.fetch_add(1, SeqCst);
        Self { peer: Arc::clone(peer), upgraded: false, preview: false }
    }

    /// The peer in use.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Counts it as an upgraded connection from here on.
    pub fn upgrade(&mut self) {
        if !self.upgraded {
            self.upgraded = true;
            self.peer.upgraded.fetch_add(1, SeqCst);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.upgraded {
            self.peer.upgraded.fetch_sub(1, SeqCst);
        }
        if self.preview {
            self.peer.previews.fetch_sub(1, SeqCst);
        }
        if self.peer.in_flight.fetch_sub(1, SeqCst) == 1 && !self.peer.is_open() {
            self.peer.notify();
        }
    }
}
