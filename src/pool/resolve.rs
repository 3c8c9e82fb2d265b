//! Resolves the names of peers in the background, so that no request waits for DNS.
//!
//! The controller runs one [`run`] task per peer. A recreated container has a new address although the configuration is
//! unchanged. Therefore a name is resolved when the peer is created, every five seconds, and after a failed connection.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use log::{info, warn};
use tokio::{net::lookup_host, time::timeout};

use super::{local::is_local, peer::Peer};

/// Time between two lookups of a resolved name.
const REFRESH: Duration = Duration::from_secs(5);
/// Timeout of one lookup. A name server may forward an unknown name to another server that never answers; without this bound, a
/// name that becomes known meanwhile would be found late.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Minimum time between two lookups, whatever the reason; time between lookups of a name that cannot be resolved.
const PAUSE: Duration = Duration::from_millis(250);

/// Sets the first addresses of `peer`. A peer with an IP address needs no further lookup.
pub async fn first(peer: &Peer) {
    match peer.address.host.parse::<IpAddr>() {
        Ok(ip) => peer.set_target(&[SocketAddr::new(ip, peer.address.port)]),
        Err(_) => {
            resolve(peer, false).await;
        }
    }
}

/// Keeps the addresses of `peer` current. Returns at once for a peer with an IP address.
pub async fn run(peer: Arc<Peer>) {
    if peer.address.host.parse::<IpAddr>().is_ok() {
        return;
    }
    let mut known = peer.target().is_some();
    loop {
        tokio::time::sleep(PAUSE).await;
        let mut failed = false;
        // An unresolvable name is usually a container that is still starting: retry soon.
        if known {
            tokio::select! {
                () = tokio::time::sleep(REFRESH - PAUSE) => {}
                () = peer.connect_failed.notified() => failed = true,
            }
        }
        known = resolve(&peer, failed).await;
    }
}

/// Looks the name up; returns whether it is resolved. `failed` means that connecting to the current address failed.
async fn resolve(peer: &Peer, failed: bool) -> bool {
    let mut addresses: Vec<SocketAddr> =
        match timeout(TIMEOUT, lookup_host((peer.address.host.as_str(), peer.address.port))).await {
            Ok(Ok(found)) => found.collect(),
            // A local error, such as no free descriptors, is no statement about the name.
            Ok(Err(e)) if is_local(&e) => {
                warn!("cannot look up peer={} reason={e}", peer.address);
                return peer.target().is_some();
            }
            Ok(Err(e)) => {
                peer.set_unresolved(Some(&e.to_string()));
                return false;
            }
            Err(_) => {
                peer.set_unresolved(Some("no answer"));
                return false;
            }
        };
    peer.set_unresolved(None);
    // IPv4 first: the name of a container often has IPv6 addresses while its application listens on IPv4 only.
    addresses.sort_by_key(|address| (address.is_ipv6(), *address));
    addresses.dedup();
    let before = peer.target();
    let before = before.as_ref().map(|target| target.addresses.as_slice()).unwrap_or_default();
    if let Some(current) = before.first() {
        if same_set(&addresses, before) {
            if !failed || addresses.len() < 2 {
                return true;
            }
            // Connecting failed: try the next address of the name.
            addresses = before.to_vec();
            addresses.rotate_left(1);
        } else if addresses.contains(current) {
            // DNS does not order addresses. The current one stays in use while the name has it.
            addresses.sort_by_key(|address| address != current);
        } else if let Some(new) = addresses.first() {
            info!("peer has a new address peer={} old={current} new={new}", peer.address);
            peer.health.reset();
        }
    }
    peer.set_target(&addresses);
    peer.notify();
    true
}

fn same_set(sorted: &[SocketAddr], before: &[SocketAddr]) -> bool {
    sorted.len() == before.len() && sorted.iter().all(|address| before.contains(address))
}
