//! Everything a request needs, as one immutable value behind one pointer.
//!
//! The controller stores snapshots; each request loads one and keeps it to its end. Requests read no other shared state, so
//! that a request sees all values of one configuration or none.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use http::HeaderName;
use ipnet::IpNet;
use pingora::connectors::http::Connector;

use crate::{
    config::{ErrorPage, Percentage, Preview, Stick, Timeouts},
    metrics::ServiceMetrics,
    pool::{Pool, Upstream, mirror::Comparison},
    route::RouteTable,
};

/// Everything a request needs.
pub struct Snapshot {
    /// Number of this snapshot, counted from 1.
    pub generation: u64,
    /// Finds the service of a host and path.
    pub routes: RouteTable<Arc<Service>>,
    /// Clients whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether requests without a `traceparent` get one.
    pub tracing: bool,
}

/// A service as requests see it.
pub struct Service {
    /// Its name in the configuration.
    pub name: String,
    /// The active pool.
    pub active: Pool,
    /// Protocol and TLS towards its peers.
    pub upstream: Arc<Upstream>,
    /// Error pages by status; each may contain `{request_id}`.
    pub error_pages: Arc<BTreeMap<u16, ErrorPage>>,
    /// Time limits of one request.
    pub timeouts: Timeouts,
    /// How many further peers to try when one cannot be connected to.
    pub retries: usize,
    /// Its counters.
    pub metrics: Arc<ServiceMetrics>,
    /// Its other pools: for each the service as it would be with that pool as the active one. These have no standby pools.
    pub standby: Vec<Arc<Service>>,
    /// Requests that choose their pool.
    pub preview: Option<Preview>,
    /// Copies of requests for a standby pool.
    pub mirror: Option<Arc<Mirror>>,
    /// Clients and requests for another pool.
    pub canary: Option<Canary>,
}

/// The number of positions that clients can have; see `proxy::canary`.
pub const POSITIONS: u16 = 10_000;

/// Clients and requests for another pool than the active one.
pub struct Canary {
    /// The service with that pool as the active one.
    pub service: Arc<Service>,
    /// Clients with a lower position are sent there; at most [`POSITIONS`].
    pub share: u16,
    /// Where the position of a client comes from.
    pub stick: Stick,
    /// Makes the hashes of addresses different from those of other services.
    pub seed: u64,
    /// The header with the values `always` and `never`.
    pub header: Option<HeaderName>,
    /// The cookie with the same values.
    pub cookie: Option<String>,
}

/// Copies of requests for a standby pool.
pub struct Mirror {
    /// The service with that pool as the active one.
    pub service: Arc<Service>,
    /// The share of requests that is copied.
    pub share: Percentage,
    /// The responses so far.
    pub comparison: Arc<Comparison>,
    /// Connects to the pool.
    pub connector: Arc<Connector>,
}

/// Holds the current snapshot.
pub type SnapshotCell = ArcSwap<Snapshot>;

impl Snapshot {
    /// The snapshot before the first configuration: no service takes a request.
    pub fn empty() -> Self {
        Self { generation: 0, routes: RouteTable::new(std::iter::empty()), trusted_proxies: Vec::new(), tracing: false }
    }
}
