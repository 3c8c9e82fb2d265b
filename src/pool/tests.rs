//! Picking, and the race between picking and draining.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::Notify;

use super::*;
use crate::{
    config::PeerAddress,
    metrics::Metrics,
    pool::health::{Failure, ProbeResult},
};

fn peer(port: u16, ready: bool) -> Arc<Peer> {
    let metrics = Metrics::new().unwrap();
    let address = PeerAddress { host: "127.0.0.1".into(), port };
    let peer = Peer::new("shop", "blue", address, metrics.peer("shop", "blue", &port.to_string()), Arc::new(Notify::new()));
    peer.open();
    if ready {
        probed(&peer, true);
    }
    Arc::new(peer)
}

fn probed(peer: &Peer, passed: bool) {
    let result =
        ProbeResult { at: SystemTime::now(), took: Duration::ZERO, failure: (!passed).then(|| Failure::Other(String::new())) };
    peer.health.probed(result, 1);
}

fn pool(balance: Balance, fail_open: bool, peers: &[(&Arc<Peer>, u16)]) -> Pool {
    let slots = peers.iter().map(|(peer, weight)| Slot { peer: Arc::clone(peer), weight: *weight }).collect();
    Pool::new("blue", slots, balance, fail_open, Arc::new(Metrics::new().unwrap().pool("shop", "blue")))
}

fn shares(pool: &Pool, picks: usize) -> HashMap<u16, usize> {
    let mut shares = HashMap::new();
    for _ in 0..picks {
        *shares.entry(pool.pick(&[]).ok().unwrap().peer().address.port).or_default() += 1;
    }
    shares
}

#[test]
fn round_robin_gives_each_its_share_and_the_shares_of_the_absent_to_all() {
    let (a, b, c) = (peer(1, true), peer(2, true), peer(3, true));
    let pool = pool(Balance::RoundRobin, true, &[(&a, 4), (&b, 2), (&c, 2)]);
    assert_eq!(shares(&pool, 400), HashMap::from([(1, 200), (2, 100), (3, 100)]));
    probed(&b, false);
    assert_eq!(shares(&pool, 300), HashMap::from([(1, 200), (3, 100)]));
}

#[test]
fn least_requests_follows_what_is_in_flight_by_weight() {
    let (a, b) = (peer(1, true), peer(2, true));
    let pool = pool(Balance::LeastRequests, true, &[(&a, 3), (&b, 1)]);
    let leases: Vec<Lease> = (0..40).map(|_| pool.pick(&[]).ok().unwrap()).collect();
    assert_eq!((a.in_flight(), b.in_flight()), (30, 10));
    drop(leases);
    assert_eq!((a.in_flight(), b.in_flight()), (0, 0));
}

#[test]
fn least_requests_lets_equals_take_turns() {
    let (a, b) = (peer(1, true), peer(2, true));
    assert_eq!(shares(&pool(Balance::LeastRequests, true, &[(&a, 1), (&b, 1)]), 100), HashMap::from([(1, 50), (2, 50)]));
}

#[test]
fn a_peer_that_was_tried_or_is_not_ready_is_not_picked() {
    let (a, b, c) = (peer(1, true), peer(2, false), peer(3, true));
    let pool = pool(Balance::LeastRequests, true, &[(&a, 1), (&b, 1), (&c, 1)]);
    assert_eq!(pool.pick(&[Arc::clone(&a)]).ok().unwrap().peer().address.port, 3);
    assert_eq!(pool.pick(&[a, c]).err(), Some(PickError::NoReadyPeer));
}

#[test]
fn when_nobody_is_ready_those_who_were_are_tried_unless_told_otherwise() {
    let (was, never) = (peer(1, true), peer(2, false));
    probed(&was, false);
    assert_eq!(shares(&pool(Balance::LeastRequests, true, &[(&never, 1), (&was, 1)]), 10), HashMap::from([(1, 10)]));
    assert_eq!(pool(Balance::LeastRequests, false, &[(&never, 1), (&was, 1)]).pick(&[]).err(), Some(PickError::NoReadyPeer));
}

#[test]
fn a_closed_pool_says_so() {
    let a = peer(1, true);
    let pool = pool(Balance::RoundRobin, true, &[(&a, 1)]);
    a.close();
    assert_eq!(pool.pick(&[]).err(), Some(PickError::Draining));
    a.open();
    assert!(pool.pick(&[]).is_ok());
}

/// Fails if a lease is counted after it looks whether the peer is open, or if a drain reads the count before it closes:
/// then, within these rounds, a request runs on a peer that was called drained.
#[test]
fn nothing_runs_on_a_peer_after_it_was_seen_closed_and_empty() {
    let a = peer(1, true);
    let pool = pool(Balance::LeastRequests, true, &[(&a, 1)]);
    let (drained, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let deadline = Instant::now() + Duration::from_millis(1500);
    let mut rounds = 0;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    if let Ok(lease) = pool.pick(&[]) {
                        assert!(!drained.load(SeqCst), "a request runs on a drained peer");
                        drop(lease);
                    }
                }
            });
        }
        while Instant::now() < deadline {
            a.close();
            while a.in_flight() > 0 {
                std::hint::spin_loop();
            }
            drained.store(true, SeqCst);
            std::hint::spin_loop();
            drained.store(false, SeqCst);
            a.open();
            rounds += 1;
        }
        stop.store(true, SeqCst);
    });
    assert!(rounds > 1000, "only {rounds} rounds");
}
