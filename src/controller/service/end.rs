//! Ends drains that are done or timed out, drops failed or cancelled candidates, and removes unused peers.

use std::time::Instant;

use log::{info, warn};

use super::{Candidate, Service};
use crate::{
    config,
    hooks::Kind,
    status::{self, Cancelled, Outcome},
};

impl Service {
    pub(super) fn end_drains(&mut self, now: Instant) {
        for swap in self.drains.ended(self.restores(), now) {
            let status = swap.status();
            match (&status.from, status.outcome) {
                (Some(from), Some(Outcome::DrainTimedOut)) => {
                    warn!("drain timed out service={} pool={from} in_flight={}", self.name, status.in_flight);
                }
                (Some(from), Some(Outcome::TakenBack)) => {
                    info!("drained service={} pool={} serves={from} in_flight={}", self.name, status.to, status.in_flight);
                }
                (Some(from), _) if swap.changes_pool() => {
                    let took = swap.drain_took().unwrap_or_default().as_millis();
                    info!("drained service={} pool={from} took={took}ms", self.name);
                }
                _ => {}
            }
            let kind = match status.outcome {
                Some(Outcome::Drained) => Some(Kind::Drained),
                Some(Outcome::DrainTimedOut) => Some(Kind::DrainTimedOut),
                // Reported when the old pool began to serve again.
                _ => None,
            };
            if let Some(kind) = kind.filter(|_| status.from.is_some()) {
                self.notify(kind, &swap, self.running.as_ref().map(|running| &running.config));
            }
            self.history.ended(&swap);
            // The pool may get copies of requests from now on.
            let running = self.running.as_ref().map(|running| &running.config);
            self.standby_is_outdated |= running.is_some_and(|config| config.mirror.is_some());
        }
    }

    /// Drops the candidate; the running configuration stays. Returns whether there was a candidate.
    pub(in crate::controller) fn give_up(&mut self, outcome: Outcome, reason: Option<String>, now: Instant) -> bool {
        self.standby_is_outdated |= self.changes_standby();
        let Some(mut candidate) = self.candidate.take() else { return false };
        candidate.swap.end(now, outcome, reason);
        let status = candidate.swap.status();
        let (name, to, why) = (&self.name, &status.to, status.reason.as_deref().unwrap_or_default());
        match outcome {
            Outcome::NotReady if candidate.published => {
                warn!("not ready in time, requests get 503 until it is service={name} pool={to} reason={why}");
            }
            Outcome::NotReady | Outcome::Refused => {
                let outcome = outcome.label();
                warn!("promotion failed, the old pool serves service={name} to={to} outcome={outcome} reason={why}");
            }
            _ => info!("swap ended before its promotion service={name} to={to} outcome={} reason={why}", outcome.label()),
        }
        let kind = match outcome {
            Outcome::Cancelled => Kind::Cancelled,
            Outcome::Superseded => Kind::Superseded,
            _ => Kind::Refused,
        };
        self.notify(kind, &candidate.swap, Some(&candidate.config));
        let failed = matches!(outcome, Outcome::NotReady | Outcome::Refused | Outcome::Cancelled);
        // A promotion of the pool that already is active may fail too; the running configuration then still is that of the file.
        let differs = self.running.as_ref().is_none_or(|running| running.config != candidate.config);
        if failed && candidate.edit.is_none() && !candidate.published && differs {
            self.drift.failed(candidate.config, why);
        }
        self.history.show(&candidate.swap);
        self.history.ended(&candidate.swap);
        self.probe_settings();
        true
    }

    /// Cancels the swap that is being proven.
    pub(in crate::controller) fn cancel(&mut self, now: Instant) -> Result<Cancelled, String> {
        let nothing = |why: &str| Err(format!("nothing to cancel: {why}"));
        let serves = self.running.as_ref().map(|running| running.config.active.clone()).unwrap_or_default();
        match &self.candidate {
            None => nothing(&format!("{serves} serves, and no other pool of {} is being proven", self.name)),
            Some(candidate) if candidate.published => nothing(&format!("{} starts, and no other pool serves", self.name)),
            Some(candidate) => {
                let cancelled = candidate.config.active.clone();
                self.give_up(Outcome::Cancelled, Some("cancelled on request".to_owned()), now);
                Ok(status::Cancelled { service: self.name.clone(), cancelled, serves })
            }
        }
    }

    /// Drops peers that are in no configuration and have no request in flight.
    pub(super) fn forget(&mut self) {
        let running = self.running.iter().map(|running| &running.config);
        let configs: Vec<&config::Service> = running.chain(self.candidate.iter().map(|candidate| &candidate.config)).collect();
        self.peers.forget(&configs, |peer| self.drains.contains(peer));
        if self.is_gone() {
            self.deps.metrics.remove_service(&self.name, &self.metrics.unserved);
        }
    }

    /// The next deadline.
    pub(in crate::controller) fn next_deadline(&self) -> Option<Instant> {
        let proving = self.candidate.as_ref().and_then(Candidate::deadline);
        self.drains.next_deadline().into_iter().chain(proving).chain(self.samples.next_deadline()).min()
    }
}
