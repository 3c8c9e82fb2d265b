//! A pool: the peers of one release, and the choice of one for each request.
//!
//! A pool is part of the snapshot: after construction only counters change. [`Pool::pick`] checks admission and counts the
//! request in one step, and takes no lock. The controller decides which peers a pool has and which of them are open.

pub mod health;
mod health_check;
pub mod local;
pub mod mirror;
pub mod peer;
pub mod probe;
pub mod proof;
pub mod resolve;
pub mod selection;
mod slow_start;
pub mod upstream;
pub mod warm_up;

use std::{sync::Arc, time::Duration};

pub use peer::{KEEPALIVE, Lease, Peer};
pub use upstream::Upstream;

use self::{selection::Selection, slow_start::SlowStart};
use crate::{
    config::{Balance, HashBy},
    metrics::PoolMetrics,
};

/// The peers of one release.
pub struct Pool {
    /// Its name in the configuration.
    pub name: String,
    /// Its metric handles.
    pub metrics: Arc<PoolMetrics>,
    slots: Vec<Slot>,
    selection: Selection,
    fail_open: bool,
    /// Zero: off.
    slow_start: Duration,
}

/// A peer and its weight.
pub struct Slot {
    /// The peer.
    pub peer: Arc<Peer>,
    /// 1 to 1000.
    pub weight: u16,
}

/// Why no peer could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickError {
    /// All its peers are closed: the pool drains, and a newer snapshot serves.
    Draining,
    /// No open peer is ready, or every ready peer was tried already.
    NoReadyPeer,
}

impl Pool {
    /// Creates a pool of peers that the controller owns. `hash` is only for [`Balance::Hash`]; a `slow_start` of zero is off.
    pub fn new(
        name: &str,
        slots: Vec<Slot>,
        balance: Balance,
        hash: Option<&HashBy>,
        fail_open: bool,
        slow_start: Duration,
        metrics: Arc<PoolMetrics>,
    ) -> Self {
        let selection = Selection::new(balance, hash, &slots);
        Self { name: name.to_owned(), metrics, slots, selection, fail_open, slow_start }
    }

    /// What `pick` needs the hash of; none unless the balance is hash.
    pub fn hash_by(&self) -> Option<&HashBy> {
        self.selection.hash_by()
    }

    /// Its peers, in the order of the file.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Picks a peer that is not in `tried`, and leases it. `key` is the hash of what [`Pool::hash_by`] names; none if the request
    /// does not have it.
    ///
    /// # Errors
    /// [`PickError`], if there is no such peer.
    pub fn pick(&self, tried: &[Arc<Peer>], key: Option<u64>) -> Result<Lease, PickError> {
        let untried = |slot: &Slot| !tried.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer));
        let ready = |slot: &Slot| slot.peer.health.is_ready() && untried(slot);
        if let Some(lease) = self.pick_among(key, ready) {
            return Ok(lease);
        }
        // Fail open: when all probes fail at once, the probes may be wrong; a peer that was ready before is better than a 503.
        let was_ready = |slot: &Slot| slot.peer.health.was_ready() && untried(slot);
        let none_ready = || !self.slots.iter().any(|slot| slot.peer.health.is_ready());
        if self.fail_open
            && none_ready()
            && let Some(lease) = self.pick_among(key, was_ready)
        {
            return Ok(lease);
        }
        if self.slots.iter().any(|slot| slot.peer.is_open()) { Err(PickError::NoReadyPeer) } else { Err(PickError::Draining) }
    }

    /// Picks an open peer that is ready, and leases it. Other than [`Self::pick`], it never fails open: the caller has another pool.
    pub fn pick_ready(&self, key: Option<u64>) -> Option<Lease> {
        self.pick_among(key, |slot| slot.peer.health.is_ready())
    }

    /// The same as [`Self::pick`] for a request that chose this pool: its peers need not be open, but have to be ready. None if no peer is.
    pub fn pick_preview(&self, tried: &[Arc<Peer>], key: Option<u64>) -> Option<Lease> {
        let untried = |slot: &Slot| !tried.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer));
        let slot = self.choose(key, |slot| slot.peer.health.is_ready() && untried(slot))?;
        Some(Lease::preview(&slot.peer))
    }

    /// The same for a copy of a request.
    pub fn pick_mirror(&self, key: Option<u64>) -> Option<Lease> {
        let slot = self.choose(key, |slot| slot.peer.health.is_ready())?;
        Some(Lease::mirror(&slot.peer))
    }

    /// Why no peer is ready: each peer with the reason.
    pub fn missing(&self) -> String {
        let missing = self.slots.iter().map(|Slot { peer, .. }| {
            let failure = peer.health.record().last.and_then(|probe| probe.failure);
            format!("{}: {}", peer.address, failure.map_or_else(|| "not probed yet".to_owned(), |failure| failure.to_string()))
        });
        missing.collect::<Vec<_>>().join("; ")
    }

    /// A peer can be closed between the choice and the lease. The choice is then repeated, at most once for each slot.
    fn pick_among(&self, key: Option<u64>, eligible: impl Fn(&Slot) -> bool) -> Option<Lease> {
        self.slots.iter().find_map(|_| {
            let slot = self.choose(key, |slot| slot.peer.is_open() && eligible(slot))?;
            Lease::new(&slot.peer)
        })
    }

    fn choose(&self, key: Option<u64>, eligible: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        self.selection.next(&self.slots, key, SlowStart::now(self.slow_start), eligible)
    }
}

#[cfg(test)]
mod tests;
