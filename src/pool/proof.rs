//! The results of probing one peer under a candidate's settings.
//!
//! The controller makes one [`PeerProof`] per candidate and peer, and runs its [`run`] task until the candidate is published
//! or given up. The record is separate from the peer's own health, so that a peer that serves is judged by the settings that
//! run while it is proven under others.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pingora::connectors::http::Connector;

use super::{
    Peer,
    health::{ProbeFailure, ProbeResult},
    probe::{self, Prober, Settings},
    resolve,
};

/// Between two passes: long enough to be two observations, short enough not to be noticed in a swap.
const PASS_GAP: Duration = Duration::from_millis(10);
/// Between a failure and the next probe: a swap waits for an application that is starting.
const FAILURE_GAP: Duration = Duration::from_millis(100);
/// A connection refused for less than this may be a process on its way up; the duration is not shown yet.
const SHOW_REFUSED: Duration = Duration::from_secs(1);

/// The proof of one peer.
pub struct PeerProof {
    /// The peer.
    pub peer: Arc<Peer>,
    /// Whether the results are also the peer's own verdict, because it serves no request, or under the same settings. Its other
    /// probes then rest.
    pub counts: bool,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    last: Option<ProbeResult>,
    /// Where the last probe went.
    address: Option<SocketAddr>,
    passes: u32,
    /// When the run of refused connections began.
    refused_since: Option<Instant>,
}

impl PeerProof {
    /// A proof without any probe yet.
    pub fn new(peer: Arc<Peer>, counts: bool) -> Self {
        Self { peer, counts, record: Mutex::default() }
    }

    /// Passes in a row.
    pub fn passes(&self) -> u32 {
        self.record.lock().passes
    }

    /// Whether the last probe failed; a peer that was not probed yet has not failed.
    pub fn is_failing(&self) -> bool {
        self.record.lock().last.as_ref().is_some_and(|last| last.failure.is_some())
    }

    /// Why the peer is not proven yet: `127.0.0.1:8082: 503 {"status":"OUT_OF_SERVICE"}`.
    pub fn missing(&self) -> String {
        let record = self.record.lock();
        // Until the first probe of the proof has ended, the peer's own probes know most.
        let last = record.last.clone().or_else(|| self.peer.health.record().last);
        let reason = match (last.and_then(|last| last.failure), record.refused_since) {
            (None, _) => "not proven yet".to_owned(),
            (Some(ProbeFailure::Refused(address)), Some(since)) if since.elapsed() >= SHOW_REFUSED => {
                let own = self.peer.target().is_some_and(|target| target.addresses.contains(&address));
                let place = if own { "there".to_owned() } else { format!("on {address}") };
                format!("connection refused for {} s: nothing listens {place}; is it started?", since.elapsed().as_secs())
            }
            (Some(failure), _) => failure.to_string(),
        };
        format!("{}: {reason}", self.peer.address)
    }

    /// Makes the outcome the peer's own verdict, if it has passed `ready_after` times in a row. To be called when the settings
    /// of the proof are about to run.
    pub fn adopt(&self, ready_after: u32) {
        let record = self.record.lock();
        if let (Some(last), true) = (&record.last, record.passes >= ready_after) {
            self.peer.health.adopt(last.clone(), record.passes);
        }
    }

    fn probed(&self, result: ProbeResult, address: Option<SocketAddr>) {
        let mut record = self.record.lock();
        if matches!(result.failure, Some(ProbeFailure::Local(_))) {
            record.last = Some(result);
            return;
        }
        // A name that leads to another address leads to another server, which has to pass by itself.
        let before = if record.address == address { record.passes } else { 0 };
        record.address = address;
        record.passes = if result.failure.is_none() { before.saturating_add(1) } else { 0 };
        record.refused_since = match &result.failure {
            Some(ProbeFailure::Refused(_)) => record.refused_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
        record.last = Some(result);
    }
}

/// Probes the peer under `settings` until the task is aborted: quickly until it has passed often enough, then at the interval.
pub async fn run(proof: Arc<PeerProof>, settings: Settings, connector: Arc<Connector>) {
    let peer = &proof.peer;
    if peer.target().is_none() {
        resolve::first(peer).await;
    }
    let check = Arc::clone(&settings.check);
    let mut prober = Prober::new(Arc::clone(peer), settings, connector);
    loop {
        let address = peer.target().and_then(|target| target.addresses.first().copied());
        let result = prober.probe().await;
        let (took, passed) = (result.took, result.failure.is_none());
        if proof.counts {
            prober.judge(result.clone());
        }
        proof.probed(result, address);
        peer.notify();
        let rest = match passed {
            true if proof.passes() < check.ready_after => PASS_GAP.min(check.interval),
            true => probe::jittered(check.interval).saturating_sub(took),
            false => FAILURE_GAP.min(check.interval),
        };
        tokio::time::sleep(rest).await;
    }
}
