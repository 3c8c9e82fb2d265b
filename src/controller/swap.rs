//! One swap, from the edit to its outcome: its state in the controller, for waiters and for the status.
//!
//! Only the controller changes it; others have a copy or a receiver. [`Swap::announce`] notifies waiters after the view of the
//! step is published, so that the view already shows the step.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use super::{gate::Gate, observation::Observation, proof::Proof};
use crate::{
    pool::Peer,
    status::{self, Outcome, Phase},
};

/// A swap. A clone keeps the state at its time.
#[derive(Clone)]
pub(super) struct Swap {
    pub from: Option<String>,
    pub to: String,
    pub began: Instant,
    /// Deadline of the proof.
    pub deadline: Instant,
    began_at: SystemTime,
    /// The proof; kept afterwards for the report.
    pub proof: Proof,
    /// What the proven pool still has to pass; none before it begins.
    pub gate: Option<Gate>,
    /// The file that is being written between proof and promotion.
    pub writing: Option<Arc<str>>,
    promoted: Option<Instant>,
    draining: Vec<Arc<Peer>>,
    /// When no request ran on the draining peers any more.
    drained: Option<Instant>,
    /// The observation of the new pool; none if it is not observed.
    pub observation: Option<Observation>,
    /// Why the new pool was taken back; the draining peers are its peers then.
    pub taken_back: Option<String>,
    ended: Option<(Instant, Outcome)>,
    left: usize,
    reason: Option<String>,
    waiters: Arc<watch::Sender<status::Swap>>,
}

impl Swap {
    /// Begins a swap whose proof may take `timeout`.
    pub(super) fn new(from: Option<String>, to: String, proof: Proof, timeout: Duration, now: Instant) -> Self {
        let swap = Self {
            from,
            to,
            began: now,
            deadline: now + timeout,
            began_at: SystemTime::now(),
            proof,
            gate: None,
            writing: None,
            promoted: None,
            draining: Vec::new(),
            drained: None,
            observation: None,
            taken_back: None,
            ended: None,
            left: 0,
            reason: None,
            waiters: Arc::new(watch::Sender::default()),
        };
        swap.announce();
        swap
    }

    /// A receiver for every further step.
    pub(super) fn subscribe(&self) -> watch::Receiver<status::Swap> {
        self.waiters.subscribe()
    }

    /// Notifies the waiters of this step.
    pub(super) fn announce(&self) {
        self.waiters.send_replace(self.status());
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.waiters, &other.waiters)
    }

    /// Whether it changes the active pool, and not only its peers or settings.
    pub(super) fn changes_pool(&self) -> bool {
        self.from.as_ref() != Some(&self.to)
    }

    /// Records the promotion, or that its new pool was taken back; `draining` are the peers to drain.
    pub(super) fn promoted(&mut self, now: Instant, draining: Vec<Arc<Peer>>) {
        self.end_trial();
        self.writing = None;
        self.promoted.get_or_insert(now);
        self.draining = draining;
    }

    /// Records that no request runs on the draining peers.
    pub(super) fn drained(&mut self, now: Instant) {
        self.drained.get_or_insert(now);
    }

    /// Whether the new pool is being observed.
    pub(super) fn is_observed(&self) -> bool {
        self.observation.as_ref().is_some_and(Observation::is_on)
    }

    /// Ends the observation, if there is one.
    pub(super) fn end_observation(&mut self, now: Instant) {
        if let Some(observation) = &mut self.observation {
            observation.end(now);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.draining.iter().map(|peer| peer.in_flight()).sum()
    }

    /// Ends the swap. The default reason is the missing part of the proof.
    pub(super) fn end(&mut self, now: Instant, outcome: Outcome, reason: Option<String>) {
        self.end_trial();
        self.writing = None;
        self.end_observation(now);
        self.left = self.in_flight();
        self.reason = reason.or_else(|| (outcome == Outcome::NotReady).then(|| self.proof.missing()).flatten());
        self.ended = Some((now, outcome));
        self.draining = Vec::new();
    }

    /// Ends what the new pool was put through before it serves.
    fn end_trial(&mut self) {
        self.proof.end();
        // Taken, because the history keeps the swap, and a warm-up has all of its response times.
        if let Some(gate) = self.gate.take() {
            gate.end();
        }
    }

    pub(super) fn prove_took(&self) -> Option<Duration> {
        self.promoted.map(|promoted| promoted - self.began)
    }

    pub(super) fn drain_took(&self) -> Option<Duration> {
        Some(self.drained.unwrap_or(self.ended?.0) - self.promoted?)
    }

    pub(super) fn took(&self) -> Duration {
        self.ended.map_or_else(|| self.began.elapsed(), |(ended, _)| ended - self.began)
    }

    /// The phase after the promotion, and what is to be said about it.
    fn after_promotion(&self) -> (Phase, Option<String>) {
        match &self.observation {
            _ if self.taken_back.is_some() => (Phase::TakingBack, self.taken_back.clone()),
            Some(observation) if observation.is_on() => (Phase::Observing, observation.stuck.clone()),
            _ => (Phase::Draining, None),
        }
    }

    /// Its state at this moment.
    pub(super) fn status(&self) -> status::Swap {
        let outcome = self.ended.map(|(_, outcome)| outcome);
        let gate = self.gate.as_ref().and_then(Gate::progress);
        let (phase, reason) = match (outcome, self.promoted, gate, &self.writing) {
            (Some(_), ..) => (Phase::Done, self.reason.clone()),
            (None, Some(_), ..) => self.after_promotion(),
            (None, None, Some((phase, progress)), _) => (phase, Some(progress)),
            (None, None, None, Some(file)) => (Phase::Proving, Some(format!("writing {file}"))),
            (None, None, None, None) => (Phase::Proving, self.proof.missing()),
        };
        let proving = phase == Phase::Proving;
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        status::Swap {
            from: self.from.clone(),
            to: self.to.clone(),
            phase,
            outcome,
            reason,
            started_at: humantime::format_rfc3339_millis(self.began_at).to_string(),
            seconds: self.took().as_secs_f64(),
            prove_seconds: self.prove_took().map(|took| took.as_secs_f64()),
            drain_seconds: self.drain_took().map(|took| took.as_secs_f64()),
            timeout_seconds: (self.deadline - self.began).as_secs_f64(),
            deadline_seconds: if proving { left.as_secs_f64() } else { 0.0 },
            proven: if proving { self.proof.proven() } else { self.proof.len() },
            to_prove: self.proof.len(),
            in_flight: if outcome.is_some() { self.left } else { self.in_flight() },
            observation: self.observation.as_ref().map(|observation| observation.status(now)),
        }
    }
}
