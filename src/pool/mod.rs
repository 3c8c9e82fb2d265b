//! A pool as requests see it: the peers of one release, and which of them is next.
//!
//! Part of the snapshot, so nothing here changes after it is made but counters. Picking admits and counts in one step and
//! takes no lock. Who is in a pool, and who may be let in, is the controller's business.

pub mod health;
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
    /// Its name in the file.
    pub name: String,
    /// Its handles.
    pub metrics: Arc<PoolMetrics>,
    slots: Vec<Slot>,
    balance: Balance,
    fail_open: bool,
    /// Indices into `slots`, each as often as its weight, spread out. Empty unless the balance is round robin.
    rotation: Vec<u16>,
    next: AtomicUsize,
}

/// A peer and its share.
pub struct Slot {
    /// The peer.
    pub peer: Arc<Peer>,
    /// 1 to 1000.
    pub weight: u16,
}

/// Why no peer could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The pool drains: a newer snapshot serves.
    Draining,
    /// Nobody is ready, or everybody who is was tried.
    NobodyReady,
}

impl Pool {
    /// A pool over peers that the controller keeps.
    pub fn new(name: &str, slots: Vec<Slot>, balance: Balance, fail_open: bool, metrics: Arc<PoolMetrics>) -> Self {
        let rotation = if balance == Balance::RoundRobin { rotation(&slots) } else { Vec::new() };
        Self { name: name.to_owned(), metrics, slots, balance, fail_open, rotation, next: AtomicUsize::new(0) }
    }

    /// Its peers, in the order of the file.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Picks a peer that is not in `tried` and counts the request in.
    ///
    /// # Errors
    /// [`Refused`], when there is none.
    pub fn pick(&self, tried: &[Arc<Peer>]) -> Result<Lease, Refused> {
        let untried = |slot: &Slot| !tried.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer));
        let ready = |slot: &Slot| slot.peer.health.is_ready() && untried(slot);
        if let Some(lease) = self.pick_among(ready) {
            return Ok(lease);
        }
        // Fail open: probes may be wrong about everybody at once, so who was ready before is still better than nobody.
        let was_ready = |slot: &Slot| slot.peer.health.was_ready() && untried(slot);
        let nobody_is = || !self.slots.iter().any(|slot| slot.peer.health.is_ready());
        if self.fail_open
            && nobody_is()
            && let Some(lease) = self.pick_among(was_ready)
        {
            return Ok(lease);
        }
        if self.slots.iter().any(|slot| slot.peer.is_open()) { Err(Refused::NobodyReady) } else { Err(Refused::Draining) }
    }

    /// A peer can close between being chosen and being leased; then the next best is chosen, at most once for each slot.
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

    /// The fewest requests for its weight, counting the one to come. Equals take turns: a pool with little to do should not
    /// send everything to its first peer.
    fn least_requests(&self, eligible: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        let start = if self.slots.len() > 1 { self.next.fetch_add(1, Relaxed) % self.slots.len() } else { 0 };
        let (after, before) = (self.slots.iter().skip(start), self.slots.iter().take(start));
        after.chain(before).filter(|slot| eligible(slot)).min_by(|a, b| {
            let load = |slot: &Slot, other: &Slot| (slot.peer.in_flight() as u64 + 1) * u64::from(other.weight);
            load(a, b).cmp(&load(b, a))
        })
    }

    /// Every look moves the shared position on, also past somebody who is not eligible: so the others keep their shares,
    /// instead of his successor getting his.
    fn round_robin(&self, eligible: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        self.rotation.iter().find_map(|_| {
            let position = self.next.fetch_add(1, Relaxed) % self.rotation.len();
            let slot = self.slots.get(usize::from(*self.rotation.get(position)?))?;
            eligible(slot).then_some(slot)
        })
    }
}

/// Smooth weighted round robin, as nginx does it, laid out for one whole turn: at each step everybody gains its weight, who
/// has most is next and pays the sum of all weights.
fn rotation(slots: &[Slot]) -> Vec<u16> {
    let divisor = slots.iter().fold(0, |divisor, slot| gcd(divisor, slot.weight)).max(1);
    let weights: Vec<i64> = slots.iter().map(|slot| i64::from(slot.weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0; weights.len()];
    (0..total)
        .filter_map(|_| {
            credit.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += weight);
            // The first of equals, so that a turn begins in the order of the file.
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
