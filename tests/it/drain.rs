//! Drains of requests, streams and WebSockets, and events during a drain.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use switchover::status::{Outcome, PoolState, PoolStatus};

use crate::support::{
    Client, ConfigFile, Edit, Gate, Load, Origin, Switchover, eventually,
    load::mixed,
    one_pool,
    origin::{Act, ok},
    two_pools,
};

fn shop(drain: &str) -> (Origin, Origin, ConfigFile, Switchover) {
    two_pools(|config| config.service(&format!("drain: {{timeout: {drain}}}")))
}

/// Longer than any test waits, so that a drain that waits until its timeout does not count as ended.
const NEVER: &str = "30m";

/// Sends a request to blue, which responds when the gate is opened.
fn slow_request(blue: &Origin, switchover: &Switchover) -> (Gate, Client) {
    let gate = Gate::new();
    blue.on("/slow", Act::SayHeld(gate.clone(), Vec::new(), ok("slow")));
    let mut client = switchover.client();
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_pool("blue", "the slow request runs", |pool| pool.in_flight >= 1 && !blue.heads().is_empty());
    (gate, client)
}

#[test]
fn with_nothing_in_flight_a_drain_waits_for_nothing() {
    let (_blue, _green, _config, switchover) = shop(NEVER);
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("safe to stop blue"), "{output:?}");
}

#[test]
fn a_drain_waits_for_a_slow_request_and_no_longer() {
    let (blue, _green, _config, switchover) = shop(NEVER);
    let (gate, mut slow) = slow_request(&blue, &switchover);
    let output = switchover.cli(&["promote", "green", "--wait", "promoted"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(switchover.get("/").text(), "green");
    let pool = switchover.pool_status("blue");
    assert!(pool.state == PoolState::Draining && !pool.safe_to_stop, "{pool:?}");
    let (status, _) = switchover.admin_get("/v1/services/shop/pools/blue/safe-to-stop");
    assert_eq!(status, 504);
    gate.open();
    assert_eq!(slow.read_response().unwrap().text(), "slow");
    let (status, _) = switchover.admin_get("/v1/services/shop/pools/blue/safe-to-stop?wait=60s");
    assert_eq!(status, 200);
}

#[test]
fn a_drain_times_out_and_counts_what_is_left() {
    let (blue, _green, _config, switchover) = shop("300ms");
    let (gate, first) = slow_request(&blue, &switchover);
    let mut slow = [first, switchover.client(), switchover.client()];
    slow.iter_mut().skip(1).for_each(|client| client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    switchover.await_in_flight("blue", 3);
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.stderr.contains("blue is not safe to stop: 3 requests still run"), "{output:?}");
    let swap = switchover.service().swap.unwrap();
    assert_eq!((swap.outcome, swap.in_flight), (Some(Outcome::DrainTimedOut), 3), "{swap:?}");
    let pool = switchover.pool_status("blue");
    assert!(pool.state == PoolState::Standby && !pool.safe_to_stop, "{pool:?}");
    assert_eq!(switchover.get("/").text(), "green");
    gate.open();
    slow.iter_mut().for_each(|client| assert_eq!(client.read_response().unwrap().text(), "slow", "late, but not cut"));
    switchover.await_safe_to_stop("blue");
}

#[test]
fn going_back_opens_the_draining_pool_without_another_proof() {
    let health = "health_check: {interval: 100ms, not_ready_after: 1000}\ndrain: {timeout: 30m}\n";
    let (blue, green, _config, switchover) = two_pools(|config| config.service(health));
    let (gate, mut slow) = slow_request(&blue, &switchover);
    let load = Load::start(switchover.address, 4, mixed_without_slow);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.admin_post("/v1/services/shop/promote?wait=drained", "{\"pool\": \"green\"}"));
        switchover.await_draining("blue");
        // A proof could not succeed now.
        blue.on("/actuator/health/readiness", Act::Hang);
        let output = switchover.cli(&["promote", "blue", "--wait", "promoted"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert_eq!(switchover.get("/").text(), "blue");
        let (status, error) = waiter.join().unwrap();
        assert_eq!((status, &error["code"]), (409, &"superseded".into()), "{error}");
    });
    switchover.await_safe_to_stop("green");
    let last = green.heads().len();
    load.await_sent(100);
    gate.open();
    assert_eq!(slow.read_response().unwrap().text(), "slow");
    load.stop().assert_no_failures();
    assert_eq!(green.heads().len(), last);
}

fn mixed_without_slow(turn: usize) -> (&'static str, &'static str, &'static [u8]) {
    match mixed(turn) {
        (_, "/slow?ms=100", _) => ("GET", "/", b""),
        other => other,
    }
}

#[test]
fn a_passing_probe_does_not_reopen_a_draining_peer() {
    let (blue, _green, config, switchover) = shop(NEVER);
    let (gate, mut slow) = slow_request(&blue, &switchover);
    config.set_active("green", Edit::Rename);
    switchover.await_draining("blue");
    let served = blue.heads().len();
    let probe = |pool: &PoolStatus| pool.peers[0].last_probe.as_ref().map(|probe| probe.at.clone());
    let probed = probe(&switchover.pool_status("blue"));
    switchover.await_pool("blue", "probed again", |pool| {
        assert_eq!(pool.state, PoolState::Draining, "{pool:?}");
        pool.peers[0].ready && probe(pool) != probed
    });
    for _ in 0..20 {
        assert_eq!(switchover.get("/").text(), "green");
    }
    assert_eq!(blue.heads().len(), served);
    gate.open();
    slow.read_response().unwrap();
    switchover.await_safe_to_stop("blue");
}

#[test]
fn websockets_and_event_streams_outlive_the_swap() {
    let (blue, _green, _config, switchover) = shop(NEVER);
    blue.on("/ws", Act::Echo);
    // Half of the events come before the swap, half after it.
    let gate = Gate::new();
    let event = b"6\r\ndata\n\n\r\n";
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (first, rest) = ([head.as_slice(), &event.repeat(20)].concat(), [&event.repeat(20), b"0\r\n\r\n".as_slice()].concat());
    blue.on("/events", Act::SayHeld(gate.clone(), first, rest));
    let mut sockets: Vec<Client> = (0..20).map(|_| websocket(&switchover)).collect();
    let mut streams: Vec<Client> = (0..10).map(|_| switchover.client()).collect();
    for stream in &mut streams {
        stream.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(stream.read_head().unwrap().status, 200);
        assert_eq!(read_events(stream, 20), 20, "no event waits for the next one");
    }
    switchover.await_pool("blue", "all of them are open", |pool| (pool.in_flight, pool.upgraded) == (30, 20));
    let output = switchover.cli(&["promote", "green", "--wait", "promoted"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(switchover.get("/").text(), "green");
    for round in 0..3 {
        for socket in &mut sockets {
            let word = format!("round {round}");
            socket.send(&word).unwrap();
            assert_eq!(socket.read_exactly(word.len()).unwrap(), word.as_bytes());
        }
        assert!(!switchover.pool_status("blue").safe_to_stop);
    }
    gate.open();
    for stream in &mut streams {
        assert_eq!(read_events(stream, usize::MAX), 20);
    }
    switchover.await_pool("blue", "the streams have ended", |pool| {
        assert!(!pool.safe_to_stop && pool.state == PoolState::Draining, "{pool:?}");
        (pool.in_flight, pool.upgraded) == (20, 20)
    });
    sockets.truncate(1);
    switchover.await_in_flight("blue", 1);
    assert!(!switchover.pool_status("blue").safe_to_stop);
    drop(sockets);
    switchover.await_safe_to_stop("blue");
    switchover.await_service("the drain has ended", |service| {
        service.swap.as_ref().is_some_and(|swap| swap.outcome == Some(Outcome::Drained))
    });
}

fn websocket(switchover: &Switchover) -> Client {
    let mut client = switchover.client();
    client
        .send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n")
        .unwrap();
    assert_eq!(client.read_head().unwrap().status, 101);
    client
}

/// Reads up to this many events, or fewer if the stream ends; returns their number.
fn read_events(client: &mut Client, most: usize) -> usize {
    let mut events = 0;
    while events < most {
        let chunk = client.read_chunk().unwrap();
        if chunk.is_empty() {
            break;
        }
        events += String::from_utf8_lossy(&chunk).matches("data").count();
    }
    events
}

/// Without the workaround, Pingora closes a connection if it reads the 101 before it notes that the request has no body.
#[test]
fn every_websocket_stays_open_however_quick_its_peer_and_slow_the_machine() {
    let (blue, _green, _config, switchover) = shop(NEVER);
    blue.on("/ws", Act::Echo);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..60 {
                    let mut socket = websocket(&switchover);
                    socket.send("still here").unwrap();
                    assert_eq!(socket.read_exactly(10).unwrap(), b"still here");
                }
            });
        }
    });
}

#[test]
fn a_websocket_that_is_quiet_in_one_direction_or_both_is_not_cut() {
    let (blue, _config, switchover) = one_pool(|config| config.service("timeouts: {response: 500ms, idle: 500ms}"));
    blue.on("/ws", Act::Echo);
    let mut quiet = websocket(&switchover);
    thread::sleep(Duration::from_millis(1200)); // Longer than every timeout.
    quiet.stream.write_all(b"still here").unwrap();
    let mut bytes = [0; 10];
    quiet.stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    switchover.await_pool("blue", "it is counted", |pool| pool.upgraded == 1);
}

/// A host that loses power sends no FIN; TCP keepalive detects it.
#[test]
fn both_ends_of_a_quiet_websocket_get_keep_alive_probes() {
    let (blue, _green, _config, switchover) = shop(NEVER);
    blue.on("/ws", Act::Echo);
    let socket = websocket(&switchover);
    let listener = switchover.address.port();
    let client = socket.stream.local_addr().unwrap().port();
    // Local and remote address, state, queues, and timer; timer 02 is keepalive (proc(5)).
    let probed = |local: Option<u16>, remote: u16| {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        sockets.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
            local.is_none_or(|local| port(fields[1]) == local)
                && port(fields[2]) == remote
                && fields[3] == "01"
                && fields[5].starts_with("02:")
        })
    };
    eventually("the client is probed", || if probed(Some(listener), client) { Ok(()) } else { Err(()) });
    eventually("the peer is probed", || if probed(None, blue.address().port()) { Ok(()) } else { Err(()) });
}
