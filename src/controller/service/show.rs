//! Reports the state of a service to waiters, the routing table and the view.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

use super::Service;
use crate::{
    config,
    controller::{
        swap::Swap,
        view::{PoolView, ServiceView},
    },
    hooks::{Event, Kind},
    snapshot,
    status::{self, PoolState},
};

impl Service {
    /// Updates the drift.
    pub(in crate::controller) fn update_drift(&mut self) {
        if let (Some(file), Some(running)) = (&self.file, &self.running) {
            let proving = self.candidate.as_ref().is_some_and(|candidate| candidate.config == *file);
            self.drift.update(&self.name, file, &running.config, proving);
        }
    }

    /// Notifies waiters. Call it after the view is published.
    pub(in crate::controller) fn announce(&mut self) {
        self.history.announce();
    }

    /// Sends an event of a swap between two pools; `config` has the version of the new one.
    pub(super) fn notify(&self, event: Kind, swap: &Swap, config: Option<&config::Service>) {
        if !swap.changes_pool() {
            return;
        }
        let status::Swap { from, to, outcome, reason, seconds, .. } = swap.status();
        let version = config.and_then(|config| config.pools.get(&to)?.version.clone());
        // During the proof the reason is only what is missing so far.
        let reason = reason.filter(|_| outcome.is_some() || event == Kind::TakenBack);
        self.deps.notifier.send(Event { event, service: self.name.clone(), from, to, version, outcome, reason, seconds });
    }

    /// The active pool of the file's configuration, if that runs or is being proven.
    pub(in crate::controller) fn follows_file(&self) -> Option<&str> {
        let file = self.file.as_ref()?;
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.config);
        let wanted = candidate.or(self.running.as_ref().map(|running| &running.config))?;
        (wanted == file).then_some(file.active.as_str())
    }

    /// The swap in progress to the wanted configuration.
    pub(in crate::controller) fn current_swap(&self) -> Option<watch::Receiver<status::Swap>> {
        let proving = self.candidate.as_ref().map(|candidate| &candidate.swap);
        let draining = || self.history.current().filter(|swap| self.drains.is_under(swap));
        proving.or_else(draining).map(Swap::subscribe)
    }

    /// The service in the snapshot.
    pub(in crate::controller) fn published(&self) -> Option<(&config::Service, &Arc<snapshot::Service>)> {
        self.running.as_ref().map(|running| (&running.config, &running.snapshot))
    }

    /// The active pool; none if no peer of it was ever ready.
    pub(in crate::controller) fn serves(&self) -> Option<&str> {
        self.running.as_ref().filter(|_| self.start.is_none()).map(|running| running.config.active.as_str())
    }

    /// The pool to start with after a restart: the active one, or the old one until the active one has been observed.
    pub(in crate::controller) fn proven(&self) -> Option<&str> {
        self.drains.observed().and_then(|swap| swap.from.as_deref()).or_else(|| self.serves())
    }

    /// Whether its first pool is still being proven.
    pub(in crate::controller) fn is_starting(&self) -> bool {
        self.start.is_some() && self.candidate.is_some()
    }

    /// Why it has not served yet; none once it has.
    pub(in crate::controller) fn not_ready(&self) -> Option<String> {
        let (running, _) = self.running.as_ref().zip(self.start.as_ref())?;
        Some(format!("{} has no pool to serve: {}", self.name, running.snapshot.active.missing()))
    }

    /// Its part of the view.
    pub(in crate::controller) fn view(&self) -> ServiceView {
        let config = self.running.as_ref().map(|running| &running.config);
        let candidate = self.candidate.as_ref().map(|candidate| &candidate.config);
        let mirror = self.running.as_ref().and_then(|running| running.snapshot.mirror.as_ref());
        let canary = config.and_then(|config| self.canary(config));
        let names: BTreeSet<&String> =
            config.into_iter().flat_map(|config| config.pools.keys()).chain(self.peers.pools()).collect();
        let proving = |name: &String| candidate.is_some_and(|candidate| candidate.active == *name);
        let observed = self.drains.observed();
        let kept = |name: &String| observed.filter(|swap| swap.from.as_ref() == Some(name));
        let pool = |name: &String| {
            let of = |config: Option<&&config::Service>| config.and_then(|config| config.pools.get(name)).cloned();
            let pool = of(config.as_ref()).or_else(|| of(candidate.as_ref()));
            let peers = self.peers.views(name, pool.as_ref(), |peer| self.drains.contains(peer));
            let state = match () {
                () if config.is_some_and(|config| config.active == *name) => PoolState::Active,
                () if proving(name) || self.is_fallback(name) => PoolState::Proving,
                () if kept(name).is_some() => PoolState::Kept,
                () if canary.is_some_and(|canary| canary.pool == *name) => PoolState::Canary,
                () if peers.iter().any(|peer| peer.draining) => PoolState::Draining,
                () => PoolState::Standby,
            };
            PoolView {
                name: name.clone(),
                version: pool.and_then(|pool| pool.version),
                state,
                kept: kept(name).and_then(|swap| Some((swap.to.clone(), swap.observation.as_ref()?.until))),
                canary_share: canary.filter(|canary| canary.pool == *name).map(|canary| canary.share),
                is_mirrored: mirror.is_some_and(|mirror| mirror.service.active.name == *name),
                peers,
            }
        };
        ServiceView {
            name: self.name.clone(),
            active: config.map(|config| config.active.clone()).unwrap_or_default(),
            served_last: self.start.as_ref().and_then(|start| start.served_last.clone()),
            swap: self.candidate.as_ref().map(|candidate| &candidate.swap).or(self.history.current()).cloned(),
            last_swap: self.history.last().cloned(),
            drift: self.drift.shown().cloned(),
            mirror: mirror.cloned(),
            observed_until: observed.and_then(|swap| Some(swap.observation.as_ref()?.until)),
            canary: config.and_then(|config| config.canary.clone()),
            drain_timeout: config.map(|config| config.drain.timeout).or(self.removed).unwrap_or_default(),
            pools: names.into_iter().map(pool).collect(),
        }
    }

    fn is_fallback(&self, name: &str) -> bool {
        let fallback = self.start.as_ref().and_then(|start| start.fallback.as_ref());
        fallback.is_some_and(|fallback| fallback.config.active == name)
    }
}
