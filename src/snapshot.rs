//! Everything a request needs, as one immutable value behind one pointer.
//!
//! The controller stores it, requests load it; a request keeps the snapshot it began with. Requests read no second cell: what
//! changes together is seen together.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::{
    config::{ErrorPage, Timeouts},
    metrics::ServiceMetrics,
    pool::{Pool, Upstream},
    route::RouteTable,
};

/// Everything a request needs.
pub struct Snapshot {
    /// Counts stores, from 1.
    pub generation: u64,
    /// Host and path to service.
    pub routes: RouteTable<Arc<Service>>,
    /// Clients whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether a request without a `traceparent` is given one.
    pub tracing: bool,
}

/// A service as requests see it.
pub struct Service {
    /// As in the file.
    pub name: String,
    /// The pool that serves.
    pub active: Pool,
    /// How its peers are spoken to.
    pub upstream: Arc<Upstream>,
    /// By status, with a place for the request's id.
    pub error_pages: BTreeMap<u16, ErrorPage>,
    /// Bounds on one request.
    pub timeouts: Timeouts,
    /// Further peers tried after one that could not be connected to.
    pub retries: usize,
    /// Its handles.
    pub metrics: Arc<ServiceMetrics>,
}

/// Where the current snapshot is.
pub type SnapshotCell = ArcSwap<Snapshot>;

impl Snapshot {
    /// The snapshot before the first configuration: no service takes a request.
    pub fn empty() -> Self {
        Self { generation: 0, routes: RouteTable::new(std::iter::empty()), trusted_proxies: Vec::new(), tracing: false }
    }
}
