//! The time between the proof of a candidate and its publication: begins its gate, and gives the candidate up if it does not pass.

use std::time::Instant;

use super::{Candidate, Service};
use crate::{
    config,
    controller::gate::{Gate, Steps},
    hooks::{Check, Facts},
    pool::warm_up::{self, WarmUp},
    status::Outcome,
};

impl Candidate {
    /// Whether it may be published: it is proven now, and has passed its gate.
    pub(super) fn is_admitted(&self) -> bool {
        let passed = || self.swap.gate.as_ref().and_then(Gate::verdict).is_some_and(|verdict| verdict.is_ok());
        self.written || self.swap.proof.is_done() && (!self.has_gate() || passed())
    }

    /// Only for a promotion over a pool that serves. A pool that goes back while it drains needs no proof and no gate: its return
    /// must not wait.
    fn has_gate(&self) -> bool {
        let config::Promotion { warm_up, check, .. } = &self.config.promotion;
        let promoted = self.swap.from.is_some() && self.swap.changes_pool() && !self.swap.proof.is_none();
        promoted && (warm_up.is_some() || check.is_some())
    }

    /// The end of `promotion.ready_timeout`, which does not include the time of the gate; none while the gate is running, and
    /// while the candidate only waits for a command that reads the file.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.written || self.swap.writing.is_some() || self.swap.proof.is_done() {
            return None;
        }
        match &self.swap.gate {
            None => Some(self.swap.deadline),
            Some(gate) => gate.took().map(|took| self.swap.deadline + took),
        }
    }
}

impl Service {
    /// Advances a candidate that may not be published yet.
    pub(super) fn advance_candidate(&mut self, now: Instant) {
        let Some(candidate) = &self.candidate else { return };
        let proof = &candidate.swap.proof;
        match candidate.swap.gate.as_ref().map(Gate::verdict) {
            None if proof.is_done() => self.begin_gate(),
            Some(Some(Err((outcome, reason)))) => {
                self.give_up(outcome, Some(reason), now);
            }
            // A proven pool may fail a few probes while it is warmed up or checked, but not as many as a pool that serves.
            Some(_) if proof.lost_readiness() => {
                let lost = proof.missing().unwrap_or_default();
                self.give_up(Outcome::NotReady, Some(format!("was ready, and then no more: {lost}")), now);
            }
            _ if candidate.deadline().is_some_and(|deadline| now >= deadline) => {
                self.give_up(Outcome::NotReady, None, now);
            }
            _ => {}
        }
    }

    fn begin_gate(&mut self) {
        let Some(candidate) = &mut self.candidate else { return };
        let config = &candidate.config;
        let config::Promotion { warm_up, check, .. } = &config.promotion;
        let peers = self.peers.of_active(config);
        let facts = Facts {
            service: self.name.clone(),
            pool: config.active.clone(),
            from: candidate.swap.from.clone().unwrap_or_default(),
            version: config.pools.get(&config.active).and_then(|pool| pool.version.clone()),
            peers: peers.iter().map(|peer| peer.address.to_string()).collect(),
        };
        let check = check.clone().map(|check| Check {
            config: check,
            facts,
            folder: self.deps.folder.clone(),
            connector: self.deps.connector.clone(),
        });
        let is_pattern = |host: &&String| host.starts_with('*');
        let warm_up = warm_up.clone().map(|warm_up| {
            let settings = warm_up::Settings {
                config: warm_up,
                host: config.health_check.host.as_ref().or(config.hosts.iter().find(|host| !is_pattern(host))).cloned(),
                upstream: self.peers.upstream(config),
                connect_timeout: config.timeouts.connect,
                connector: self.deps.connector.clone(),
                metrics: self.peers.metrics(&config.active),
            };
            WarmUp::new(settings, peers)
        });
        let about = format!("service={} pool={}", self.name, config.active);
        let steps = Steps { about, warm_up, check };
        candidate.swap.gate = Some(Gate::begin(steps, self.deps.metrics.clone(), self.deps.changed.clone()));
    }
}
