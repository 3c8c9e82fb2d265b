//! The draining peers of one service: closed for new requests, with requests that still run, or kept while the new pool is observed.
//!
//! Called by [`super::service`], which opens and closes peers and keeps the history of swaps. Each group of peers has its swap
//! and its deadline. At most one of the swaps is observed: the last one that has changed the active pool.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{observation::Observation, swap::Swap};
use crate::{
    pool::Peer,
    status::{self, Outcome},
};

/// The drains of one service.
#[derive(Default)]
pub(super) struct Drains(Vec<Drain>);

struct Drain {
    swap: Swap,
    peers: Vec<Arc<Peer>>,
    deadline: Instant,
}

impl Drains {
    /// Waits for the running requests of the closed `peers`, as a part of `swap`.
    pub(super) fn begin(&mut self, swap: Swap, peers: Vec<Arc<Peer>>, timeout: Duration, now: Instant) {
        self.0.push(Drain { swap, peers, deadline: now + timeout });
    }

    /// Ends the drains of which a peer serves again. Returns their swaps, and their peers, which another swap may have to drain.
    pub(super) fn reopened(&mut self, serves: impl Fn(&Arc<Peer>) -> bool, now: Instant) -> (Vec<Swap>, Vec<Arc<Peer>>) {
        let (ended, left) = std::mem::take(&mut self.0).into_iter().partition(|drain| drain.peers.iter().any(&serves));
        self.0 = left;
        let ended: Vec<Drain> = ended;
        let mut swaps = Vec::new();
        let mut peers = Vec::new();
        for mut drain in ended {
            drain.swap.end(now, Outcome::Superseded, Some("its old pool serves again".to_owned()));
            swaps.push(drain.swap);
            peers.extend(drain.peers);
        }
        (swaps, peers)
    }

    /// Removes and returns the drains that have ended: no request runs, or the deadline has passed. While the new pool is observed,
    /// its drain goes on. `restoring` says that the pool that was taken back is being removed from the file: its waiters are notified
    /// afterwards.
    pub(super) fn ended(&mut self, restoring: bool, now: Instant) -> Vec<Swap> {
        let mut ended = Vec::new();
        for mut drain in std::mem::take(&mut self.0) {
            let swap = &mut drain.swap;
            let left = swap.in_flight();
            if left == 0 {
                swap.drained(now);
            }
            let waits = left > 0 || (restoring && swap.taken_back.is_some());
            if swap.is_observed() || (waits && now < drain.deadline) {
                self.0.push(drain);
                continue;
            }
            let (outcome, reason) = match (swap.taken_back.take(), left) {
                (Some(reason), 0) => (Outcome::TakenBack, Some(reason)),
                (Some(reason), left) => {
                    (Outcome::TakenBack, Some(format!("{reason}; {} on {}", status::still_running(left), swap.to)))
                }
                (None, 0) => (Outcome::Drained, None),
                (None, left) => {
                    let from = swap.from.as_deref().unwrap_or_default();
                    (Outcome::DrainTimedOut, Some(format!("{} on {from}", status::still_running(left))))
                }
            };
            swap.end(now, outcome, reason);
            ended.push(drain.swap);
        }
        ended
    }

    /// The swap whose new pool is observed.
    pub(super) fn observed(&self) -> Option<&Swap> {
        self.0.iter().map(|drain| &drain.swap).find(|swap| swap.is_observed())
    }

    /// The same, to change it; with the peers of the old pool.
    pub(super) fn observed_mut(&mut self) -> Option<(&mut Swap, &[Arc<Peer>])> {
        let drain = self.0.iter_mut().find(|drain| drain.swap.is_observed())?;
        Some((&mut drain.swap, &drain.peers))
    }

    /// Removes the drain whose new pool is observed, because its old pool is going to serve again.
    pub(super) fn take_observed(&mut self) -> Option<Swap> {
        let at = self.0.iter().position(|drain| drain.swap.is_observed())?;
        Some(self.0.remove(at).swap)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, peer: &Arc<Peer>) -> bool {
        self.0.iter().any(|drain| drain.peers.iter().any(|draining| Arc::ptr_eq(draining, peer)))
    }

    pub(super) fn is_under(&self, swap: &Swap) -> bool {
        self.0.iter().any(|drain| drain.swap.same_as(swap))
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        // The deadline of a drain has no effect while the new pool is observed.
        let next = |drain: &Drain| drain.swap.observation.as_ref().filter(|of| of.is_on()).map(Observation::next_deadline);
        self.0.iter().map(|drain| next(drain).unwrap_or(drain.deadline)).min()
    }
}
