//! The peers of one service with their tasks, connection settings and pool metrics. Includes removed peers that still have
//! requests.
//!
//! [`super::service`] decides which peers to create, prove and keep. Nothing here opens or closes a peer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use pingora::connectors::http::Connector;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    proof::{Need, Proof},
    view::PeerView,
};
use crate::{
    config::{self, PeerAddress},
    hooks::Notifier,
    metrics::{Metrics, PoolMetrics},
    pool::{
        Peer, Pool, Slot, Upstream,
        probe::{self, Settings},
        resolve,
    },
    tasks,
};

/// Shared dependencies for the creation and the probes of peers.
pub(super) struct Deps {
    pub metrics: Arc<Metrics>,
    pub connector: Arc<Connector>,
    /// Gets the events of swaps.
    pub notifier: Notifier,
    /// The folder of the configuration file.
    pub folder: PathBuf,
    /// Wakes the controller.
    pub changed: Arc<Notify>,
    /// Wakes the controller after a failed request of an observed pool.
    pub failed: Arc<Notify>,
}

/// The identity of a peer across reloads: its pool, and its address as written in the file.
type Identity = (String, PeerAddress);

/// The peers of one service.
pub(super) struct Peers {
    service: String,
    deps: Arc<Deps>,
    tracked: BTreeMap<Identity, Tracked>,
    /// Connection settings of the running configuration and of the candidate.
    upstreams: Vec<Arc<Upstream>>,
    pool_metrics: BTreeMap<String, Arc<PoolMetrics>>,
}

/// A peer with the task that resolves and probes it. Dropping it ends the task.
struct Tracked {
    peer: Arc<Peer>,
    settings: watch::Sender<Option<Settings>>,
    task: JoinHandle<()>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peers {
    pub(super) fn new(service: &str, deps: Arc<Deps>) -> Self {
        let service = service.to_owned();
        Self { service, deps, tracked: BTreeMap::new(), upstreams: Vec::new(), pool_metrics: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tracked.is_empty()
    }

    /// Creates the missing peers and settings of `wanted`, and begins to probe them.
    pub(super) fn prepare(&mut self, wanted: &config::Service, running: Option<&config::Service>) {
        let running = running.map(|running| &running.upstream);
        self.upstreams.retain(|upstream| Some(upstream.config()) == running || *upstream.config() == wanted.upstream);
        let settings = self.settings(wanted);
        for id in wanted.pools.keys().flat_map(|pool| identities(pool, wanted)) {
            self.tracked.entry(id).or_insert_with_key(|(pool, address)| {
                let metrics = self.deps.metrics.peer(&self.service, pool, &address.to_string());
                let peer = Arc::new(Peer::new(&self.service, pool, address.clone(), metrics, Arc::clone(&self.deps.changed)));
                let (sender, receiver) = watch::channel(Some(settings.clone()));
                let task = tokio::spawn(resolve_and_probe(Arc::clone(&peer), receiver, Arc::clone(&self.deps)));
                Tracked { peer, settings: sender, task }
            });
        }
    }

    /// Begins to prove the active pool of `wanted`. For a peer that serves under other settings, the results do not change its
    /// readiness.
    pub(super) fn prove(&mut self, wanted: &config::Service, need: Need, running: Option<&config::Service>) -> Proof {
        let settings = self.settings(wanted);
        let same = running.is_none_or(|running| !asks_differently(running, wanted));
        let counts = |peer: &Peer| same || !peer.is_open();
        Proof::begin(self.of_active(wanted), need, &settings, counts, &self.deps.connector)
    }

    /// Probes every peer with the settings of `running`, and pauses the probes of peers that a proof probes.
    pub(super) fn probe_as(&mut self, running: &config::Service, proofs: &[&Proof]) {
        let settings = self.settings(running);
        for tracked in self.tracked.values() {
            let judged = proofs.iter().any(|proof| proof.judges(&tracked.peer));
            let wanted = (!judged).then_some(&settings);
            tracked.settings.send_if_modified(|current| {
                let changed = current.as_ref() != wanted;
                *current = wanted.cloned();
                changed
            });
        }
    }

    fn settings(&mut self, config: &config::Service) -> Settings {
        Settings { check: Arc::new(config.health_check.clone()), upstream: self.upstream(config) }
    }

    /// Drops the peers that are in none of `configs`, have no request in flight and are not draining.
    pub(super) fn forget(&mut self, configs: &[&config::Service], is_draining: impl Fn(&Arc<Peer>) -> bool) {
        let pools = || configs.iter().flat_map(|config| config.pools.keys().map(move |pool| (pool, *config)));
        let kept: BTreeSet<Identity> = pools().flat_map(|(pool, config)| identities(pool, config)).collect();
        let metrics = &self.deps.metrics;
        self.tracked.retain(|id, tracked| {
            let keep = kept.contains(id) || tracked.peer.in_flight() > 0 || is_draining(&tracked.peer);
            if !keep {
                metrics.remove_peer(&self.service, &id.0, &id.1.to_string(), &tracked.peer.metrics.requests);
            }
            keep
        });
        self.pool_metrics.retain(|name, _| {
            let keep = pools().any(|(pool, _)| pool == name) || self.tracked.keys().any(|(pool, _)| pool == name);
            if !keep {
                metrics.remove_pool(&self.service, name);
            }
            keep
        });
    }

    /// The peers of the active pool of `config`.
    pub(super) fn of_active(&self, config: &config::Service) -> Vec<Arc<Peer>> {
        let tracked = identities(&config.active, config).filter_map(|id| self.tracked.get(&id));
        tracked.map(|tracked| Arc::clone(&tracked.peer)).collect()
    }

    /// The peers that take requests.
    pub(super) fn open(&self) -> Vec<Arc<Peer>> {
        self.tracked.values().map(|tracked| &tracked.peer).filter(|peer| peer.is_open()).cloned().collect()
    }

    /// A pool of `config`, for a snapshot.
    pub(super) fn pool(&mut self, config: &config::Service, name: &str) -> Pool {
        let peers = config.pools.get(name).map(|pool| pool.peers.as_slice()).unwrap_or_default();
        let slot = |peer: &config::Peer| {
            let tracked = self.tracked.get(&(name.to_owned(), peer.address.clone()))?;
            Some(Slot { peer: Arc::clone(&tracked.peer), weight: peer.weight })
        };
        let slots = peers.iter().filter_map(slot).collect();
        let metrics = self.metrics(name);
        Pool::new(name, slots, config.balance, config.hash.as_ref(), config.fail_open, config.slow_start, metrics)
    }

    /// The metric handles of a pool; created if missing.
    pub(super) fn metrics(&mut self, pool: &str) -> Arc<PoolMetrics> {
        let metrics = self.pool_metrics.entry(pool.to_owned());
        Arc::clone(metrics.or_insert_with(|| Arc::new(self.deps.metrics.pool(&self.service, pool))))
    }

    /// The connection settings of `config`; created if missing.
    pub(super) fn upstream(&mut self, config: &config::Service) -> Arc<Upstream> {
        if let Some(known) = self.upstreams.iter().find(|upstream| *upstream.config() == config.upstream) {
            return Arc::clone(known);
        }
        // The first probe reads the CA file. A missing one does not prevent the start; the failing probes show the reason.
        let upstream = Arc::new(Upstream::new(config.upstream.clone(), &self.deps.folder));
        self.upstreams.push(Arc::clone(&upstream));
        upstream
    }

    /// The pools of the peers.
    pub(super) fn pools(&self) -> impl Iterator<Item = &String> {
        self.tracked.keys().map(|(pool, _)| pool)
    }

    /// The peers of a pool for the view, in the order of the file.
    pub(super) fn views(
        &self,
        name: &str,
        pool: Option<&config::Pool>,
        is_draining: impl Fn(&Arc<Peer>) -> bool,
    ) -> Vec<PeerView> {
        let listed = pool.map(|pool| pool.peers.as_slice()).unwrap_or_default();
        let position = |address: &PeerAddress| listed.iter().position(|peer| peer.address == *address);
        let of_pool = self.tracked.iter().filter(|((of, _), _)| of == name);
        let mut views: Vec<PeerView> = of_pool
            .map(|((_, address), tracked)| PeerView {
                peer: Arc::clone(&tracked.peer),
                weight: position(address).and_then(|at| listed.get(at)).map(|peer| peer.weight),
                draining: is_draining(&tracked.peer),
            })
            .collect();
        views.sort_by_key(|view| position(&view.peer.address).unwrap_or(usize::MAX));
        views
    }
}

/// Whether the two differ in connection or health check settings.
pub(super) fn asks_differently(a: &config::Service, b: &config::Service) -> bool {
    // How often a probe asks, and how many answers count, is not what it asks.
    let config::HealthCheck { interval, timeout, ready_after, not_ready_after, .. } = b.health_check;
    let like_b = config::HealthCheck { interval, timeout, ready_after, not_ready_after, ..a.health_check.clone() };
    a.upstream != b.upstream || like_b != b.health_check
}

/// Resolves and probes a peer until it is dropped.
async fn resolve_and_probe(peer: Arc<Peer>, settings: watch::Receiver<Option<Settings>>, deps: Arc<Deps>) {
    let restarts = &deps.metrics.task_restarts;
    let probed = || {
        if settings.borrow().as_ref().is_some_and(|settings| probe::is_stale(&peer, &settings.check)) {
            peer.health.reset();
            peer.notify();
        }
        probe::run(Arc::clone(&peer), settings.clone(), Arc::clone(&deps.connector))
    };
    resolve::first(&peer).await;
    tokio::join!(
        tasks::restarted("resolver", restarts, || resolve::run(Arc::clone(&peer))),
        tasks::restarted("probe", restarts, probed),
    );
}

fn identities(pool: &str, config: &config::Service) -> impl Iterator<Item = Identity> {
    let peers = config.pools.get(pool).into_iter().flat_map(|pool| &pool.peers);
    peers.map(move |peer| (pool.to_owned(), peer.address.clone()))
}
