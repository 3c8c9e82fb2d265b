//! A pool: the peers of one release, and the choice of one for each request.
//!
//! A pool is part of the snapshot: after construction only counters change. [`Pool::pick`] checks admission and counts the
//! request in one step, and takes no lock. The controller decides which peers a pool has and which of them are open.

pub mod health;
mod health_check;
pub mod local;
pub mod peer;
pub mod probe;
pub mod proof;
pub mod resolve;
pub mod upstream;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

pub use peer::{KEEPALIVE, Lease, Peer};
pub use upstream::Upstream;

use crate::{config::Balance, metrics::PoolMetrics};

/// The peers of one release.
pub struct Pool {
    /// Its name in the configuration.
    pub name: String,
    /// Its metric handles.
    pub metrics: Arc<PoolMetrics>,
    slots: Vec<Slot>,
    balance: Balance,
    fail_open: bool,
    /// Indices into `slots`, each repeated by its weight and spread evenly. Empty unless the balance is round robin.
    rotation: Vec<u16>,
    next: AtomicUsize,
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
    /// Creates a pool of peers that the controller owns.
    pub fn new(name: &str, slots: Vec<Slot>, balance: Balance, fail_open: bool, metrics: Arc<PoolMetrics>) -> Self {
        let rotation = if balance == Balance::RoundRobin { rotation(&slots) } else { Vec::new() };
        Self { name: name.to_owned(), metrics, slots, balance, fail_open, rotation, next: AtomicUsize::new(0) }
    }

    /// Its peers, in the order of the file.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Picks a peer that is not in `tried`, and leases it.
    ///
    /// # Errors
    /// [`PickError`], if there is no such peer.
    pub fn pick(&self, tried: &[Arc<Peer>]) -> Result<Lease, PickError> {
        let untried = |slot: &Slot| !tried.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer));
        let ready = |slot: &Slot| slot.peer.health.is_ready() && untried(slot);
        if let Some(lease) = self.pick_among(ready) {
            return Ok(lease);
        }
        // Fail open: when all probes fail at once, the probes may be wrong; a peer that was ready before is better than a 503.
        let was_ready = |slot: &Slot| slot.peer.health.was_ready() && untried(slot);
        let none_ready = || !self.slots.iter().any(|slot| slot.peer.health.is_ready());
        if self.fail_open
            && none_ready()
            && let Some(lease) = self.pick_among(was_ready)
        {
            return Ok(lease);
        }
        if self.slots.iter().any(|slot| slot.peer.is_open()) { Err(PickError::NoReadyPeer) } else { Err(PickError::Draining) }
    }

    /// A peer can be closed between the choice and the lease. The choice is then repeated, at most once for each slot.
    fn pick_among(&self, eligible: impl Fn(&Slot) -> bool) -> Option<Lease> {
        self.slots.iter().find_map(|_| {
            let open = |slot: &Slot| slot.peer.is_open() && eligible(slot);
            let slot = match self.balance {
                Balance::LeastRequests => self.least_requests(open),
                Balance::RoundRobin => self.round_robin(open),
            }?;
            Lease::new(&slot.peer)
        })
    }

    /// The peer with the fewest requests for its weight, the new request included. The search starts at another slot each time,
    /// so that equal peers share the load of a pool with few requests.
    fn least_requests(&self, eligible: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        let start = if self.slots.len() > 1 { self.next.fetch_add(1, Relaxed) % self.slots.len() } else { 0 };
        let (after, before) = (self.slots.iter().skip(start), self.slots.iter().take(start));
        after.chain(before).filter(|slot| eligible(slot)).min_by(|a, b| {
            let load = |slot: &Slot, other: &Slot| (slot.peer.in_flight() as u64 + 1) * u64::from(other.weight);
            load(a, b).cmp(&load(b, a))
        })
    }

    /// Every step moves the shared position, also past a peer that is not eligible: the share of that peer goes to all others,
    /// not only to the next one in the rotation.
    fn round_robin(&self, eligible: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        self.rotation.iter().find_map(|_| {
            let position = self.next.fetch_add(1, Relaxed) % self.rotation.len();
            let slot = self.slots.get(usize::from(*self.rotation.get(position)?))?;
            eligible(slot).then_some(slot)
        })
    }
}

/// One full turn of smooth weighted round robin (the algorithm of nginx): at each step every slot's credit grows by its weight,
/// the slot with the most credit is next, and the sum of all weights is taken from its credit.
fn rotation(slots: &[Slot]) -> Vec<u16> {
    let divisor = slots.iter().fold(0, |divisor, slot| gcd(divisor, slot.weight)).max(1);
    let weights: Vec<i64> = slots.iter().map(|slot| i64::from(slot.weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0; weights.len()];
    (0..total)
        .filter_map(|_| {
            credit.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += weight);
            // The first of equal slots, so that a turn starts in the order of the file.
            let (index, most) = credit.iter_mut().enumerate().rev().max_by_key(|(_, credit)| **credit)?;
            *most -= total;
            u16::try_from(index).ok()
        })
        .collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
