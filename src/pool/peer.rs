//! One server of a pool: where it is, whether it takes requests, and how many run on it.
//!
//! The controller makes peers and opens and closes them, probes say whether they are ready, requests lease them. Readiness
//! and admission are two facts and never one enum: a passing probe must not re-open a peer that drains.

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
    metrics::{PeerFacts, PeerMetrics},
};

/// When the other end of a connection is asked whether it is still there: a host that lost its power says nothing, and a WebSocket or
/// an event stream may be quiet for as long as it likes. One that is gone is noticed within a minute. Of clients' connections as well.
pub const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    // The system's: a peer that is slow to take an upload is there.
    user_timeout: Duration::ZERO,
};

/// One server of a pool, with everything that must survive a reload.
pub struct Peer {
    /// Name of its service.
    pub service: String,
    /// Name of its pool.
    pub pool: String,
    /// As written in the file: its identity within the pool.
    pub address: PeerAddress,
    /// What probes say.
    pub health: Health,
    /// Its counters.
    pub metrics: PeerMetrics,
    /// Wakes the resolver: the address may be an old one.
    pub connect_failed: Notify,
    target: ArcSwapOption<Target>,
    unresolved: ArcSwapOption<String>,
    open: AtomicBool,
    in_flight: AtomicUsize,
    upgraded: AtomicUsize,
    /// Wakes the controller.
    changed: Arc<Notify>,
}

/// Where a peer is now.
#[derive(Debug)]
pub struct Target {
    /// Every address its name has.
    pub addresses: Vec<SocketAddr>,
    /// Ready to be cloned for a request; it names the first of `addresses`.
    http_peer: HttpPeer,
}

/// One counted use of a peer, by a request or an upgraded connection; dropping it is the only way to end it.
pub struct Lease {
    peer: Arc<Peer>,
    upgraded: bool,
}

/// Pingora keeps unused connections by this number, so that a peer's next life never meets a socket of an earlier one.
static INCARNATION: AtomicU64 = AtomicU64::new(1);

impl Peer {
    /// A closed peer whose address is not known yet. `changed` is notified of everything the controller may wait for.
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
            changed,
        }
    }

    /// Lets requests in. Connections kept from before are not used again: whoever listened there may have been replaced.
    pub fn open(&self) {
        if self.open.load(SeqCst) {
            return;
        }
        if let Some(target) = self.target() {
            self.set_target(&target.addresses);
        }
        self.open.store(true, SeqCst);
    }

    /// Lets no further request in. To drain, close first and read [`Peer::in_flight`] afterwards: see [`Lease::new`].
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

    /// Where it is; none until its name is resolved.
    pub fn target(&self) -> Option<Arc<Target>> {
        self.target.load_full()
    }

    /// What a request is to be sent to; none until its name is resolved. A `fresh` one is connected to anew, instead of taking a
    /// connection from those kept: for a second try, after a kept one had died.
    pub fn http_peer(&self, fresh: bool) -> Option<Box<HttpPeer>> {
        let mut http_peer = Box::new(self.target.load().as_ref()?.http_peer.clone());
        if fresh {
            http_peer.group_key = next_incarnation();
        }
        Some(http_peer)
    }

    /// Says where it is. The first address is used; the list is never empty.
    pub fn set_target(&self, addresses: &[SocketAddr]) {
        if let Some(first) = addresses.first() {
            let mut http_peer = HttpPeer::new(first, false, String::new());
            http_peer.group_key = next_incarnation();
            http_peer.options.tcp_keepalive = Some(KEEPALIVE);
            self.target.store(Some(Arc::new(Target { addresses: addresses.to_vec(), http_peer })));
        }
    }

    /// Says why its name means nothing, if it does not; an address known from before stays in use.
    pub fn set_unresolved(&self, cause: Option<&str>) {
        self.unresolved.store(cause.map(|cause| {
            let cause = cause.strip_prefix("failed to lookup address information: ").unwrap_or(cause);
            Arc::new(format!("cannot resolve {}: {cause}; is it running, and on this network?", self.address.host))
        }));
    }

    /// Why its name means nothing.
    pub fn unresolved(&self) -> Option<String> {
        self.unresolved.load().as_ref().map(|cause| cause.to_string())
    }

    /// Tells the controller that something it may wait for has changed.
    pub fn notify(&self) {
        self.changed.notify_one();
    }

    /// Facts for a scrape.
    pub fn facts(&self, draining: bool) -> PeerFacts {
        PeerFacts { in_flight: self.in_flight(), upgraded: self.upgraded(), ready: self.health.is_ready(), draining }
    }
}

fn next_incarnation() -> u64 {
    INCARNATION.fetch_add(1, SeqCst)
}

impl Lease {
    /// Counts a request in, unless the peer is closed.
    ///
    /// Count first, look second. A drain does the reverse: it closes, then reads the count. In the single order of these four
    /// sequentially consistent steps, either the drain sees this request or this request sees the drain; without it both could
    /// miss each other, and a peer would be reported drained with a request on its way to it.
    pub fn new(peer: &Arc<Peer>) -> Option<Self> {
        peer.in_flight.fetch_add(1, SeqCst);
        let lease = Self { peer: Arc::clone(peer), upgraded: false };
        peer.is_open().then_some(lease)
    }

    /// The peer in use.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Counts it as an upgraded connection from now on.
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
        if self.peer.in_flight.fetch_sub(1, SeqCst) == 1 && !self.peer.is_open() {
            self.peer.notify();
        }
    }
}
