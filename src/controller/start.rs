//! The start of a service, until it serves for the first time.
//!
//! Kept by [`super::service`]. At the start no other pool serves, so the pool of the file is published unproven and its requests
//! get 503 until it is ready. If it fails its proof and the pool that served before the restart is ready, that pool serves.

use super::proof::Proof;
use crate::{config, pool::Pool};

/// A service that has not served yet.
#[derive(Default)]
pub(super) struct Start {
    /// The pool that served before the restart, if it is recorded and still in the file.
    pub served_last: Option<String>,
    /// The configuration of the file, but with the pool that served last as the active one.
    pub fallback: Option<Fallback>,
}

/// A pool to fall back to.
pub(super) struct Fallback {
    pub config: config::Service,
    pub proof: Proof,
}

impl Start {
    /// Whether the fallback has to serve instead of `active`, whose probes have failed.
    pub(super) fn falls_back(&self, active: &Pool) -> bool {
        self.fallback.as_ref().is_some_and(|fallback| fallback.proof.is_done()) && has_failed(active)
    }
}

/// Whether a peer of the pool is ready.
pub(super) fn serves(active: &Pool) -> bool {
    active.slots().iter().any(|slot| slot.peer.health.is_ready())
}

fn has_failed(active: &Pool) -> bool {
    active.slots().iter().any(|slot| slot.peer.health.record().last.is_some_and(|probe| probe.failure.is_some()))
}
