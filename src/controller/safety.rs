//! Decides whether the processes of a pool are safe to stop, for `safe_to_stop` in the status, the endpoint and `wait=drained`.
//!
//! A pool is safe to stop when no request runs on its peers and none will: it is neither active, nor draining, nor being proven,
//! and no such pool shares an address with it.

use super::view::{PeerView, PoolView, ServiceView, View};
use crate::status::{self, PoolState};

impl View {
    /// Why a pool is not safe to stop; none if it is safe, or unknown.
    pub fn not_safe_because(&self, service: &str, pool: &str) -> Option<String> {
        let service = self.service(service)?;
        let pool = service.pools.iter().find(|known| known.name == pool)?;
        self.not_safe(service, pool)
    }

    /// The pools of a service, except the active one, that are not safe to stop, with the reasons.
    pub fn not_safe_others(&self, service: &str) -> Vec<(String, String)> {
        let others = |service: &ServiceView| {
            let others = service.pools.iter().filter(|pool| pool.state != PoolState::Active);
            others.filter_map(|pool| Some((pool.name.clone(), self.not_safe(service, pool)?))).collect()
        };
        self.service(service).map(others).unwrap_or_default()
    }

    pub(super) fn not_safe(&self, service: &ServiceView, pool: &PoolView) -> Option<String> {
        let name = &pool.name;
        let in_flight = pool.in_flight();
        match pool.state {
            PoolState::Active => Some(format!("{name} serves")),
            PoolState::Proving => Some(format!("{name} is being proven")),
            PoolState::Draining | PoolState::Standby if in_flight > 0 => Some(status::still_running(in_flight)),
            PoolState::Draining => Some(format!("{name} is draining")),
            PoolState::Standby => self.shared(service, pool),
        }
    }

    /// An address that the pool shares with another pool in use.
    fn shared(&self, service: &ServiceView, pool: &PoolView) -> Option<String> {
        let pools = self.services.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)));
        let is_other = |of: &ServiceView, other: &PoolView| of.name != service.name || other.name != pool.name;
        let in_use =
            pools.filter(|(of, other)| is_other(of, other) && (other.state != PoolState::Standby || other.in_flight() > 0));
        for (of, other) in in_use {
            let same = |peer: &PeerView| other.peers.iter().any(|other| peer.is_same_process(other));
            let Some(peer) = pool.peers.iter().find(|peer| same(peer)) else { continue };
            let of = if of.name == service.name { &other.name } else { &of.name };
            let what = match other.state {
                PoolState::Active => format!("also serves {of}"),
                PoolState::Proving => format!("is also being proven for {of}"),
                PoolState::Draining | PoolState::Standby => format!("still has requests of {of}"),
            };
            return Some(format!("{} {what}", peer.peer.address));
        }
        None
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
