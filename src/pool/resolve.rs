//! Names to addresses, off the way of requests.
//!
//! The controller runs one [`run`] task per peer. A container that is made anew has a new address and nobody edits a file to
//! say so: names are looked up when the peer is made, every five seconds, and at once after a failed connection.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use log::{info, warn};
use tokio::{net::lookup_host, time::timeout};

use super::{local::is_local, peer::Peer};

/// How old an address may be.
const REFRESH: Duration = Duration::from_secs(5);
/// How long a look-up may take. A name server that passes unknown names on to one that never answers would otherwise hide for
/// long that the name has become known.
const LOOKUP: Duration = Duration::from_secs(2);
/// How often failing connections may ask, and how soon an unknown name is asked for again.
const PAUSE: Duration = Duration::from_millis(250);

/// Finds out for the first time where `peer` is; a peer named by its IP address needs no more than that.
pub async fn first(peer: &Peer) {
    match peer.address.host.parse::<IpAddr>() {
        Ok(ip) => peer.set_target(&[SocketAddr::new(ip, peer.address.port)]),
        Err(_) => {
            resolve(peer, false).await;
        }
    }
}

/// Keeps `peer` pointed at what its name means.
pub async fn run(peer: Arc<Peer>) {
    if peer.address.host.parse::<IpAddr>().is_ok() {
        return;
    }
    let mut known = peer.target().is_some();
    loop {
        tokio::time::sleep(PAUSE).await;
        let mut failed = false;
        // A name that means nothing is that of a container on its way, more often than not.
        if known {
            tokio::select! {
                () = tokio::time::sleep(REFRESH - PAUSE) => {}
                () = peer.connect_failed.notified() => failed = true,
            }
        }
        known = resolve(&peer, failed).await;
    }
}

/// Looks the name up, and says whether it means something; `failed` says that the address in use could not be connected to.
async fn resolve(peer: &Peer, failed: bool) -> bool {
    let mut addresses: Vec<SocketAddr> = match timeout(LOOKUP, lookup_host((peer.address.host.as_str(), peer.address.port))).await
    {
        Ok(Ok(found)) => found.collect(),
        // That says nothing about the name.
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
    // IPv4 first: containers often have an IPv6 name and an application that listens on IPv4 alone.
    addresses.sort_by_key(|address| (address.is_ipv6(), *address));
    addresses.dedup();
    let before = peer.target();
    let before = before.as_ref().map(|target| target.addresses.as_slice()).unwrap_or_default();
    if let Some(current) = before.first() {
        if same_set(&addresses, before) {
            if !failed || addresses.len() < 2 {
                return true;
            }
            // The name has others: let them have a turn.
            addresses = before.to_vec();
            addresses.rotate_left(1);
        } else if addresses.contains(current) {
            // The order of a name's addresses means nothing; the one in use stays in use for as long as it is there.
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
