//! Builds the part of the snapshot that requests of a service see: its active pool, and its standby pools for previews, for listeners
//! that serve them, for copies of requests, and for the clients of a canary.

use std::{collections::BTreeSet, sync::Arc};

use log::error;

use super::{Peers, Running, Service};
use crate::{
    config,
    pool::{Slot, mirror::Comparison, selection},
    snapshot,
};

/// A comparison of two pools, and what has to change for another one to begin.
pub(super) struct Compared {
    /// The active pool and the one that gets copies, each by its name and its settings.
    pools: [(String, Option<config::Pool>); 2],
    comparison: Arc<Comparison>,
}

impl Service {
    /// The service as requests see it. The pool that is being proven has the settings of the candidate, so that a preview tests
    /// what is going to be promoted.
    pub(super) fn snapshot(&mut self, config: &config::Service) -> snapshot::Service {
        let candidate = self.candidate.as_ref().map(|candidate| candidate.config.clone());
        let candidate = candidate.filter(|candidate| candidate.active != config.active);
        let config_of = |pool: &str| candidate.as_ref().filter(|candidate| candidate.active == pool).unwrap_or(config);
        let error_pages = Arc::new(config.error_pages.clone());
        let with_active = |peers: &mut Peers, config: &config::Service, pool: &str| snapshot::Service {
            name: self.name.clone(),
            active: peers.pool(config, pool),
            upstream: peers.upstream(config),
            error_pages: Arc::clone(&error_pages),
            timeouts: config.timeouts,
            retries: config.retries,
            metrics: Arc::clone(&self.metrics),
            standby: Vec::new(),
            preview: None,
            mirror: None,
            canary: None,
        };
        let names: BTreeSet<&String> = config.pools.keys().chain(candidate.iter().map(|candidate| &candidate.active)).collect();
        let others = names.into_iter().filter(|pool| **pool != config.active);
        let standby: Vec<_> = others.map(|pool| Arc::new(with_active(&mut self.peers, config_of(pool), pool))).collect();
        let active = with_active(&mut self.peers, config, &config.active);
        // Clients get the running settings of the pool, not those of a candidate.
        let canary = self.canary(config).map(|canary| snapshot::Canary {
            service: Arc::new(with_active(&mut self.peers, config, &canary.pool)),
            share: canary.share.per_mille * (snapshot::POSITIONS / 1000),
            stick: canary.stick,
            seed: selection::hash(self.name.as_bytes()),
            header: canary.header.clone(),
            cookie: canary.cookie.clone(),
        });
        let copied = config.mirror.as_ref().and_then(|mirror| standby.iter().find(|service| service.active.name == mirror.pool));
        // Copies would be requests that never end a drain. A peer that is still open drains from this publication on.
        let drains = |slot: &Slot| slot.peer.is_open() || self.drains.contains(&slot.peer);
        let copied = copied.filter(|copied| !copied.active.slots().iter().any(drains));
        let copied =
            copied.filter(|copied| canary.as_ref().is_none_or(|canary| canary.service.active.name != copied.active.name));
        let pools = copied.map(|copied| {
            [&config.active, &copied.active.name].map(|pool| (pool.clone(), config_of(pool).pools.get(pool).cloned()))
        });
        let comparison = self.compare(pools);
        let mirror = config.mirror.as_ref().zip(copied).zip(comparison).map(|((mirror, copied), comparison)| {
            let connector = Arc::clone(&self.deps.connector);
            Arc::new(snapshot::Mirror { service: Arc::clone(copied), share: mirror.share, comparison, connector })
        });
        snapshot::Service { preview: config.preview.clone(), mirror, canary, standby, ..active }
    }

    /// The canary of a configuration, if it gets clients.
    pub(super) fn canary<'a>(&self, config: &'a config::Service) -> Option<&'a config::Canary> {
        let canary = config.canary.as_ref().filter(|canary| canary.has_effect(&config.active))?;
        let is_withheld = |(withheld, pool): &(config::Canary, Option<config::Pool>)| {
            withheld == canary && pool.as_ref() == config.pools.get(&canary.pool)
        };
        (!self.withheld.as_ref().is_some_and(is_withheld)).then_some(canary)
    }

    /// The comparison of these two pools: the one so far if they have not changed, else a new one.
    fn compare(&mut self, pools: Option<[(String, Option<config::Pool>); 2]>) -> Option<Arc<Comparison>> {
        if let Some(compared) = self.compared.as_ref().filter(|compared| pools.as_ref() == Some(&compared.pools)) {
            return Some(Arc::clone(&compared.comparison));
        }
        self.end_comparison();
        let pools = pools?;
        let [_, (copied, _)] = &pools;
        let comparison = Comparison::new(self.deps.metrics.mirror(&self.name, copied));
        let comparison = comparison.inspect_err(|e| error!("requests are not copied service={} error={e}", self.name)).ok()?;
        let comparison = Arc::new(comparison);
        self.compared = Some(Compared { pools, comparison: Arc::clone(&comparison) });
        Some(comparison)
    }

    /// Forgets the comparison and its series.
    pub(super) fn end_comparison(&mut self) {
        if let Some(Compared { pools: [_, (copied, _)], .. }) = self.compared.take() {
            self.deps.metrics.remove_mirror(&self.name, &copied);
        }
    }

    /// Makes the standby pools of the snapshot again if they are outdated. Returns whether the snapshot has to be stored.
    pub(in crate::controller) fn renew_standby(&mut self) -> bool {
        let running = self.running.as_ref().filter(|_| self.standby_is_outdated);
        let Some(config) = running.map(|running| running.config.clone()) else { return false };
        self.standby_is_outdated = false;
        let snapshot = Arc::new(self.snapshot(&config));
        self.running = Some(Running { config, snapshot });
        true
    }
}
