//! What the controller shows of itself: the shape of things by value, the counts by reference.
//!
//! Published through a watch channel after every step, so that nobody has to ask the controller and a status is never older
//! than its reader's question.

use std::{sync::Arc, time::SystemTime};

use super::swap::Swap;
use crate::{
    config::Problem,
    metrics::Metrics,
    pool::Peer,
    status::{self, PeerStatus, PoolState, PoolStatus, ReloadResult, ServiceStatus, Status},
};

/// Everything the status and a scrape show.
#[derive(Clone)]
pub struct View {
    pub(super) generation: u64,
    /// Whether the first look at every active pool has said something.
    pub(super) settled: bool,
    pub(super) file: String,
    pub(super) last_reload: LastReload,
    pub(super) services: Vec<ServiceView>,
    pub(super) shutdown_timeout: std::time::Duration,
}

/// The last reading of the file.
#[derive(Clone)]
pub(super) struct LastReload {
    pub result: ReloadResult,
    pub at: SystemTime,
    pub problems: Vec<Problem>,
}

#[derive(Clone)]
pub(super) struct ServiceView {
    pub name: String,
    pub active: String,
    pub swap: Option<Swap>,
    pub last_swap: Option<status::Swap>,
    pub pools: Vec<PoolView>,
}

#[derive(Clone)]
pub(super) struct PoolView {
    pub name: String,
    pub version: Option<String>,
    pub state: PoolState,
    pub peers: Vec<PeerView>,
}

#[derive(Clone)]
pub(super) struct PeerView {
    pub peer: Arc<Peer>,
    /// None for a peer that has left the file.
    pub weight: Option<u16>,
    pub draining: bool,
}

impl View {
    /// Whether the first look at every active pool has said something, good or bad; stays so.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// How long a stopping process waits for running requests.
    pub fn shutdown_timeout(&self) -> std::time::Duration {
        self.shutdown_timeout
    }

    /// How everything stands at this moment.
    pub fn status(&self, listeners: &[String]) -> Status {
        Status {
            generation: self.generation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: listeners.to_vec(),
            config: status::ConfigStatus {
                file: self.file.clone(),
                last_reload: status::Reload {
                    result: self.last_reload.result,
                    at: rfc3339(self.last_reload.at),
                    problems: self.last_reload.problems.clone(),
                },
            },
            services: self.services.iter().map(ServiceView::status).collect(),
        }
    }

    /// Whether a pool is safe to stop; none if there is no such pool.
    pub fn safe_to_stop(&self, service: &str, pool: &str) -> Option<bool> {
        let service = self.services.iter().find(|known| known.name == service)?;
        service.pools.iter().find(|known| known.name == pool).map(PoolView::safe_to_stop)
    }

    /// Names of the pools of a service; none if there is no such service.
    pub fn pools(&self, service: &str) -> Option<Vec<&str>> {
        let service = self.services.iter().find(|known| known.name == service)?;
        Some(service.pools.iter().map(|pool| pool.name.as_str()).collect())
    }

    /// Names of the services.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|service| service.name.as_str())
    }

    /// Brings the gauges to what the peers say, just before a scrape.
    pub fn set_gauges(&self, metrics: &Metrics) {
        metrics.set_generation(self.generation);
        let pools = self.services.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)));
        metrics.set_active_pools(pools.clone().map(|(service, pool)| {
            let version = pool.version.as_deref().unwrap_or_default();
            (service.name.as_str(), pool.name.as_str(), version, pool.state == PoolState::Active)
        }));
        for view in pools.flat_map(|(_, pool)| &pool.peers) {
            view.peer.metrics.set(&view.peer.facts(view.draining));
        }
    }
}

impl ServiceView {
    fn status(&self) -> ServiceStatus {
        ServiceStatus {
            name: self.name.clone(),
            active: self.active.clone(),
            swap: self.swap.as_ref().map(Swap::status),
            last_swap: self.last_swap.clone(),
            pools: self.pools.iter().map(PoolView::status).collect(),
        }
    }
}

impl PoolView {
    fn in_flight(&self) -> usize {
        self.peers.iter().map(|view| view.peer.in_flight()).sum()
    }

    fn safe_to_stop(&self) -> bool {
        self.state == PoolState::Standby && self.in_flight() == 0
    }

    fn status(&self) -> PoolStatus {
        PoolStatus {
            name: self.name.clone(),
            version: self.version.clone(),
            state: self.state,
            safe_to_stop: self.safe_to_stop(),
            in_flight: self.in_flight(),
            upgraded: self.peers.iter().map(|view| view.peer.upgraded()).sum(),
            peers: self.peers.iter().map(PeerView::status).collect(),
        }
    }
}

impl PeerView {
    fn status(&self) -> PeerStatus {
        let peer = &self.peer;
        let probe = |probe: crate::pool::health::ProbeResult| status::Probe {
            at: rfc3339(probe.at),
            ok: probe.failure.is_none(),
            milliseconds: u64::try_from(probe.took.as_millis()).unwrap_or(u64::MAX),
            reason: probe.failure,
        };
        PeerStatus {
            address: peer.address.to_string(),
            resolved: peer.target().map(|target| target.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default(),
            weight: self.weight.unwrap_or(0),
            ready: peer.health.is_ready(),
            draining: self.draining,
            in_flight: peer.in_flight(),
            upgraded: peer.upgraded(),
            last_probe: peer.health.record().last.map(probe),
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
