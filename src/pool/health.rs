//! The results of probing a peer under the running settings: ready or not, since when, and why.
//!
//! Written by the tasks that probe the peer; read by requests (two flags, no lock), by the controller and by the status. The
//! results under a candidate's settings are in [`super::proof`].

use std::{
    fmt,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;

/// A peer's readiness. A peer that was never probed is not ready.
pub struct Health {
    ready: AtomicBool,
    was_ready: AtomicBool,
    created: Instant,
    /// Milliseconds from `created` to the moment at which it last became ready.
    ready_at: AtomicU64,
    record: Mutex<Record>,
}

/// The run of probes so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// None before the first probe.
    pub last: Option<ProbeResult>,
    passes: u32,
    failures: u32,
}

/// One probe.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// When it ended.
    pub at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Why it failed; none if it passed.
    pub failure: Option<ProbeFailure>,
}

/// Why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeFailure {
    /// Nothing listens on this address.
    Refused(SocketAddr),
    /// The probe could not be sent, for want of something that is this process's or its host's: no verdict on the peer.
    Local(String),
    /// Anything else, in words a person can act on.
    Other(String),
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(address) => write!(f, "connection refused: nothing listens on {address}; is it started?"),
            Self::Local(reason) | Self::Other(reason) => f.write_str(reason),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            ready: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
            created: Instant::now(),
            ready_at: AtomicU64::new(0),
            record: Mutex::default(),
        }
    }
}

impl Health {
    /// How long it has been ready at `now`, since it last became ready.
    pub fn ready_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.created).saturating_sub(Duration::from_millis(self.ready_at.load(Relaxed)))
    }

    /// Whether probes say it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// Whether it was ever ready: such a peer may be tried when no peer is ready.
    pub fn was_ready(&self) -> bool {
        self.was_ready.load(Relaxed)
    }

    /// The run of probes so far.
    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// Takes in one probe. `threshold` is how many results like it in a row change the verdict, 1 or more. Returns whether the
    /// verdict changed.
    pub fn probed(&self, result: ProbeResult, threshold: usize) -> bool {
        let mut record = self.record.lock();
        let passed = result.failure.is_none();
        record.last = Some(result);
        let before = if passed { record.passes } else { record.failures };
        let run = before.saturating_add(1);
        (record.passes, record.failures) = if passed { (run, 0) } else { (0, run) };
        let ready = if run as usize >= threshold { passed } else { self.is_ready() };
        self.set(ready) != ready
    }

    /// Takes over the outcome of a proof: the peer is ready under the settings that are about to run. Returns whether that
    /// changes the verdict.
    pub fn adopt(&self, last: ProbeResult, passes: u32) -> bool {
        *self.record.lock() = Record { last: Some(last), passes, failures: 0 };
        !self.set(true)
    }

    /// Takes in a probe that could not be sent for a local reason: it is shown, and says nothing about the peer.
    pub fn not_probed(&self, result: ProbeResult) {
        self.record.lock().last = Some(result);
    }

    /// Forgets the verdict: another server may listen at this name now.
    pub fn reset(&self) {
        *self.record.lock() = Record::default();
        self.ready.store(false, Relaxed);
    }

    /// Returns the verdict before.
    fn set(&self, ready: bool) -> bool {
        if ready {
            if !self.is_ready() {
                self.ready_at.store(u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
            }
            self.was_ready.store(true, Relaxed);
        }
        self.ready.swap(ready, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(passed: bool) -> ProbeResult {
        let failure = (!passed).then(|| ProbeFailure::Other("refused".to_owned()));
        ProbeResult { at: SystemTime::now(), took: Duration::ZERO, failure }
    }

    fn probe(health: &Health, passed: bool) -> bool {
        health.probed(result(passed), if passed { 2 } else { 3 })
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
            assert_eq!((probe(&health, passed), health.is_ready()), (changed, ready));
        }
        assert!(health.was_ready());
    }

    #[test]
    fn an_adopted_proof_makes_a_peer_ready_and_its_failures_count_from_zero() {
        let health = Health::default();
        for _ in 0..5 {
            probe(&health, false);
        }
        assert!(health.adopt(result(true), 2) && health.is_ready() && health.was_ready());
        assert!(!health.adopt(result(true), 2), "it was ready already");
        probe(&health, false);
        probe(&health, false);
        assert!(health.is_ready());
        assert!(probe(&health, false) && !health.is_ready());
    }

    #[test]
    fn another_address_behind_the_name_has_to_become_ready_again_but_may_be_tried() {
        let health = Health::default();
        probe(&health, true);
        probe(&health, true);
        health.reset();
        assert!(!health.is_ready() && health.was_ready());
        probe(&health, true);
        assert!(!health.is_ready());
    }
}
