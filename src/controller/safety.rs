//! Decides whether the processes of a pool are safe to stop, for `safe_to_stop` in the status, the endpoint and `wait=drained`.
//!
//! A pool is safe to stop when no request runs on its peers and none will: it is neither active, nor draining, nor being proven,
//! gets no share of the clients, and no such pool shares an address with it. A caller that waits remembers the pools that it asks about: an edit can remove a
//! pool from the file and give its addresses to another one.

use std::time::Instant;

use super::{
    command::Target,
    view::{PeerView, PoolView, ServiceView, View},
};
use crate::status::{self, PoolState};

impl View {
    /// Why a pool is not safe to stop; none if it is safe. `asked` is the pool when the wait began; its processes are judged even if
    /// it has left the file since.
    pub fn not_safe_because(&self, service: &str, asked: &PoolView) -> Option<String> {
        let known = self.pool(service, &asked.name);
        known.and_then(|pool| self.not_safe(service, pool)).or_else(|| self.in_use(service, asked))
    }

    /// The pools of a command's service, except the active one, that are not safe to stop, with the reasons.
    pub fn not_safe_others(&self, target: &Target) -> Vec<(String, String)> {
        let name = &target.service;
        let now = self.service(name).map(|service| service.pools.as_slice()).unwrap_or_default();
        let is_known = |pool: &PoolView| now.iter().any(|known| known.name == pool.name);
        let removed = target.before.pools.iter().filter(|pool| pool.state != PoolState::Standby && !is_known(pool));
        // A pool that got requests by `mirror` or `canary` before the command gets them after it.
        let before = |pool: &PoolView| target.before.pools.iter().find(|before| before.name == pool.name);
        let stays = |pool: &&PoolView| pool.is_used_by_the_file() && before(pool).is_some_and(PoolView::is_used_by_the_file);
        let known = now.iter().filter(|pool| pool.state != PoolState::Active && !stays(pool));
        let known = known.filter_map(|pool| Some((pool.name.clone(), self.not_safe(name, pool)?)));
        known.chain(removed.filter_map(|pool| Some((pool.name.clone(), self.in_use(name, pool)?)))).collect()
    }

    /// Whether waiting for [`Self::not_safe_others`] is in vain: each of them gets requests until the file changes.
    pub fn is_left_to_the_file(&self, target: &Target) -> bool {
        let left = self.not_safe_others(target);
        let is_used = |(pool, _): &(String, String)| self.pool(&target.service, pool).is_some_and(PoolView::is_used_by_the_file);
        !left.is_empty() && left.iter().all(is_used)
    }

    pub(super) fn not_safe(&self, service: &str, pool: &PoolView) -> Option<String> {
        let name = &pool.name;
        match pool.state {
            PoolState::Active => Some(format!("{name} serves")),
            PoolState::Proving => Some(format!("{name} is being proven")),
            PoolState::Canary => Some(match pool.canary_share.filter(|share| share.per_mille > 0) {
                Some(share) => format!("{name} gets {share} of the clients"),
                None => format!("{name} gets the requests that choose it"),
            }),
            PoolState::Standby if pool.is_mirrored => Some(format!("{name} gets mirrored requests")),
            PoolState::Kept => Some(self.kept(service, pool)),
            PoolState::Draining if pool.in_flight() == 0 => Some(format!("{name} is draining")),
            PoolState::Draining | PoolState::Standby => self.in_use(service, pool),
        }
    }

    /// Why a pool is kept, with the time that is left.
    fn kept(&self, service: &str, pool: &PoolView) -> String {
        let (new, until) = pool.kept.as_ref().map_or(("the new pool", None), |(new, until)| (new.as_str(), Some(*until)));
        let left = until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default();
        // Rounded up: never zero while it is kept.
        let seconds = left.as_millis().div_ceil(1000).max(1);
        let kept = format!("kept until {new} is observed, for another {seconds} s");
        self.in_use(service, pool).map_or(kept.clone(), |used| format!("{used}, and {kept}"))
    }

    /// Why the processes of a pool get requests, apart from the state of the pool itself.
    fn in_use(&self, service: &str, pool: &PoolView) -> Option<String> {
        let in_flight = pool.in_flight();
        if in_flight > 0 && in_flight == pool.previews() {
            return Some(format!("a preview runs on {}", pool.name));
        }
        if in_flight > 0 { Some(status::still_running(in_flight)) } else { self.shared(service, pool) }
    }

    /// An address that the pool shares with another pool in use.
    fn shared(&self, service: &str, pool: &PoolView) -> Option<String> {
        let pools = self.services.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)));
        let is_other = |of: &ServiceView, other: &PoolView| of.name != service || other.name != pool.name;
        let in_use = pools.filter(|(of, other)| {
            is_other(of, other) && (other.state != PoolState::Standby || other.is_mirrored || other.in_flight() > 0)
        });
        for (of, other) in in_use {
            let same = |peer: &PeerView| other.peers.iter().any(|other| peer.is_same_process(other));
            let Some(peer) = pool.peers.iter().find(|peer| same(peer)) else { continue };
            let of = if of.name == service { &other.name } else { &of.name };
            let what = match other.state {
                PoolState::Active => format!("also serves {of}"),
                PoolState::Proving => format!("is also being proven for {of}"),
                PoolState::Canary => format!("also gets clients of {of}"),
                PoolState::Standby if other.is_mirrored => format!("gets mirrored requests for {of}"),
                PoolState::Kept => format!("is also kept for {of}"),
                PoolState::Draining | PoolState::Standby => format!("still has requests of {of}"),
            };
            return Some(format!("{} {what}", peer.peer.address));
        }
        None
    }
}

impl PoolView {
    /// Whether it gets requests until the file changes, although it is not active.
    fn is_used_by_the_file(&self) -> bool {
        self.state == PoolState::Canary || self.is_mirrored && self.state == PoolState::Standby
    }
}

impl PeerView {
    /// Whether the two share an address, as written or as resolved.
    fn is_same_process(&self, other: &Self) -> bool {
        let (a, b) = (&self.peer, &other.peer);
        let resolved = |(a, b): (std::sync::Arc<crate::pool::peer::Target>, std::sync::Arc<crate::pool::peer::Target>)| {
            a.addresses.iter().any(|address| b.addresses.contains(address))
        };
        a.address == b.address || a.target().zip(b.target()).is_some_and(resolved)
    }
}
