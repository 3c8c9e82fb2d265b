//! The draining peers of one service: closed for new requests, with requests that still run.
//!
//! Called by [`super::service`], which opens and closes peers and keeps the history of swaps. Each group of peers has its swap
//! and its deadline.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::swap::Swap;
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

    /// Removes and returns the drains that have ended: no request runs, or the deadline has passed.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<Swap> {
        let mut ended = Vec::new();
        for mut drain in std::mem::take(&mut self.0) {
            let left = drain.swap.in_flight();
            if left == 0 {
                drain.swap.end(now, Outcome::Drained, None);
                ended.push(drain.swap);
            } else if now >= drain.deadline {
                let from = drain.swap.from.clone().unwrap_or_default();
                let reason = format!("{} on {from}", status::still_running(left));
                drain.swap.end(now, Outcome::DrainTimedOut, Some(reason));
                ended.push(drain.swap);
            } else {
                self.0.push(drain);
            }
        }
        ended
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
        self.0.iter().map(|drain| drain.deadline).min()
    }
}
