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
    pool::health::{ProbeFailure, ProbeResult},
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
    let result = ProbeResult {
        at: SystemTime::now(),
        took: Duration::ZERO,
        failure: (!passed).then(|| ProbeFailure::Other(String::new())),
    };
    peer.health.probed(result, 1);
}

fn pool(balance: Balance, fail_open: bool, peers: &[(&Arc<Peer>, u16)]) -> Pool {
    let slots = peers.iter().map(|(peer, weight)| Slot { peer: Arc::clone(peer), weight: *weight }).collect();
    let hash = HashBy { client_address: true, ..HashBy::default() };
    let hash = (balance == Balance::Hash).then_some(&hash);
    Pool::new("blue", slots, balance, hash, fail_open, Duration::ZERO, Arc::new(Metrics::new().unwrap().pool("shop", "blue")))
}

fn shares(pool: &Pool, picks: usize) -> HashMap<u16, usize> {
    let mut shares = HashMap::new();
    for _ in 0..picks {
        *shares.entry(pool.pick(&[], None).ok().unwrap().peer().address.port).or_default() += 1;
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
    let leases: Vec<Lease> = (0..40).map(|_| pool.pick(&[], None).ok().unwrap()).collect();
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
fn random_follows_weights_when_idle_and_load_otherwise() {
    let (a, b, c) = (peer(1, true), peer(2, true), peer(3, false));
    let pool = pool(Balance::Random, true, &[(&a, 3), (&b, 1), (&c, 1)]);
    // Beyond six standard deviations of the binomial distribution.
    let idle = shares(&pool, 10_000);
    assert!((7_240..=7_760).contains(&idle[&1]) && idle[&1] + idle[&2] == 10_000, "{idle:?}");
    let leases: Vec<Lease> = (0..400).map(|_| pool.pick(&[], None).ok().unwrap()).collect();
    // With two peers, both are drawn each time: after each step the loads for the weights are equal, or one step apart.
    let (heavy, light) = (a.in_flight(), b.in_flight());
    assert!(heavy.abs_diff(3 * light) <= 3, "{heavy} {light}");
    drop(leases);
}

/// Which peer each of many clients gets.
fn by_client(pool: &Pool) -> Vec<u16> {
    let port = |client: usize| {
        let key = selection::hash(format!("client-{client}").as_bytes());
        pool.pick(&[], Some(key)).ok().unwrap().peer().address.port
    };
    (0..CLIENTS).map(port).collect()
}

const CLIENTS: usize = 10_000;

/// Six standard deviations of how many clients have something that each has with `probability`, around the mean.
fn about(probability: f64) -> std::ops::RangeInclusive<f64> {
    let (mean, spread) = (CLIENTS as f64 * probability, 6.0 * (CLIENTS as f64 * probability * (1.0 - probability)).sqrt());
    mean - spread..=mean + spread
}

#[test]
fn hash_gives_each_peer_its_share_by_weight() {
    let peers: Vec<Arc<Peer>> = (1..=4).map(|port| peer(port, true)).collect();
    let weights = [1, 2, 3, 4];
    let pool = pool(Balance::Hash, true, &peers.iter().zip(weights).collect::<Vec<_>>());
    let clients = by_client(&pool);
    for (port, weight) in (1..).zip(weights) {
        let share = clients.iter().filter(|client| **client == port).count();
        assert!(about(f64::from(weight) / 10.0).contains(&(share as f64)), "{port}: {share}");
    }
}

#[test]
fn hash_moves_only_the_clients_that_an_added_peer_wins() {
    for count in 1..=8 {
        let peers: Vec<Arc<Peer>> = (1..=count + 1).map(|port| peer(port, true)).collect();
        let slots: Vec<(&Arc<Peer>, u16)> = peers.iter().map(|peer| (peer, 1)).collect();
        let before = by_client(&pool(Balance::Hash, true, &slots[..usize::from(count)]));
        // The order of the file is of no importance.
        let after = by_client(&pool(Balance::Hash, true, &slots.iter().rev().copied().collect::<Vec<_>>()));
        let moved: Vec<u16> = before.iter().zip(&after).filter(|(a, b)| a != b).map(|(_, after)| *after).collect();
        assert!(moved.iter().all(|port| *port == count + 1), "{moved:?}");
        assert!(about(1.0 / f64::from(count + 1)).contains(&(moved.len() as f64)), "{count}: {}", moved.len());
    }
}

#[test]
fn hash_keeps_every_client_when_a_peer_is_created_again_at_another_address() {
    let peers: Vec<Arc<Peer>> = (1..=3).map(|port| peer(port, true)).collect();
    peers[1].set_target(&["10.0.0.1:2".parse().unwrap()]);
    let slots: Vec<(&Arc<Peer>, u16)> = peers.iter().map(|peer| (peer, 1)).collect();
    let before = by_client(&pool(Balance::Hash, true, &slots));
    peers[1].set_target(&["10.0.0.2:2".parse().unwrap()]);
    assert_eq!(by_client(&pool(Balance::Hash, true, &slots)), before);
}

#[test]
fn hash_gives_the_clients_of_a_peer_that_is_not_ready_to_their_second_choice_until_it_is_back() {
    let peers: Vec<Arc<Peer>> = (1..=3).map(|port| peer(port, true)).collect();
    let slots: Vec<(&Arc<Peer>, u16)> = peers.iter().map(|peer| (peer, 1)).collect();
    let pool = pool(Balance::Hash, true, &slots);
    let before = by_client(&pool);
    probed(&peers[0], false);
    let without = by_client(&pool);
    assert!(before.iter().zip(&without).all(|(before, without)| *before == 1 || before == without));
    let [second, third] = [2, 3].map(|port| before.iter().zip(&without).filter(|(a, b)| **a == 1 && **b == port).count());
    assert!(about(1.0 / 6.0).contains(&(second as f64)) && about(1.0 / 6.0).contains(&(third as f64)), "{second} {third}");
    assert_eq!(by_client(&pool), without, "the second choice is the same each time");
    probed(&peers[0], true);
    assert_eq!(by_client(&pool), before);
}

#[test]
fn hash_without_a_key_goes_by_the_fewest_requests() {
    let (a, b) = (peer(1, true), peer(2, true));
    assert_eq!(shares(&pool(Balance::Hash, true, &[(&a, 1), (&b, 1)]), 100), HashMap::from([(1, 50), (2, 50)]));
}

#[test]
fn a_peer_that_was_tried_or_is_not_ready_is_not_picked() {
    let (a, b, c) = (peer(1, true), peer(2, false), peer(3, true));
    let pool = pool(Balance::LeastRequests, true, &[(&a, 1), (&b, 1), (&c, 1)]);
    assert_eq!(pool.pick(&[Arc::clone(&a)], None).ok().unwrap().peer().address.port, 3);
    assert_eq!(pool.pick(&[a, c], None).err(), Some(PickError::NoReadyPeer));
}

#[test]
fn when_nobody_is_ready_those_who_were_are_tried_unless_told_otherwise() {
    let (was, never) = (peer(1, true), peer(2, false));
    probed(&was, false);
    assert_eq!(shares(&pool(Balance::LeastRequests, true, &[(&never, 1), (&was, 1)]), 10), HashMap::from([(1, 10)]));
    assert_eq!(
        pool(Balance::LeastRequests, false, &[(&never, 1), (&was, 1)]).pick(&[], None).err(),
        Some(PickError::NoReadyPeer)
    );
}

#[test]
fn a_closed_pool_says_so() {
    let a = peer(1, true);
    let pool = pool(Balance::RoundRobin, true, &[(&a, 1)]);
    a.close();
    assert_eq!(pool.pick(&[], None).err(), Some(PickError::Draining));
    a.open();
    assert!(pool.pick(&[], None).is_ok());
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
                    if let Ok(lease) = pool.pick(&[], None) {
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

/// Two ready peers, and a moment at which the first one has its whole share, and the second one has just become ready.
fn one_of_two_is_new() -> ([Arc<Peer>; 2], SlowStart) {
    let old = peer(1, true);
    thread::sleep(Duration::from_millis(10));
    let new = peer(2, true);
    let now = Instant::now();
    let now = now - new.health.ready_for(now);
    let length = old.health.ready_for(now);
    assert!(length >= Duration::from_millis(9), "{length:?}");
    ([old, new], SlowStart { length, now })
}

#[test]
fn a_new_peer_gets_a_tenth_of_its_share_and_no_request_is_refused() {
    let ([old, new], slow_start) = one_of_two_is_new();
    for balance in [Balance::RoundRobin, Balance::Random, Balance::Hash] {
        let pool = pool(balance, true, &[(&old, 1), (&new, 1)]);
        let to_new = (0..CLIENTS).filter(|client| {
            let key = selection::hash(format!("client-{client}").as_bytes());
            let slot = pool.selection.next(&pool.slots, Some(key), Some(slow_start), |_| true);
            Arc::ptr_eq(&slot.expect("a slot").peer, &new)
        });
        let to_new = to_new.count() as f64;
        // Of two draws, the less loaded one is chosen; without load, the first one.
        assert!(about(0.1 / 1.1).contains(&to_new), "{balance:?}: {to_new}");
    }
    let pool = pool(Balance::LeastRequests, true, &[(&old, 1), (&new, 1)]);
    let leases: Vec<Lease> =
        (0..110).filter_map(|_| Lease::new(&pool.selection.next(&pool.slots, None, Some(slow_start), |_| true)?.peer)).collect();
    assert_eq!((leases.len(), old.in_flight(), new.in_flight()), (110, 100, 10));
}

#[test]
fn peers_that_became_ready_together_have_equal_shares_in_a_slow_start() {
    let peers: Vec<Arc<Peer>> = (1..=3).map(|port| peer(port, true)).collect();
    let slots: Vec<(&Arc<Peer>, u16)> = peers.iter().map(|peer| (peer, 1)).collect();
    let slow_start = SlowStart { length: Duration::from_secs(3600), now: Instant::now() };
    let pool = pool(Balance::RoundRobin, true, &slots);
    for _ in 0..100 {
        for port in 1..=3 {
            let slot = pool.selection.next(&pool.slots, None, Some(slow_start), |_| true).expect("a slot");
            assert_eq!(slot.peer.address.port, port);
        }
    }
}

#[test]
fn the_slow_start_begins_again_with_each_readiness() {
    let peer = peer(1, true);
    let first = Instant::now();
    thread::sleep(Duration::from_millis(10));
    probed(&peer, true);
    assert!(peer.health.ready_for(Instant::now()) >= Duration::from_millis(9), "it was ready all the time");
    probed(&peer, false);
    probed(&peer, true);
    assert_eq!(peer.health.ready_for(first + Duration::from_millis(5)), Duration::ZERO);
}
