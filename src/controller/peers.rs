//! Every peer of one service, also those that are not in the file any more but still have requests: the task that looks after each,
//! the way to speak to them, and the metrics of their pools.
//!
//! [`super::service`] says whom to have, whom to prove and whom to keep. Nothing here opens or closes a peer.

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

use super::{swap::Swap, view::PeerView};
use crate::{
    config::{self, PeerAddress},
    metrics::{Metrics, PoolMetrics},
    pool::{Peer, Pool, Slot, Upstream, probe, probe::Pace, resolve},
    tasks,
};

/// What every service needs to make peers.
pub(super) struct Means {
    pub metrics: Arc<Metrics>,
    pub connector: Arc<Connector>,
    /// Where the configuration file is.
    pub folder: PathBuf,
    /// Wakes the controller.
    pub changed: Arc<Notify>,
}

/// What makes a peer the same one across reloads: its pool, and its address as the file has it.
type Identity = (String, PeerAddress);

/// The peers of one service.
pub(super) struct Peers {
    service: String,
    means: Arc<Means>,
    tracked: BTreeMap<Identity, Tracked>,
    /// Of what runs and of what is being proven.
    upstreams: Vec<Arc<Upstream>>,
    pool_metrics: BTreeMap<String, Arc<PoolMetrics>>,
}

/// A peer and the task that looks after it, which ends with it.
struct Tracked {
    peer: Arc<Peer>,
    pace: watch::Sender<Pace>,
    task: JoinHandle<()>,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peers {
    pub(super) fn new(service: &str, means: Arc<Means>) -> Self {
        let service = service.to_owned();
        Self { service, means, tracked: BTreeMap::new(), upstreams: Vec::new(), pool_metrics: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tracked.is_empty()
    }

    /// Makes what `wanted` needs and is not there yet, and begins to probe it.
    pub(super) fn prepare(&mut self, wanted: &config::Service, running: Option<&config::Service>) {
        let running = running.map(|running| &running.upstream);
        self.upstreams.retain(|upstream| Some(upstream.config()) == running || *upstream.config() == wanted.upstream);
        if !self.upstreams.iter().any(|upstream| *upstream.config() == wanted.upstream) {
            self.upstreams.push(Arc::new(Upstream::new(wanted.upstream.clone(), &self.means.folder)));
        }
        let usual = self.usual_pace(wanted);
        for id in wanted.pools.keys().flat_map(|pool| identities(pool, wanted)) {
            self.tracked.entry(id).or_insert_with_key(|(pool, address)| {
                let metrics = self.means.metrics.peer(&self.service, pool, &address.to_string());
                let peer = Arc::new(Peer::new(&self.service, pool, address.clone(), metrics, Arc::clone(&self.means.changed)));
                let (pace, paces) = watch::channel(usual.clone());
                let task = tokio::spawn(look_after(Arc::clone(&peer), paces, Arc::clone(&self.means)));
                Tracked { peer, pace, task }
            });
        }
    }

    /// Says how to probe: as the candidate has it who has to pass its proof, as what runs has it otherwise.
    pub(super) fn pace(&self, running: &config::Service, candidate: Option<(&config::Service, &Swap)>) {
        let usual = self.usual_pace(running);
        let proving = candidate.map(|(config, swap)| (Pace { proof: Some(swap.began), ..self.usual_pace(config) }, swap));
        for tracked in self.tracked.values() {
            let is_proven_by = |swap: &Swap| swap.proof.peers.iter().any(|peer| Arc::ptr_eq(peer, &tracked.peer));
            let pace = proving.as_ref().filter(|(_, swap)| is_proven_by(swap)).map_or(&usual, |(pace, _)| pace);
            tracked.pace.send_if_modified(|current| {
                let changed = current != pace;
                // A proof that ends is no reason to probe at once.
                let wakes = current.check != pace.check || pace.proof.is_some();
                *current = pace.clone();
                changed && wakes
            });
        }
    }

    fn usual_pace(&self, config: &config::Service) -> Pace {
        Pace { check: Arc::new(config.health_check.clone()), upstream: self.upstream(config), proof: None }
    }

    /// Lets go of those that are in none of `configs`, have nothing in flight and are not draining.
    pub(super) fn forget(&mut self, configs: &[&config::Service], is_draining: impl Fn(&Arc<Peer>) -> bool) {
        let pools = || configs.iter().flat_map(|config| config.pools.keys().map(move |pool| (pool, *config)));
        let kept: BTreeSet<Identity> = pools().flat_map(|(pool, config)| identities(pool, config)).collect();
        let metrics = &self.means.metrics;
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

    /// Those of the pool that `config` makes active.
    pub(super) fn of_active(&self, config: &config::Service) -> Vec<Arc<Peer>> {
        let tracked = identities(&config.active, config).filter_map(|id| self.tracked.get(&id));
        tracked.map(|tracked| Arc::clone(&tracked.peer)).collect()
    }

    /// Those that take requests.
    pub(super) fn open(&self) -> Vec<Arc<Peer>> {
        self.tracked.values().map(|tracked| &tracked.peer).filter(|peer| peer.is_open()).cloned().collect()
    }

    /// The pool that `config` makes active, as requests will see it.
    pub(super) fn active_pool(&mut self, config: &config::Service) -> Pool {
        let peers = config.pools.get(&config.active).map(|pool| pool.peers.as_slice()).unwrap_or_default();
        let slot = |peer: &config::Peer| {
            let tracked = self.tracked.get(&(config.active.clone(), peer.address.clone()))?;
            Some(Slot { peer: Arc::clone(&tracked.peer), weight: peer.weight })
        };
        let slots = peers.iter().filter_map(slot).collect();
        let metrics = self
            .pool_metrics
            .entry(config.active.clone())
            .or_insert_with(|| Arc::new(self.means.metrics.pool(&self.service, &config.active)));
        Pool::new(&config.active, slots, config.balance, config.fail_open, Arc::clone(metrics))
    }

    /// How to speak to those of `config`.
    pub(super) fn upstream(&self, config: &config::Service) -> Arc<Upstream> {
        let known = self.upstreams.iter().find(|upstream| *upstream.config() == config.upstream);
        known.map_or_else(|| Arc::new(Upstream::new(config.upstream.clone(), &self.means.folder)), Arc::clone)
    }

    /// The pools that they are of.
    pub(super) fn pools(&self) -> impl Iterator<Item = &String> {
        self.tracked.keys().map(|(pool, _)| pool)
    }

    /// What the status shows of those of a pool, in the order of the file.
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

/// Finds a peer, then keeps finding and probing it.
async fn look_after(peer: Arc<Peer>, paces: watch::Receiver<Pace>, means: Arc<Means>) {
    let restarts = &means.metrics.task_restarts;
    let probed = || {
        if probe::is_stale(&peer, &paces.borrow().check) {
            peer.health.reset();
            peer.notify();
        }
        probe::run(Arc::clone(&peer), paces.clone(), Arc::clone(&means.connector))
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
