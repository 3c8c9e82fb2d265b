//! Publishes a configuration: opens its peers before the snapshot is stored, closes the others after it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use log::{info, warn};

use super::{Fallback, Proof, Running, Service, Swap};
use crate::{config, hooks::Kind, pool::Peer};

/// The peers that were opened for a snapshot; consumed after the store to close all others.
#[must_use]
pub(in crate::controller) struct Publication {
    serving: Vec<Arc<Peer>>,
    drain_timeout: Duration,
    /// None for a configuration that is published unproven.
    swap: Option<Swap>,
    /// Whether only settings change, without a proof or a write. That is a swap only if peers are removed.
    quiet: bool,
}

impl Service {
    /// Opens the peers of the configuration and builds its part of the snapshot. Call it before the snapshot is stored.
    pub(in crate::controller) fn open(&mut self, now: Instant) -> Option<Publication> {
        if self.taking_back.is_some() {
            return self.take_back(now);
        }
        if let Some(candidate) = self.candidate.take_if(|candidate| candidate.is_admitted()) {
            candidate.swap.proof.adopt();
            self.drift.forget();
            let quiet = candidate.swap.proof.is_none() && !candidate.written && !candidate.swap.changes_pool();
            return Some(Publication { quiet, ..self.publication(candidate.config, Some(candidate.swap)) });
        }
        if self.falls_back()
            && let Some(fallback) = self.start.take().and_then(|start| start.fallback)
        {
            return Some(self.fall_back(fallback, now));
        }
        let candidate = self.candidate.as_mut()?;
        candidate.published = true;
        let config = candidate.config.clone();
        Some(self.publication(config, None))
    }

    /// Publishes the pool that served last. The proof of the file's pool continues, as a swap from that pool.
    fn fall_back(&mut self, Fallback { config, proof }: Fallback, now: Instant) -> Publication {
        proof.adopt();
        let to = config.active.clone();
        let reason = self.running.as_ref().map(|running| running.snapshot.active.missing()).unwrap_or_default();
        if let Some(file) = &self.file {
            self.drift.failed(file.clone(), &format!("{reason}; {to} served last"));
        }
        if let Some(candidate) = &mut self.candidate {
            candidate.published = false;
            candidate.swap.from = Some(to.clone());
        }
        let swap = Swap::new(None, to, proof, Duration::ZERO, now);
        self.publication(config, Some(swap))
    }

    pub(super) fn publication(&mut self, config: config::Service, swap: Option<Swap>) -> Publication {
        self.standby_is_outdated = false;
        let snapshot = self.snapshot(&config);
        let canary = snapshot.canary.as_ref().map(|canary| canary.service.active.slots()).unwrap_or_default();
        let serving: Vec<Arc<Peer>> = snapshot.active.slots().iter().chain(canary).map(|slot| Arc::clone(&slot.peer)).collect();
        serving.iter().for_each(|peer| peer.open());
        self.log_canary(&config);
        let drain_timeout = config.drain.timeout;
        self.running = Some(Running { config, snapshot: Arc::new(snapshot) });
        Publication { serving, drain_timeout, swap, quiet: false }
    }

    fn log_canary(&self, config: &config::Service) {
        let running = self.running.as_ref().map(|running| &running.config);
        match (running.and_then(|running| self.canary(running)), self.canary(config)) {
            (before, Some(now)) if before != Some(now) => {
                info!("canary service={} pool={} share={}", self.name, now.pool, now.share);
            }
            (Some(before), None) => info!("canary ended service={} pool={}", self.name, before.pool),
            _ => {}
        }
    }

    /// Closes every peer that no longer serves. Call it after the snapshot is stored.
    pub(in crate::controller) fn close(&mut self, publication: Publication, generation: u64, now: Instant) {
        let Publication { serving, drain_timeout, swap, quiet } = publication;
        if let Some(swap) = swap {
            if let (Some(reason), Some(from)) = (&swap.taken_back, &swap.from) {
                let to = &swap.to;
                warn!("taken back service={} pool={to} serves={from} generation={generation} reason={reason}", self.name);
                self.notify(Kind::TakenBack, &swap, self.running.as_ref().map(|running| &running.config));
            } else if swap.changes_pool() {
                let took = swap.took().as_millis();
                info!("promoted service={} pool={} generation={generation} took={took}ms", self.name, swap.to);
                self.notify(Kind::Promoted, &swap, self.running.as_ref().map(|running| &running.config));
            }
            self.drain_others(swap, quiet, &serving, drain_timeout, now);
        }
        self.probe_settings();
    }

    /// Closes every open peer except those in `serving`, and drains them as a part of `swap`.
    pub(super) fn drain_others(&mut self, mut swap: Swap, quiet: bool, serving: &[Arc<Peer>], timeout: Duration, now: Instant) {
        let serves = |peer: &Arc<Peer>| serving.iter().any(|serving| Arc::ptr_eq(serving, peer));
        // A peer that serves again is not draining: end the drains that wait for it.
        let (ended, mut leaving) = self.drains.reopened(serves, now);
        for swap in &ended {
            self.notify(Kind::Superseded, swap, None);
            self.history.ended(swap);
        }
        self.continue_observation(now);
        leaving.extend(self.peers.open());
        leaving.retain(|peer| !serves(peer));
        if quiet && leaving.is_empty() {
            return;
        }
        let observation = self.begin_observation(&swap, now);
        // Close before counting: see `Lease::new`.
        leaving.iter().for_each(|peer| peer.close());
        swap.promoted(now, leaving.clone());
        swap.observation = observation.or(swap.observation);
        self.history.show(&swap);
        self.drains.begin(swap, leaving, timeout, now);
    }

    /// Probes every peer under the running settings, except those that a proof probes.
    pub(super) fn probe_settings(&mut self) {
        let candidate = self.candidate.as_ref();
        let fallback = self.start.as_ref().and_then(|start| start.fallback.as_ref());
        let proofs: Vec<&Proof> = candidate
            .map(|candidate| &candidate.swap.proof)
            .into_iter()
            .chain(fallback.map(|fallback| &fallback.proof))
            .collect();
        let running = self.running.as_ref().map(|running| &running.config);
        if let Some(running) = running.or(candidate.map(|candidate| &candidate.config)) {
            self.peers.probe_as(running, &proofs);
        }
    }
}
