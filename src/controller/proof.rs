//! What a candidate has to show before it is published: which peers have to pass probes under its settings, and how many.
//!
//! Made by [`super::service`] when a candidate begins; the probes end with the last copy of the proof. Nothing here decides
//! what happens after the proof.

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
    /// Each: for a pool that takes over.
    All,
    /// One: for peers that replace others in the pool that serves.
    One,
    /// Each that is ready under the settings that run, and at least one: for other settings of the pool that serves.
    Serving,
}

/// A proof. Clones share it.
#[derive(Clone)]
pub(super) struct Proof {
    peers: Arc<[Arc<PeerProof>]>,
    need: Need,
    ready_after: u32,
    /// Aborted with the last clone, or when the proof ends.
    probes: Arc<Mutex<JoinSet<()>>>,
}

impl Proof {
    /// Nothing has to be proven.
    pub(super) fn none() -> Self {
        Self { peers: Arc::new([]), need: Need::All, ready_after: 0, probes: Arc::default() }
    }

    /// Begins to probe `peers` under `settings`. `counts` says of which peers the results are also the verdict.
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

    /// Whether there is nothing to prove, or all of it is proven.
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

    /// Whether there is nothing to prove.
    pub(super) fn is_none(&self) -> bool {
        self.peers.is_empty()
    }

    /// Whether the probes of this proof are also those that judge `peer`.
    pub(super) fn judges(&self, peer: &Arc<Peer>) -> bool {
        self.peers.iter().any(|proof| proof.counts && Arc::ptr_eq(&proof.peer, peer))
    }

    /// Peers to be proven.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Peers proven so far.
    pub(super) fn proven(&self) -> usize {
        self.peers.iter().filter(|peer| self.has(peer)).count()
    }

    /// Which peers are not proven yet, and why.
    pub(super) fn missing(&self) -> Option<String> {
        let missing: Vec<String> = self.peers.iter().filter(|peer| !self.has(peer)).map(|peer| peer.missing()).collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// Ends the probes.
    pub(super) fn end(&self) {
        self.probes.lock().abort_all();
    }

    /// Makes the outcome the verdict of its peers, just before the settings that it was made under begin to run.
    pub(super) fn adopt(&self) {
        self.peers.iter().for_each(|peer| peer.adopt(self.ready_after));
    }

    fn has(&self, peer: &PeerProof) -> bool {
        peer.passes() >= self.ready_after
    }
}
