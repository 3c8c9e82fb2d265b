//! Observes the new pool after its promotion, and takes it back if it fails.
//!
//! The old pool is kept in `drains`. A pool that is taken back is published like any other, but without a proof; the file is set back
//! afterwards, through the same code as a promotion writes it.

use std::time::Instant;

use log::{info, warn};

use super::{Service, publish::Publication};
use crate::{
    config,
    controller::{observation::Observation, promotion::Edit, swap::Swap},
    status::Outcome,
};

/// The edit that sets the file back after its pool was taken back.
pub(super) struct Restore {
    edit: Box<Edit>,
    writing: bool,
}

impl Service {
    /// Begins to observe the new pool of `swap`. A pool that goes back to serve, or that
    /// replaces one that never served, is not observed: there is nothing to take it back to.
    pub(super) fn begin_observation(&self, swap: &Swap, now: Instant) -> Option<Observation> {
        let running = self.running.as_ref()?;
        let from = swap.from.as_ref()?;
        let rules = &running.config.promotion;
        let goes_back = swap.proof.is_none() || swap.taken_back.is_some();
        if !swap.changes_pool() || goes_back || self.start.is_some() || rules.observe.is_zero() {
            return None;
        }
        let kept = running.config.pools.get(from)?.clone();
        let old = self.samples.since(from);
        Some(Observation::begin(&running.snapshot.active, kept, old, rules, &self.deps.failed, now))
    }

    /// After a publication: ends the observation if its pools no longer are what they were; otherwise it goes on, with the peers
    /// that were added.
    pub(super) fn continue_observation(&mut self, now: Instant) {
        let Some((swap, _)) = self.drains.observed_mut() else { return };
        let from = swap.from.clone().unwrap_or_default();
        let running = self.running.as_ref().filter(|running| running.config.active == swap.to);
        let Some(observation) = &mut swap.observation else { return };
        match running.filter(|running| running.config.pools.get(&from) == Some(&observation.kept)) {
            Some(running) => observation.add(&running.snapshot.active, &self.deps.failed),
            None => {
                let why = if running.is_some() { format!("{from} was changed") } else { format!("{} does not serve", swap.to) };
                info!("the observation ends early service={} pool={} reason={why}", self.name, swap.to);
                observation.end(now);
                self.history.update(swap);
            }
        }
    }

    /// Judges the new pool, and ends its observation when its time is over. Returns whether that changes anything.
    pub(in crate::controller) fn observe(&mut self, now: Instant) -> bool {
        let (Some(running), None) = (&self.running, &self.taking_back) else { return false };
        let Some((swap, old)) = self.drains.observed_mut() else { return false };
        let (from, to) = (swap.from.clone().unwrap_or_default(), swap.to.clone());
        let Some(observation) = &mut swap.observation else { return false };
        let fault = observation.fault(&running.snapshot.active, &from, now);
        match fault {
            Some(fault) if old.iter().any(|peer| peer.health.is_ready()) => self.taking_back = Some(fault),
            Some(fault) if observation.stuck.is_none() => {
                let stuck = format!("{}; {to} serves on, because no peer of {from} is ready", fault.reason);
                warn!("the promoted pool fails and cannot be taken back service={} pool={to} reason={stuck}", self.name);
                observation.stuck = Some(stuck);
            }
            _ if now >= observation.until => {
                let seen = observation.status(now);
                info!("observed service={} pool={to} requests={} failed={}", self.name, seen.requests, seen.failed);
                observation.end(now);
            }
            _ => return false,
        }
        self.history.update(swap);
        true
    }

    /// Samples the requests of the active pool, with which the next pool is compared.
    pub(super) fn sample(&mut self, now: Instant) {
        if let Some(running) = self.running.as_ref().filter(|running| !running.config.promotion.observe.is_zero()) {
            self.samples.take(&running.snapshot.active, now);
        }
    }

    /// Opens the old pool again, under the configuration that runs now.
    pub(super) fn take_back(&mut self, now: Instant) -> Option<Publication> {
        let fault = self.taking_back.take()?;
        let mut swap = self.drains.take_observed()?;
        let running = self.running.as_ref()?.config.clone();
        let (from, to) = (swap.from.clone()?, swap.to.clone());
        self.give_up(Outcome::Superseded, Some(format!("{to} was taken back")), now);
        self.deps.metrics.taken_back(&self.name, fault.label);
        if let Some(file) = self.file.as_ref().filter(|file| file.active == to) {
            self.drift.failed(file.clone(), &fault.reason);
            // Not if the file was edited since: its writer has to decide.
            if *file == running {
                let edit = Edit { service: self.name.clone(), pool: from.clone(), version: None, base: running.clone() };
                self.restore = Some(Restore { edit: Box::new(edit), writing: false });
            }
        }
        // Otherwise the canary of the file would send it clients again.
        let canary = running.canary.clone().filter(|canary| canary.pool == to);
        self.withheld = canary.map(|canary| (canary, running.pools.get(&to).cloned())).or(self.withheld.take());
        swap.end_observation(now);
        swap.taken_back = Some(fault.reason);
        Some(self.publication(config::Service { active: from, ..running }, Some(swap)))
    }

    /// Whether the file has to be set back.
    pub(super) fn has_to_restore(&self) -> bool {
        self.restore.as_ref().is_some_and(|restore| !restore.writing)
    }

    /// Whether the file is going to be set back.
    pub(super) fn restores(&self) -> bool {
        self.restore.is_some()
    }

    /// The file no longer is what was taken back, so it is not set back.
    pub(super) fn forget_restore(&mut self) {
        let file = self.file.as_ref();
        self.restore.take_if(|restore| Some(&restore.edit.base) != file);
    }

    /// The edit that sets the file back, if it is due.
    pub(super) fn begin_restore(&mut self) -> Option<Box<Edit>> {
        let restore = self.restore.as_mut().filter(|restore| !restore.writing)?;
        restore.writing = true;
        Some(restore.edit.clone())
    }

    /// Ends the write of that edit. Returns false if another edit was written.
    pub(super) fn end_restore(&mut self, failure: Option<&str>) -> bool {
        let Some(Restore { edit, .. }) = self.restore.take_if(|restore| restore.writing) else { return false };
        match failure {
            None => info!("the file was set back service={} active={}", self.name, edit.pool),
            Some(why) => self.drift.not_set_back(why),
        }
        true
    }
}
