//! One service as the controller sees it: what runs, what is being proven, what drains, and every peer of these.
//!
//! Only the controller's task touches it. It opens and closes peers around the store of a snapshot but never stores one
//! itself: `open` and `build` come before the store, `close_others` after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use log::{info, warn};
use pingora::connectors::http::Connector;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    edit::Edit,
    swap::{Proof, Swap},
    view::{PeerView, PoolView, ServiceView},
};
use crate::{
    config::{self, PeerAddress},
    metrics::{Metrics, PoolMetrics, ServiceMetrics},
    pool::{Peer, Pool, Slot, Upstream, probe, probe::Pace, resolve},
    snapshot,
    status::{self, Outcome, PoolState},
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

/// One service.
pub(super) struct Service {
    name: String,
    means: Arc<Means>,
    metrics: Arc<ServiceMetrics>,
    pool_metrics: BTreeMap<String, Arc<PoolMetrics>>,
    /// What requests see; none before the first publication and after the service left the file.
    running: Option<Running>,
    candidate: Option<Candidate>,
    drains: Vec<Drain>,
    /// By pool and address, which is a peer's identity: it survives every reload that keeps it.
    peers: BTreeMap<(String, PeerAddress), Tracked>,
    /// Of what runs and of the candidate.
    upstreams: Vec<Arc<Upstream>>,
    swap: Option<Swap>,
    last_swap: Option<status::Swap>,
    removed: bool,
}

struct Running {
    config: config::Service,
    snapshot: Arc<snapshot::Service>,
}

/// A configuration that waits for its proof.
struct Candidate {
    config: config::Service,
    swap: Swap,
    deadline: Instant,
    /// The change of the file that goes with it.
    edit: Option<Box<Edit>>,
    /// At the start of a service there is nobody else to serve, so it is published unproven.
    published: bool,
}

struct Drain {
    swap: Swap,
    peers: Vec<Arc<Peer>>,
    deadline: Instant,
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

/// Where a wish comes from.
pub(super) enum Why {
    /// The file says so.
    File,
    /// Somebody asked for it, and the file has to be changed if it does not say so yet.
    Promotion(Option<Box<Edit>>),
}

/// What became of a wanted configuration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It runs, or is being proven, already.
    Unchanged,
    /// There is nothing to publish now: it waits for its proof, or it runs and what was being proven in its place is given up.
    Applied,
    /// It can be published now, with [`Service::publish`].
    Publish,
}

impl Service {
    pub(super) fn new(name: &str, means: Arc<Means>) -> Self {
        let metrics = Arc::new(means.metrics.service(name));
        Self {
            name: name.to_owned(),
            means,
            metrics,
            pool_metrics: BTreeMap::new(),
            running: None,
            candidate: None,
            drains: Vec::new(),
            peers: BTreeMap::new(),
            upstreams: Vec::new(),
            swap: None,
            last_swap: None,
            removed: false,
        }
    }

    /// Takes in what is wanted; a newer wish takes the place of one that is still being proven.
    pub(super) fn want(&mut self, wanted: config::Service, why: Why, now: Instant) -> Taken {
        self.removed = false;
        let (edit, from_file) = match why {
            Why::File => (None, true),
            Why::Promotion(edit) => (edit, false),
        };
        if let Some(candidate) = &mut self.candidate {
            if candidate.config == wanted {
                // If it comes from the file, somebody wrote the line that a promotion was about to write.
                candidate.edit = edit;
                return Taken::Unchanged;
            }
            // The file still says what it said when the promotion began, which is no newer wish.
            if from_file && candidate.edit.as_ref().is_some_and(|edit| edit.base == wanted) {
                return Taken::Unchanged;
            }
        }
        let superseded = self.give_up(Outcome::Superseded, Some("a newer edit took its place".to_owned()), now);
        let first = self.running.is_none();
        if self.running.as_ref().is_some_and(|running| running.config == wanted) {
            return if superseded { Taken::Applied } else { Taken::Unchanged };
        }
        self.prepare_upstream(&wanted);
        self.track(&wanted);
        let proof = self.to_prove(&wanted);
        let from = self.running.as_ref().map(|running| running.config.active.clone());
        if from.as_ref() != Some(&wanted.active) {
            let from = from.as_deref().unwrap_or("nothing");
            info!("swap begins service={} from={from} to={}", self.name, wanted.active);
        }
        let swap = Swap::new(from, wanted.active.clone(), proof, now);
        let proving = !swap.proof.peers.is_empty();
        self.candidate = Some(Candidate { deadline: now + wanted.ready_timeout, config: wanted, swap, edit, published: false });
        self.pace();
        if proving && !first { Taken::Applied } else { Taken::Publish }
    }

    /// The service has left the file.
    pub(super) fn remove(&mut self, now: Instant) {
        self.removed = true;
        self.give_up(Outcome::Superseded, Some("the service left the file".to_owned()), now);
        let Some(running) = self.running.take() else {
            return;
        };
        let active = running.config.active;
        let swap = Swap::new(Some(active.clone()), active, Proof::default(), now);
        self.drain_others(swap, &BTreeSet::new(), running.config.drain_timeout, now);
    }

    /// Whether it is gone for good.
    pub(super) fn is_gone(&self) -> bool {
        self.removed && self.drains.is_empty() && self.peers.is_empty()
    }

    /// Opens the peers of what is to be published and builds it; to be called before the snapshot is stored.
    pub(super) fn open(&mut self) {
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        let config = candidate.config.clone();
        candidate.published = true;
        let active = self.active_pool(&config);
        active.slots().iter().for_each(|slot| slot.peer.open());
        let snapshot = snapshot::Service {
            name: self.name.clone(),
            active,
            upstream: self.upstream(&config),
            error_pages: config.error_pages.clone(),
            timeouts: config.timeouts,
            retries: config.retries,
            metrics: Arc::clone(&self.metrics),
        };
        self.running = Some(Running { config, snapshot: Arc::new(snapshot) });
    }

    /// Closes everybody who no longer serves; to be called after the snapshot is stored. Ends the candidate if nothing has to
    /// be proven any more.
    pub(super) fn close_others(&mut self, generation: u64, now: Instant) {
        let Some(candidate) = self.candidate.take_if(|candidate| candidate.published && candidate.swap.proven()) else {
            return;
        };
        let serving = identities(&candidate.config.active, &candidate.config);
        if candidate.swap.from.as_ref() != Some(&candidate.swap.to) {
            let took = candidate.swap.began.elapsed().as_millis();
            info!("promoted service={} pool={} generation={generation} took={took}ms", self.name, candidate.swap.to);
        }
        self.drain_others(candidate.swap, &serving, candidate.config.drain_timeout, now);
        self.pace();
    }

    /// Closes every open peer but those in `serving`, and waits for their requests under `swap`.
    fn drain_others(
        &mut self,
        mut swap: Swap,
        serving: &BTreeSet<(String, PeerAddress)>,
        timeout: std::time::Duration,
        now: Instant,
    ) {
        // Whoever serves again is not draining any more, and whoever waited for that waits in vain.
        let serves = |peer: &Arc<Peer>| serving.contains(&(peer.pool.clone(), peer.address.clone()));
        let (reopened, drains): (Vec<Drain>, Vec<Drain>) =
            std::mem::take(&mut self.drains).into_iter().partition(|drain| drain.peers.iter().any(serves));
        self.drains = drains;
        let mut leaving: Vec<Arc<Peer>> =
            self.peers.values().map(|tracked| &tracked.peer).filter(|peer| peer.is_open()).cloned().collect();
        for Drain { swap: mut old, peers, .. } in reopened {
            old.end(now, Outcome::Superseded, Some("its old pool serves again".to_owned()));
            self.ended(&old);
            leaving.extend(peers);
        }
        leaving.retain(|peer| !serves(peer));
        if leaving.is_empty() && swap.from.as_ref() == Some(&swap.to) {
            // Only settings changed: nobody would call that a swap.
            return;
        }
        // Close first, count afterwards: see `Lease::new`.
        leaving.iter().for_each(|peer| peer.close());
        swap.promoted(now, leaving.clone());
        self.swap = Some(swap.clone());
        self.drains.push(Drain { swap, peers: leaving, deadline: now + timeout });
    }

    /// Moves on what can be moved on. Returns whether the candidate is proven and waits to be published.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        self.end_drains(now);
        let proven = match &self.candidate {
            Some(candidate) if candidate.swap.proven() => true,
            Some(candidate) if now >= candidate.deadline => {
                self.give_up(Outcome::NotReady, None, now);
                false
            }
            _ => false,
        };
        self.forget();
        proven
    }

    fn end_drains(&mut self, now: Instant) {
        for mut drain in std::mem::take(&mut self.drains) {
            let left = drain.swap.in_flight();
            let swapped = drain.swap.from.as_ref() != Some(&drain.swap.to);
            let from = drain.swap.from.clone().unwrap_or_default();
            if left == 0 {
                drain.swap.end(now, Outcome::Drained, None);
                if swapped && !from.is_empty() {
                    let took = drain.swap.drain_took().unwrap_or_default().as_millis();
                    info!("drained, safe to stop service={} pool={from} took={took}ms", self.name);
                }
                self.ended(&drain.swap);
            } else if now >= drain.deadline {
                drain.swap.end(now, Outcome::DrainTimedOut, Some(format!("{left} still running on {from}")));
                warn!("drain timed out service={} pool={from} in_flight={left}", self.name);
                self.ended(&drain.swap);
            } else {
                self.drains.push(drain);
            }
        }
    }

    /// Drops the candidate; what ran before goes on. Returns whether there was one.
    pub(super) fn give_up(&mut self, outcome: Outcome, reason: Option<String>, now: Instant) -> bool {
        let Some(mut candidate) = self.candidate.take() else {
            return false;
        };
        candidate.swap.end(now, outcome, reason);
        let status = candidate.swap.status();
        let (name, to, why) = (&self.name, &status.to, status.reason.as_deref().unwrap_or_default());
        match outcome {
            Outcome::NotReady if status.from.is_none() => {
                warn!("not ready in time, answering 503 until it is service={name} pool={to} reason={why}");
            }
            Outcome::NotReady => warn!("swap failed, the old pool serves service={name} to={to} outcome=not_ready reason={why}"),
            _ => info!("swap given up service={name} to={to} outcome={} reason={why}", outcome.label()),
        }
        self.swap = Some(candidate.swap.clone());
        self.ended(&candidate.swap);
        self.pace();
        true
    }

    /// Counts a swap that has ended, and shows it unless a newer one is on its way.
    fn ended(&mut self, swap: &Swap) {
        let status = swap.status();
        if let Some(outcome) = status.outcome {
            self.means.metrics.swap_ended(&self.name, outcome.label(), swap.prove_took(), swap.drain_took(), swap.took());
        }
        self.last_swap = Some(status);
        if self.swap.as_ref().is_some_and(|current| current.same_as(swap)) {
            self.swap = Some(swap.clone());
        }
    }

    /// The change of the file that goes with a proven candidate.
    pub(super) fn take_edit(&mut self) -> Option<Box<Edit>> {
        self.candidate.as_mut()?.edit.take()
    }

    /// The swap in progress that leads to what is wanted now.
    pub(super) fn current_swap(&self) -> Option<watch::Receiver<status::Swap>> {
        let proving = self.candidate.as_ref().map(|candidate| &candidate.swap);
        let draining = || self.swap.as_ref().filter(|swap| self.drains.iter().any(|drain| drain.swap.same_as(swap)));
        proving.or_else(draining).map(Swap::subscribe)
    }

    /// When time alone will change something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let drains = self.drains.iter().map(|drain| drain.deadline);
        drains.chain(self.candidate.as_ref().map(|candidate| candidate.deadline)).min()
    }

    /// Which peers have to pass before `wanted` may serve.
    fn to_prove(&self, wanted: &config::Service) -> Proof {
        let peers: Vec<Arc<Peer>> =
            identities(&wanted.active, wanted).iter().filter_map(|id| self.peers.get(id)).map(|t| Arc::clone(&t.peer)).collect();
        let any_ready = || peers.iter().any(|peer| peer.health.is_ready());
        let ready_after = wanted.health_check.ready_after;
        let Some(running) = &self.running else {
            return Proof { peers, any: false, ready_after };
        };
        if running.config.active != wanted.active {
            let draining = |peer: &Arc<Peer>| self.drains.iter().any(|drain| drain.peers.iter().any(|p| Arc::ptr_eq(p, peer)));
            // A pool that served a moment ago and still does for some need not be proven again.
            let back = peers.iter().all(|peer| peer.health.is_ready() && draining(peer));
            return Proof { peers: if back { Vec::new() } else { peers }, any: false, ready_after };
        }
        // Make before break: the last ready peer is not let go before another one is ready.
        let leaves = running.snapshot.active.slots().iter().any(|slot| !peers.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer)));
        Proof { peers: if leaves && !any_ready() { peers } else { Vec::new() }, any: true, ready_after }
    }

    /// Makes the way to speak to peers of `wanted`, if it is a new one, and forgets those of nobody.
    fn prepare_upstream(&mut self, wanted: &config::Service) {
        let running = self.running.as_ref().map(|running| &running.config.upstream);
        self.upstreams.retain(|upstream| Some(upstream.config()) == running || *upstream.config() == wanted.upstream);
        if !self.upstreams.iter().any(|upstream| *upstream.config() == wanted.upstream) {
            self.upstreams.push(Arc::new(Upstream::new(wanted.upstream.clone(), &self.means.folder)));
        }
    }

    fn upstream(&self, config: &config::Service) -> Arc<Upstream> {
        let known = self.upstreams.iter().find(|upstream| *upstream.config() == config.upstream);
        known.map_or_else(|| Arc::new(Upstream::new(config.upstream.clone(), &self.means.folder)), Arc::clone)
    }

    /// Makes the peers that are not there yet, and begins to probe them.
    fn track(&mut self, config: &config::Service) {
        let check = Arc::new(config.health_check.clone());
        let upstream = self.upstream(config);
        for id in config.pools.keys().flat_map(|pool| identities(pool, config)) {
            self.peers.entry(id).or_insert_with_key(|(pool, address)| {
                let metrics = self.means.metrics.peer(&self.name, pool, &address.to_string());
                let peer = Arc::new(Peer::new(&self.name, pool, address.clone(), metrics, Arc::clone(&self.means.changed)));
                let (pace, paces) =
                    watch::channel(Pace { check: Arc::clone(&check), upstream: Arc::clone(&upstream), proof: None });
                let task = tokio::spawn(look_after(Arc::clone(&peer), paces, Arc::clone(&self.means.connector)));
                Tracked { peer, pace, task }
            });
        }
    }

    /// Tells every peer's task how to probe: as the candidate says who has to pass its proof, as what runs says otherwise.
    fn pace(&self) {
        let Some(config) = self.running.as_ref().map(|running| &running.config).or(self.candidate.as_ref().map(|c| &c.config))
        else {
            return;
        };
        let usual = (Arc::new(config.health_check.clone()), self.upstream(config));
        let proving =
            self.candidate.as_ref().map(|c| (Arc::new(c.config.health_check.clone()), self.upstream(&c.config), &c.swap));
        for tracked in self.peers.values() {
            let proof =
                proving.as_ref().filter(|(_, _, swap)| swap.proof.peers.iter().any(|peer| Arc::ptr_eq(peer, &tracked.peer)));
            let pace = match proof {
                Some((check, upstream, swap)) => {
                    Pace { check: Arc::clone(check), upstream: Arc::clone(upstream), proof: Some(swap.began) }
                }
                None => Pace { check: Arc::clone(&usual.0), upstream: Arc::clone(&usual.1), proof: None },
            };
            tracked.pace.send_if_modified(|current| {
                let changed = *current != pace;
                // A proof that ends is no reason to probe at once.
                let wakes = current.check != pace.check || pace.proof.is_some();
                *current = pace;
                changed && wakes
            });
        }
    }

    /// Lets go of peers that are in no configuration any more and have nothing in flight.
    fn forget(&mut self) {
        let configs = self.running.iter().map(|r| &r.config).chain(self.candidate.iter().map(|c| &c.config));
        let kept: BTreeSet<_> =
            configs.clone().flat_map(|config| config.pools.keys().flat_map(|pool| identities(pool, config))).collect();
        let pools: BTreeSet<String> = configs.flat_map(|config| config.pools.keys().cloned()).collect();
        let draining = |peer: &Arc<Peer>| self.drains.iter().any(|drain| drain.peers.iter().any(|p| Arc::ptr_eq(p, peer)));
        let metrics = &self.means.metrics;
        self.peers.retain(|id, tracked| {
            let keep = kept.contains(id) || tracked.peer.in_flight() > 0 || draining(&tracked.peer);
            if !keep {
                metrics.remove_peer(&self.name, &id.0, &id.1.to_string(), &tracked.peer.metrics.requests);
            }
            keep
        });
        self.pool_metrics.retain(|pool, _| {
            let keep = pools.contains(pool) || self.peers.keys().any(|(of, _)| of == pool);
            if !keep {
                metrics.remove_pool(&self.name, pool);
            }
            keep
        });
        if self.is_gone() {
            metrics.remove_service(&self.name, &self.metrics.unserved);
        }
    }

    fn active_pool(&mut self, config: &config::Service) -> Pool {
        let peers = config.pools.get(&config.active).map(|pool| pool.peers.as_slice()).unwrap_or_default();
        let slot = |peer: &config::Peer| {
            let tracked = self.peers.get(&(config.active.clone(), peer.address.clone()))?;
            Some(Slot { peer: Arc::clone(&tracked.peer), weight: peer.weight })
        };
        let slots = peers.iter().filter_map(slot).collect();
        let metrics = self
            .pool_metrics
            .entry(config.active.clone())
            .or_insert_with(|| Arc::new(self.means.metrics.pool(&self.name, &config.active)));
        Pool::new(&config.active, slots, config.balance, config.fail_open, Arc::clone(metrics))
    }

    /// What requests see of it.
    pub(super) fn published(&self) -> Option<(&config::Service, &Arc<snapshot::Service>)> {
        self.running.as_ref().map(|running| (&running.config, &running.snapshot))
    }

    /// Whether the first look at its active pool has said something: that it is ready, or that a peer is not.
    pub(super) fn is_settled(&self) -> bool {
        let mut slots = self.running.iter().flat_map(|running| running.snapshot.active.slots());
        let failed = |slot: &Slot| slot.peer.health.record().last.is_some_and(|probe| probe.failure.is_some());
        self.candidate.is_none() || slots.any(failed)
    }

    /// What the status shows.
    pub(super) fn view(&self) -> ServiceView {
        let config = self.running.as_ref().map(|running| &running.config);
        let names = config.into_iter().flat_map(|config| config.pools.keys()).chain(self.peers.keys().map(|(pool, _)| pool));
        let names: BTreeSet<&String> = names.collect();
        let draining = |peer: &Arc<Peer>| self.drains.iter().any(|drain| drain.peers.iter().any(|p| Arc::ptr_eq(p, peer)));
        let pool = |name: &String| {
            let pool = config.and_then(|config| config.pools.get(name));
            let weight = |address: &PeerAddress| {
                pool.and_then(|pool| pool.peers.iter().find(|peer| peer.address == *address)).map(|peer| peer.weight)
            };
            let of_pool = self.peers.iter().filter(|((of, _), _)| of == name);
            let mut peers: Vec<PeerView> = of_pool
                .map(|((_, address), tracked)| PeerView {
                    peer: Arc::clone(&tracked.peer),
                    weight: weight(address),
                    draining: draining(&tracked.peer),
                })
                .collect();
            let position =
                |view: &PeerView| pool.and_then(|pool| pool.peers.iter().position(|peer| peer.address == view.peer.address));
            peers.sort_by_key(|view| position(view).unwrap_or(usize::MAX));
            let state = match () {
                () if config.is_some_and(|config| config.active == *name) => PoolState::Active,
                () if peers.iter().any(|peer| peer.draining) => PoolState::Draining,
                () => PoolState::Standby,
            };
            PoolView { name: name.clone(), version: pool.and_then(|pool| pool.version.clone()), state, peers }
        };
        ServiceView {
            name: self.name.clone(),
            active: config.map(|config| config.active.clone()).unwrap_or_default(),
            swap: self.candidate.as_ref().map(|candidate| &candidate.swap).or(self.swap.as_ref()).cloned(),
            last_swap: self.last_swap.clone(),
            pools: names.into_iter().map(pool).collect(),
        }
    }
}

/// Finds a peer, then keeps finding and probing it.
async fn look_after(peer: Arc<Peer>, paces: watch::Receiver<Pace>, connector: Arc<Connector>) {
    resolve::first(&peer).await;
    tokio::join!(resolve::run(Arc::clone(&peer)), probe::run(peer, paces, connector));
}

/// The identities of a pool's peers.
fn identities(pool: &str, config: &config::Service) -> BTreeSet<(String, PeerAddress)> {
    let peers = config.pools.get(pool).into_iter().flat_map(|pool| &pool.peers);
    peers.map(|peer| (pool.to_owned(), peer.address.clone())).collect()
}
