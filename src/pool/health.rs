//! What probes say of a peer: ready or not, since when, and why.
//!
//! Written by the peer's own probe task alone; read by requests (two flags, no lock), by the controller and by the status.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

/// A peer's readiness. One that was never probed is not ready.
#[derive(Default)]
pub struct Health {
    ready: AtomicBool,
    was_ready: AtomicBool,
    record: Mutex<Record>,
}

/// The run of probes so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// None before the first probe.
    pub last: Option<ProbeResult>,
    /// Passes in a row, across probes of any pace.
    passes: u32,
    failures: u32,
    /// Passes in a row since the proof began.
    proof: Option<Proof>,
}

/// One probe.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// When it ended.
    pub at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Why it failed; none if it passed.
    pub failure: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Proof {
    since: Instant,
    passes: u32,
}

/// How many probes in a row change the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Passes before a peer is ready.
    pub ready_after: u32,
    /// Failures before a ready peer is not.
    pub not_ready_after: u32,
}

impl Health {
    /// Whether probes say it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Whether it was ever ready: such a peer may be tried when nobody is ready.
    pub fn was_ready(&self) -> bool {
        self.was_ready.load(Relaxed)
    }

    /// The run of probes so far.
    pub fn record(&self) -> Record {
        self.lock().clone()
    }

    /// Passes since the proof that began at `since`.
    pub fn proven(&self, since: Instant) -> u32 {
        self.lock().proof.filter(|proof| proof.since == since).map_or(0, |proof| proof.passes)
    }

    /// Takes in one probe; `proof` is when the proof that it counts for began. Returns whether the verdict changed.
    pub fn probed(&self, result: ProbeResult, thresholds: Thresholds, proof: Option<Instant>) -> bool {
        let mut record = self.lock();
        let passed = result.failure.is_none();
        record.last = Some(result);
        let before = if passed { record.passes } else { record.failures };
        let run = before.saturating_add(1);
        (record.passes, record.failures) = if passed { (run, 0) } else { (0, run) };
        record.proof = proof.map(|since| {
            let before = record.proof.filter(|proof| proof.since == since).map_or(0, |proof| proof.passes);
            Proof { since, passes: if passed { before.saturating_add(1) } else { 0 } }
        });
        let ready = match self.is_ready() {
            false => record.passes >= thresholds.ready_after,
            true => record.failures < thresholds.not_ready_after,
        };
        if ready {
            self.was_ready.store(true, Relaxed);
        }
        self.ready.swap(ready, Relaxed) != ready
    }

    /// Takes in a probe that could not be sent for a local reason: it is shown, and says nothing about the peer.
    pub fn not_probed(&self, result: ProbeResult) {
        self.lock().last = Some(result);
    }

    /// Forgets the verdict: somebody else listens at this name now.
    pub fn reset(&self) {
        *self.lock() = Record::default();
        self.ready.store(false, Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_THREE: Thresholds = Thresholds { ready_after: 2, not_ready_after: 3 };

    fn probe(health: &Health, passed: bool, proof: Option<Instant>) -> bool {
        let failure = (!passed).then(|| "refused".to_owned());
        health.probed(ProbeResult { at: SystemTime::now(), took: Duration::ZERO, failure }, TWO_THREE, proof)
    }

    #[test]
    fn ready_after_passes_in_a_row_and_not_ready_after_failures_in_a_row() {
        let health = Health::default();
        assert!(!health.is_ready(), "never probed");
        for (passed, changed, ready) in [
            (true, false, false),
            (false, false, false),
            (true, false, false),
            (true, true, true),
            (false, false, true),
            (false, false, true),
            (true, false, true),
            (false, false, true),
            (false, false, true),
            (false, true, false),
            (true, false, false),
            (true, true, true),
        ] {
            assert_eq!((probe(&health, passed, None), health.is_ready()), (changed, ready));
        }
        assert!(health.was_ready());
    }

    #[test]
    fn a_proof_counts_only_passes_in_a_row_since_it_began() {
        let health = Health::default();
        for _ in 0..5 {
            probe(&health, true, None);
        }
        let since = Instant::now();
        assert_eq!(health.proven(since), 0, "what was ready before has to prove itself again");
        probe(&health, true, Some(since));
        probe(&health, false, Some(since));
        assert_eq!(health.proven(since), 0);
        probe(&health, true, Some(since));
        probe(&health, true, Some(since));
        assert_eq!(health.proven(since), 2);
        assert_eq!(health.proven(since + Duration::from_secs(1)), 0, "a later proof starts anew");
    }

    #[test]
    fn another_address_behind_the_name_has_to_become_ready_again_but_may_be_tried() {
        let health = Health::default();
        probe(&health, true, None);
        probe(&health, true, None);
        health.reset();
        assert!(!health.is_ready() && health.was_ready());
        probe(&health, true, None);
        assert!(!health.is_ready());
    }
}
