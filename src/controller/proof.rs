//! The proof of a candidate: which peers have to pass probes under its settings before it is published, and how many.
//!
//! [`super::service`] creates one with each candidate. Dropping the last clone ends its probes. The proof only reports its
//! state; the service decides what follows from it.

use std::sync::Arc;

use parking_lot::Mutex;
use pingora::connectors::http::Connector;
use tokio::task::JoinSet;

use crate::pool::{
    Peer,
    probe::Settings,
    proof::{self, PeerProof},
};

/// How many of the peers have to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Every peer: for a new active pool.
    All,
    /// One peer: for new peers in the active pool.
    One,
    /// Every peer that is ready under the running settings, and at least one: for new settings of the active pool.
    Serving,
}

/// A proof. Clones share its state.
#[derive(Clone)]
pub(super) struct Proof {
    peers: Arc<[Arc<PeerProof>]>,
    need: Need,
    ready_after: u32,
    /// The probes; aborted with the last clone, or when the proof ends.
    probes: Arc<Mutex<JoinSet<()>>>,
}

impl Proof {
    /// A proof that requires nothing.
    pub(super) fn none() -> Self {
        Self { peers: Arc::new([]), need: Need::All, ready_after: 0, probes: Arc::default() }
    }

    /// Begins to probe `peers` under `settings`. `counts` selects the peers whose readiness these probes determine too.
    pub(super) fn begin(
        peers: Vec<Arc<Peer>>,
        need: Need,
        settings: &Settings,
        counts: impl Fn(&Peer) -> bool,
        connector: &Arc<Connector>,
    ) -> Self {
        let mut probes = JoinSet::new();
        let peers = peers.into_iter().map(|peer| {
            let counts = counts(&peer);
            let of_peer = Arc::new(PeerProof::new(peer, counts));
            probes.spawn(proof::run(Arc::clone(&of_peer), settings.clone(), Arc::clone(connector)));
            of_peer
        });
        let peers = peers.collect();
        Self { peers, need, ready_after: settings.check.ready_after, probes: Arc::new(Mutex::new(probes)) }
    }

    /// Whether every required peer is proven; true if none is required.
    pub(super) fn is_done(&self) -> bool {
        match self.need {
            _ if self.peers.is_empty() => true,
            Need::All => self.peers.iter().all(|peer| self.has(peer)),
            Need::One => self.peers.iter().any(|peer| self.has(peer)),
            Need::Serving => {
                let fine = |proof: &Arc<PeerProof>| self.has(proof) || !proof.peer.health.is_ready();
                self.peers.iter().any(|peer| self.has(peer)) && self.peers.iter().all(fine)
            }
        }
    }

    /// Whether nothing has to be proven.
    pub(super) fn is_none(&self) -> bool {
        self.peers.is_empty()
    }

    /// Whether the probes of this proof determine the readiness of `peer`.
    pub(super) fn judges(&self, peer: &Arc<Peer>) -> bool {
        self.peers.iter().any(|proof| proof.counts && Arc::ptr_eq(&proof.peer, peer))
    }

    /// Number of peers to prove.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Number of peers proven so far.
    pub(super) fn proven(&self) -> usize {
        self.peers.iter().filter(|peer| self.has(peer)).count()
    }

    /// Whether a peer that was proven has failed as many probes as make a peer not ready.
    pub(super) fn lost_readiness(&self) -> bool {
        self.peers.iter().any(|peer| peer.counts && !peer.peer.health.is_ready())
    }

    /// The peers that are not proven yet, with reasons.
    pub(super) fn missing(&self) -> Option<String> {
        let missing: Vec<String> = self.peers.iter().filter(|peer| !self.has(peer)).map(|peer| peer.missing()).collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// Ends the probes.
    pub(super) fn end(&self) {
        self.probes.lock().abort_all();
    }

    /// Applies the results to the readiness of the peers, just before the settings of the proof become the running ones.
    pub(super) fn adopt(&self) {
        self.peers.iter().for_each(|peer| peer.adopt(self.ready_after));
    }

    fn has(&self, peer: &PeerProof) -> bool {
        peer.passes() >= self.ready_after
    }
}
