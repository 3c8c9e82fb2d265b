//! One service as the controller sees it: what runs, what is being proven, what drains.
//!
//! Only the controller's task touches it. It opens and closes peers around the store of a snapshot but never stores one
//! itself: `open` comes before the store, `close_others` after it.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use log::{info, warn};
use tokio::sync::watch;

use super::{
    edit::Edit,
    peers::{Means, Peers},
    swap::{Proof, Swap},
    view::{PoolView, ServiceView},
};
use crate::{
    config,
    metrics::ServiceMetrics,
    pool::{Peer, Slot},
    snapshot,
    status::{self, Outcome, PoolState},
};

/// One service.
pub(super) struct Service {
    name: String,
    means: Arc<Means>,
    metrics: Arc<ServiceMetrics>,
    /// What requests see; none before the first publication and after the service left the file.
    running: Option<Running>,
    candidate: Option<Candidate>,
    drains: Vec<Drain>,
    peers: Peers,
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
            peers: Peers::new(name, Arc::clone(&means)),
            means,
            metrics,
            running: None,
            candidate: None,
            drains: Vec::new(),
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
        self.peers.prepare(&wanted, self.running.as_ref().map(|running| &running.config));
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
        self.drain_others(swap, &[], running.config.drain_timeout, now);
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
        let active = self.peers.active_pool(&config);
        active.slots().iter().for_each(|slot| slot.peer.open());
        let snapshot = snapshot::Service {
            name: self.name.clone(),
            active,
            upstream: self.peers.upstream(&config),
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
        let serving = self.peers.of_active(&candidate.config);
        if candidate.swap.from.as_ref() != Some(&candidate.swap.to) {
            let took = candidate.swap.began.elapsed().as_millis();
            info!("promoted service={} pool={} generation={generation} took={took}ms", self.name, candidate.swap.to);
        }
        self.drain_others(candidate.swap, &serving, candidate.config.drain_timeout, now);
        self.pace();
    }

    /// Closes every open peer but those in `serving`, and waits for their requests under `swap`.
    fn drain_others(&mut self, mut swap: Swap, serving: &[Arc<Peer>], timeout: std::time::Duration, now: Instant) {
        // Whoever serves again is not draining any more, and whoever waited for that waits in vain.
        let serves = |peer: &Arc<Peer>| serving.iter().any(|serving| Arc::ptr_eq(serving, peer));
        let (reopened, drains): (Vec<Drain>, Vec<Drain>) =
            std::mem::take(&mut self.drains).into_iter().partition(|drain| drain.peers.iter().any(serves));
        self.drains = drains;
        let mut leaving = self.peers.open();
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
        let peers = self.peers.of_active(wanted);
        let any_ready = || peers.iter().any(|peer| peer.health.is_ready());
        let ready_after = wanted.health_check.ready_after;
        let Some(running) = &self.running else {
            return Proof { peers, any: false, ready_after };
        };
        if running.config.active != wanted.active {
            // A pool that served a moment ago and still does for some need not be proven again.
            let back = peers.iter().all(|peer| peer.health.is_ready() && is_draining(&self.drains, peer));
            return Proof { peers: if back { Vec::new() } else { peers }, any: false, ready_after };
        }
        // Make before break: the last ready peer is not let go before another one is ready.
        let leaves = running.snapshot.active.slots().iter().any(|slot| !peers.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer)));
        Proof { peers: if leaves && !any_ready() { peers } else { Vec::new() }, any: true, ready_after }
    }

    /// Tells every peer's task how to probe.
    fn pace(&self) {
        let candidate = self.candidate.as_ref().map(|candidate| (&candidate.config, &candidate.swap));
        let running = self.running.as_ref().map(|running| &running.config);
        if let Some(usual) = running.or(candidate.map(|(config, _)| config)) {
            self.peers.pace(usual, candidate);
        }
    }

    /// Lets go of peers that are in no configuration any more and have nothing in flight.
    fn forget(&mut self) {
        let running = self.running.iter().map(|running| &running.config);
        let configs: Vec<&config::Service> = running.chain(self.candidate.iter().map(|candidate| &candidate.config)).collect();
        self.peers.forget(&configs, |peer| is_draining(&self.drains, peer));
        if self.is_gone() {
            self.means.metrics.remove_service(&self.name, &self.metrics.unserved);
        }
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
        let names: BTreeSet<&String> =
            config.into_iter().flat_map(|config| config.pools.keys()).chain(self.peers.pools()).collect();
        let pool = |name: &String| {
            let pool = config.and_then(|config| config.pools.get(name));
            let peers = self.peers.views(name, pool, |peer| is_draining(&self.drains, peer));
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

fn is_draining(drains: &[Drain], peer: &Arc<Peer>) -> bool {
    drains.iter().any(|drain| drain.peers.iter().any(|draining| Arc::ptr_eq(draining, peer)))
}
