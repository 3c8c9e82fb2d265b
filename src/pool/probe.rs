//! Active health checks: when a peer is probed, and what becomes of the result.
//!
//! The controller runs one [`run`] task per peer for as long as the peer is in the file or drains, and one task of
//! [`super::proof`] per peer that a swap has to prove. What a probe asks is in `health_check`.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use log::{info, warn};
use pingora::{
    connectors::http::Connector,
    lb::{Backend, Extensions, health_check},
    protocols::l4::socket::SocketAddr,
};
use tokio::{sync::watch, time::timeout};

use super::{
    health::{ProbeFailure, ProbeResult},
    health_check::{build, failure},
    peer::Peer,
    upstream::Upstream,
};
use crate::config::HealthCheck;

/// Between two passes of a new peer.
const NEW_PEER_GAP: Duration = Duration::from_millis(10);

/// How a peer is probed.
#[derive(Clone)]
pub struct Settings {
    /// What to ask, how often, and how many answers count.
    pub check: Arc<HealthCheck>,
    /// How to speak to the peer.
    pub upstream: Arc<Upstream>,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.check == other.check && self.upstream.config() == other.upstream.config()
    }
}

/// Probes one peer under one set of settings.
pub(super) struct Prober {
    peer: Arc<Peer>,
    settings: Settings,
    connector: Arc<Connector>,
    /// Built by the first probe.
    check: Option<Box<dyn health_check::HealthCheck + Send + Sync>>,
    /// The modification time of the CA file that `check` was built with.
    ca_written: Option<SystemTime>,
}

/// Probes `peer` until the task is aborted: at once, then at the interval, with a little jitter so that many peers are not
/// probed in step; quickly after the first pass of a new peer. Changed settings start over at once, and a response under the
/// old settings that is still awaited does not count. Without settings the probes rest.
pub async fn run(peer: Arc<Peer>, mut settings: watch::Receiver<Option<Settings>>, connector: Arc<Connector>) {
    loop {
        let current = settings.borrow_and_update().clone();
        let probes = async {
            let Some(current) = current else { return std::future::pending().await };
            let interval = current.check.interval;
            let mut prober = Prober::new(Arc::clone(&peer), current, Arc::clone(&connector));
            loop {
                let was_ready = peer.health.was_ready();
                let result = prober.probe().await;
                let (took, passed) = (result.took, result.failure.is_none());
                if prober.judge(result) || !was_ready {
                    peer.notify();
                }
                tokio::time::sleep(match passed && !peer.health.was_ready() {
                    true => NEW_PEER_GAP.min(interval),
                    false => jittered(interval).saturating_sub(took),
                })
                .await;
            }
        };
        tokio::select! {
            () = probes => {}
            // A closed channel means that the controller has gone.
            changed = settings.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether the verdict is too old to be believed: the task that should renew it ended again and again.
pub fn is_stale(peer: &Peer, check: &HealthCheck) -> bool {
    let last = peer.health.record().last.and_then(|last| last.at.elapsed().ok());
    last.is_some_and(|age| age > 3 * (check.interval + check.timeout))
}

impl Prober {
    pub(super) fn new(peer: Arc<Peer>, settings: Settings, connector: Arc<Connector>) -> Self {
        Self { peer, settings, connector, check: None, ca_written: None }
    }

    /// One probe, counted in the metrics.
    pub(super) async fn probe(&mut self) -> ProbeResult {
        let began = Instant::now();
        let limit = self.settings.check.timeout;
        let within = humantime::format_duration(limit);
        let failure = match timeout(limit, self.settings.upstream.refresh()).await {
            // The disk of this host is slow; that says nothing about the peer.
            Err(_) => Some(ProbeFailure::Local(format!("upstream.tls.ca: the file cannot be read within {within}"))),
            Ok(refreshed) => match timeout(limit, self.check(refreshed)).await {
                Ok(outcome) => outcome.err(),
                Err(_) => Some(ProbeFailure::Other(format!("no answer within {within}"))),
            },
        };
        let peer = &self.peer;
        // The name of a stopped container disappears before its address is known to be dead, and explains more.
        let failure = failure.map(|failure| match failure {
            ProbeFailure::Local(_) => failure,
            _ => peer.unresolved().map_or(failure, ProbeFailure::Other),
        });
        let took = began.elapsed();
        peer.metrics.probe_duration.observe(took.as_secs_f64());
        match &failure {
            None => peer.metrics.probes_passed.inc(),
            Some(ProbeFailure::Local(reason)) => {
                let Peer { service, pool, address, .. } = &**peer;
                peer.metrics.probes_local.inc();
                warn!("cannot probe service={service} pool={pool} peer={address} reason={reason}");
            }
            Some(_) => peer.metrics.probes_failed.inc(),
        }
        if failure.is_some() {
            // The address may be one that this host cannot use; its name may have others.
            peer.connect_failed.notify_one();
        }
        ProbeResult { at: SystemTime::now(), took, failure }
    }

    /// `refreshed` is what [`Upstream::refresh`] returned.
    async fn check(&mut self, refreshed: Result<Option<SystemTime>, String>) -> Result<(), ProbeFailure> {
        let ca_written = refreshed.as_ref().copied().unwrap_or(self.ca_written);
        let built = match &mut self.check {
            Some(built) if ca_written == self.ca_written => built,
            outdated => {
                let built = build(&self.settings, &self.peer, &self.connector).await?;
                self.ca_written = ca_written;
                outdated.insert(built)
            }
        };
        refreshed.map_err(|reason| ProbeFailure::Other(format!("upstream.tls.ca: {reason}")))?;
        let peer = &self.peer;
        let Some(mut address) = peer.target().and_then(|target| target.addresses.first().copied()) else {
            let reason = peer.unresolved().unwrap_or_else(|| format!("{} is not resolved yet", peer.address.host));
            return Err(ProbeFailure::Other(reason));
        };
        if let Some(port) = self.settings.check.port {
            address.set_port(port);
        }
        let backend = Backend { addr: SocketAddr::Inet(address), weight: 1, ext: Extensions::new() };
        built.check(&backend).await.map_err(|e| failure(&e, address))
    }

    /// Lets a probe count for the peer's verdict. Returns whether the verdict, or what is known of it, changed.
    pub(super) fn judge(&self, result: ProbeResult) -> bool {
        let failure = result.failure.clone();
        let (Some(check), false) = (&self.check, matches!(failure, Some(ProbeFailure::Local(_)))) else {
            self.peer.health.not_probed(result);
            return true;
        };
        let threshold = check.health_threshold(failure.is_none());
        let changed = self.peer.health.probed(result, threshold);
        if changed {
            let Peer { service, pool, address, .. } = &*self.peer;
            match failure {
                None => info!("peer is ready service={service} pool={pool} peer={address}"),
                Some(reason) => warn!("peer is not ready service={service} pool={pool} peer={address} reason={reason}"),
            }
        }
        changed
    }
}

/// The interval, up to a tenth more or less.
pub(super) fn jittered(interval: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    interval.mul_f64(0.9 + 0.2 * random as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let interval = jittered(Duration::from_secs(1));
            assert!((Duration::from_millis(900)..=Duration::from_millis(1100)).contains(&interval), "{interval:?}");
        }
    }
}
