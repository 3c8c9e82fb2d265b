//! The state that the controller publishes for the admin API: services and swaps by value, live counters by reference.
//!
//! Sent through a watch channel after every step, so that readers never wait for the controller.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::swap::Swap;
use crate::{
    config::{self, Config, Percentage, Problem},
    metrics::Metrics,
    pool::{
        Peer,
        mirror::{Comparison, Responses},
    },
    snapshot::Mirror,
    status::{self, PeerStatus, PoolState, PoolStatus, ReloadResult, ServiceDrift, ServiceStatus, Status},
};

/// Everything that the status and the metrics show.
#[derive(Clone)]
pub struct View {
    pub(super) generation: u64,
    /// Why the process is not ready to serve at its start; none once it was.
    pub(super) not_ready: Option<String>,
    pub(super) file: String,
    pub(super) last_reload: LastReload,
    pub(super) state_dir: Option<status::StateDir>,
    pub(super) services: Vec<ServiceView>,
    pub(super) config: Arc<Config>,
}

/// The last reload of the file.
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
    pub served_last: Option<String>,
    pub swap: Option<Swap>,
    pub last_swap: Option<status::Swap>,
    pub drift: Option<status::Drift>,
    pub mirror: Option<Arc<Mirror>>,
    /// When the observation of its active pool ends.
    pub observed_until: Option<Instant>,
    /// Of the running configuration.
    pub canary: Option<config::Canary>,
    pub drain_timeout: Duration,
    pub pools: Vec<PoolView>,
}

/// A pool with its peers, for a caller that waits until it is safe to stop.
#[derive(Clone)]
pub struct PoolView {
    pub(super) name: String,
    pub(super) version: Option<String>,
    pub(super) state: PoolState,
    /// The share of the clients that it gets, besides the active pool.
    pub(super) canary_share: Option<Percentage>,
    /// Whether it gets copies of requests.
    pub(super) is_mirrored: bool,
    /// For which new pool it is kept, and until when.
    pub(super) kept: Option<(String, Instant)>,
    pub(super) peers: Vec<PeerView>,
}

#[derive(Clone)]
pub(super) struct PeerView {
    pub peer: Arc<Peer>,
    /// None for a peer that was removed from the file.
    pub weight: Option<u16>,
    pub draining: bool,
}

impl View {
    /// Why the process is not ready to serve at its start; none once it was.
    pub fn not_ready(&self) -> Option<&str> {
        self.not_ready.as_deref()
    }

    /// How long the process waits for running requests when it stops.
    pub fn shutdown_timeout(&self) -> Duration {
        self.config.shutdown_timeout
    }

    /// The configuration that runs; a service whose new configuration is being proven still has its old one.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Builds the status at this moment.
    pub fn status(&self, listeners: &[String]) -> Status {
        Status {
            generation: self.generation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: listeners.to_vec(),
            config: status::ConfigStatus {
                // A command compares it with its own file, and may run in another folder.
                file: std::path::absolute(&self.file).map_or_else(|_| self.file.clone(), |path| path.display().to_string()),
                last_reload: status::Reload {
                    result: self.last_reload.result,
                    at: rfc3339(self.last_reload.at),
                    problems: self.last_reload.problems.clone(),
                },
                state_dir: self.state_dir.clone(),
            },
            services: self.services.iter().map(|service| self.service_status(service)).collect(),
        }
    }

    fn service_status(&self, service: &ServiceView) -> ServiceStatus {
        ServiceStatus {
            name: service.name.clone(),
            active: service.active.clone(),
            served_last: service.served_last.clone(),
            swap: service.swap.as_ref().map(Swap::status),
            last_swap: service.last_swap.clone(),
            drift: service.drift.clone(),
            mirror: service.mirror.as_ref().map(|mirror| mirror_status(&service.active, mirror)),
            canary: service.canary_status(),
            pools: service.pools.iter().map(|pool| pool.status(self.not_safe(&service.name, pool))).collect(),
        }
    }

    pub(super) fn service(&self, name: &str) -> Option<&ServiceView> {
        self.services.iter().find(|service| service.name == name)
    }

    /// A pool of a service; none if one of them is unknown.
    pub fn pool(&self, service: &str, pool: &str) -> Option<&PoolView> {
        self.service(service)?.pools.iter().find(|known| known.name == pool)
    }

    /// The active pool of a service; none for a service that is not in the file.
    pub fn active(&self, service: &str) -> Option<&str> {
        self.service(service).map(|service| service.active.as_str()).filter(|active| !active.is_empty())
    }

    /// The drift of a service, or of all of them.
    pub fn drift(&self, service: Option<&str>) -> Vec<ServiceDrift> {
        let services = self.services.iter().filter(|known| service.is_none_or(|name| name == known.name));
        let drift = |service: &ServiceView| Some(ServiceDrift { service: service.name.clone(), drift: service.drift.clone()? });
        services.filter_map(drift).collect()
    }

    /// How long the old pool of a service is waited for: `drain.timeout`, and at least to the end of the observation. None for an
    /// unknown service.
    pub fn drain_timeout(&self, service: &str) -> Option<Duration> {
        let service = self.service(service)?;
        let observed = service.observed_until.map(|until| until.saturating_duration_since(Instant::now()));
        Some(service.drain_timeout.max(observed.unwrap_or_default()))
    }

    /// Names of the pools of a service; none for an unknown service.
    pub fn pools(&self, service: &str) -> Option<Vec<&str>> {
        Some(self.service(service)?.pools.iter().map(|pool| pool.name.as_str()).collect())
    }

    /// Names of the services.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|service| service.name.as_str())
    }

    /// Sets the gauges from the peers, just before a scrape.
    pub fn set_gauges(&self, metrics: &Metrics) {
        metrics.set_generation(self.generation);
        let pools = self.services.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)));
        metrics.set_active_pools(pools.clone().map(|(service, pool)| {
            let version = pool.version.as_deref().unwrap_or_default();
            (service.name.as_str(), pool.name.as_str(), version, pool.state == PoolState::Active)
        }));
        metrics.set_canary_shares(pools.clone().filter_map(|(service, pool)| {
            let share = f64::from(pool.canary_share?.per_mille) / 1000.0;
            Some((service.name.as_str(), pool.name.as_str(), share))
        }));
        metrics.set_config_drift(self.services.iter().map(|service| (service.name.as_str(), service.drift.is_some())));
        for view in pools.flat_map(|(_, pool)| &pool.peers) {
            view.peer.metrics.set(&view.peer.gauges(view.draining));
        }
    }
}

impl ServiceView {
    fn canary_status(&self) -> Option<status::Canary> {
        let canary = self.canary.as_ref()?;
        let (pool, share) = (&canary.pool, canary.share);
        let mut peers = self.pools.iter().filter(|known| known.name == *pool).flat_map(|pool| &pool.peers);
        let is_ready = |view: &PeerView| view.peer.is_open() && view.peer.health.is_ready();
        let no_effect_because = match () {
            () if *pool == self.active => Some(format!("{pool} is the active pool")),
            () if !canary.has_effect(&self.active) => Some("no header and no cookie is set".to_owned()),
            () if self.pools.iter().all(|pool| pool.canary_share.is_none()) => {
                Some(format!("{pool} was taken back; edit canary or the pool to begin again"))
            }
            () if !peers.any(is_ready) => Some(format!("no peer of {pool} is ready")),
            () => None,
        };
        Some(status::Canary { pool: pool.clone(), share: share.to_string(), no_effect_because })
    }
}

impl PoolView {
    pub(super) fn in_flight(&self) -> usize {
        self.peers.iter().map(|view| view.peer.in_flight()).sum()
    }

    /// The requests of [`Self::in_flight`] that chose this pool.
    pub(super) fn previews(&self) -> usize {
        self.peers.iter().map(|view| view.peer.previews()).sum()
    }

    fn status(&self, not_safe_because: Option<String>) -> PoolStatus {
        PoolStatus {
            name: self.name.clone(),
            version: self.version.clone(),
            state: self.state,
            safe_to_stop: not_safe_because.is_none(),
            not_safe_because,
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
            reason: probe.failure.map(|failure| failure.to_string()),
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

fn mirror_status(active: &str, mirror: &Mirror) -> status::Mirror {
    let responses = |pool: &str, responses: &Responses| status::Responses {
        pool: pool.to_owned(),
        by_class: responses.by_class(),
        p50_seconds: responses.header_seconds(0.5),
        p95_seconds: responses.header_seconds(0.95),
    };
    let Comparison { originals, copies, metrics, .. } = &*mirror.comparison;
    status::Mirror {
        share: mirror.share.to_string(),
        originals: responses(active, originals),
        copies: responses(&mirror.service.active.name, copies),
        failed: metrics.failed.get(),
        dropped: metrics.dropped.get(),
        not_ready: metrics.not_ready.get(),
    }
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
