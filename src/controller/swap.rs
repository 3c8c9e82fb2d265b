//! One swap from the edit to its outcome: what the controller keeps of it, what waiters hear, what the status says.
//!
//! The controller alone moves it on; everybody else has a copy or a receiver.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use crate::{
    pool::Peer,
    status::{self, Outcome, Phase},
};

/// A swap. Clones speak of the same one.
#[derive(Clone)]
pub(super) struct Swap {
    pub from: Option<String>,
    pub to: String,
    pub began: Instant,
    began_at: SystemTime,
    /// What is being proven; kept afterwards for the record.
    pub proof: Proof,
    promoted: Option<Instant>,
    draining: Vec<Arc<Peer>>,
    ended: Option<(Instant, Outcome)>,
    left: usize,
    reason: Option<String>,
    hear: Arc<watch::Sender<status::Swap>>,
}

/// Which peers have to pass before a swap may go on, and how.
#[derive(Clone, Default)]
pub(super) struct Proof {
    pub peers: Vec<Arc<Peer>>,
    /// Whether one of them is enough: for peers added to a pool that serves.
    pub any: bool,
    pub ready_after: u32,
}

impl Proof {
    /// Whether nothing needs to be proven, or all of it is.
    pub(super) fn done(&self, since: Instant) -> bool {
        let proven = self.proven(since);
        proven == self.peers.len() || (self.any && proven > 0)
    }

    fn proven(&self, since: Instant) -> usize {
        self.peers.iter().filter(|peer| self.has(peer, since)).count()
    }

    fn has(&self, peer: &Peer, since: Instant) -> bool {
        peer.health.is_ready() && peer.health.proven(since) >= self.ready_after
    }

    /// Who is missing, and why.
    fn missing(&self, since: Instant) -> Option<String> {
        let missing: Vec<String> = self
            .peers
            .iter()
            .filter(|peer| !self.has(peer, since))
            .map(|peer| {
                let failure = peer.health.record().last.and_then(|probe| probe.failure);
                format!("{}: {}", peer.address, failure.as_deref().unwrap_or("not proven yet"))
            })
            .collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }
}

impl Swap {
    pub(super) fn new(from: Option<String>, to: String, proof: Proof, now: Instant) -> Self {
        let mut swap = Self {
            from,
            to,
            began: now,
            began_at: SystemTime::now(),
            proof,
            promoted: None,
            draining: Vec::new(),
            ended: None,
            left: 0,
            reason: None,
            hear: Arc::new(watch::Sender::new(status::Swap {
                from: None,
                to: String::new(),
                phase: Phase::Proving,
                outcome: None,
                reason: None,
                started_at: String::new(),
                seconds: 0.0,
                prove_seconds: None,
                drain_seconds: None,
                proven: 0,
                to_prove: 0,
                in_flight: 0,
            })),
        };
        swap.tell();
        swap
    }

    /// A receiver of every step from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<status::Swap> {
        self.hear.subscribe()
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.hear, &other.hear)
    }

    pub(super) fn proven(&self) -> bool {
        self.proof.done(self.began)
    }

    /// The new pool serves; `draining` have to become empty.
    pub(super) fn promoted(&mut self, now: Instant, draining: Vec<Arc<Peer>>) {
        self.promoted = Some(now);
        self.draining = draining;
        self.tell();
    }

    pub(super) fn in_flight(&self) -> usize {
        self.draining.iter().map(|peer| peer.in_flight()).sum()
    }

    /// It has ended. The reason defaults to who is missing.
    pub(super) fn end(&mut self, now: Instant, outcome: Outcome, reason: Option<String>) {
        self.left = self.in_flight();
        self.reason = reason.or_else(|| (outcome == Outcome::NotReady).then(|| self.proof.missing(self.began)).flatten());
        self.ended = Some((now, outcome));
        self.draining = Vec::new();
        self.tell();
    }

    pub(super) fn prove_took(&self) -> Option<Duration> {
        self.promoted.map(|promoted| promoted - self.began)
    }

    pub(super) fn drain_took(&self) -> Option<Duration> {
        Some(self.ended?.0 - self.promoted?)
    }

    pub(super) fn took(&self) -> Duration {
        self.ended.map_or_else(|| self.began.elapsed(), |(ended, _)| ended - self.began)
    }

    fn tell(&mut self) {
        self.hear.send_replace(self.status());
    }

    /// How it stands at this moment.
    pub(super) fn status(&self) -> status::Swap {
        let outcome = self.ended.map(|(_, outcome)| outcome);
        let phase = match (outcome, self.promoted) {
            (Some(_), _) => Phase::Done,
            (None, Some(_)) => Phase::Draining,
            (None, None) => Phase::Proving,
        };
        let proving = phase == Phase::Proving;
        status::Swap {
            from: self.from.clone(),
            to: self.to.clone(),
            phase,
            outcome,
            reason: if proving { self.proof.missing(self.began) } else { self.reason.clone() },
            started_at: humantime::format_rfc3339_millis(self.began_at).to_string(),
            seconds: self.took().as_secs_f64(),
            prove_seconds: self.prove_took().map(|took| took.as_secs_f64()),
            drain_seconds: self.drain_took().map(|took| took.as_secs_f64()),
            proven: if proving { self.proof.proven(self.began) } else { self.proof.peers.len() },
            to_prove: self.proof.peers.len(),
            in_flight: if outcome.is_some() { self.left } else { self.in_flight() },
        }
    }
}
