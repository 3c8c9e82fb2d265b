//! What drains: requests, streams, WebSockets; and what a drain survives.

use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Client, ConfigFile, Edit, Load, Origin, Switchover, eventually,
    load::mixed,
    origin::{Act, ok},
};

fn shop(drain: &str) -> (Origin, Origin, ConfigFile) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])])
        .service(&format!("    health_check: {{interval: 100ms}}\n    drain: {{timeout: {drain}}}\n"));
    (blue, green, config)
}

#[test]
fn with_nothing_in_flight_it_ends_at_once() {
    let (_blue, _green, config) = shop("30s");
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    let began = Instant::now();
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("safe to stop blue"), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn it_waits_for_a_slow_request_and_no_longer() {
    let (blue, _green, config) = shop("30s");
    blue.on("/slow", Act::SayAfter(Duration::from_millis(700), ok("slow")));
    let switchover = Switchover::start(&config);
    let mut slow = switchover.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_shop("it runs", |shop| shop["pools"][0]["in_flight"] == 1);
    let began = Instant::now();
    let output = switchover.cli(&["promote", "green", "--wait", "promoted"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(switchover.get("/").text(), "green");
    let blue = switchover.pool("blue");
    assert_eq!((&blue["state"], &blue["safe_to_stop"]), (&"draining".into(), &false.into()), "{blue}");
    let (status, _) = switchover.admin_get("/v1/services/shop/pools/blue/safe-to-stop");
    assert_eq!(status, 504);
    let (status, _) = switchover.admin_get("/v1/services/shop/pools/blue/safe-to-stop?wait=10s");
    assert_eq!(status, 200);
    assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(slow.read_response().unwrap().text(), "slow");
}

#[test]
fn it_times_out_and_counts_what_is_left() {
    let (blue, _green, config) = shop("300ms");
    blue.on("/slow", Act::SayAfter(Duration::from_secs(3), ok("slow")));
    let switchover = Switchover::start(&config);
    let mut slow: Vec<Client> = (0..3).map(|_| switchover.client()).collect();
    slow.iter_mut().for_each(|client| client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
    switchover.await_shop("they run", |shop| shop["pools"][0]["in_flight"] == 3);
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.stderr.contains("blue is not safe to stop: 3 requests still run"), "{output:?}");
    let shop = switchover.shop();
    assert_eq!((&shop["swap"]["outcome"], &shop["swap"]["in_flight"]), (&"drain_timed_out".into(), &3.into()), "{shop}");
    assert_eq!((&shop["pools"][0]["state"], &shop["pools"][0]["safe_to_stop"]), (&"standby".into(), &false.into()), "{shop}");
    assert_eq!(switchover.get("/").text(), "green");
    slow.iter_mut().for_each(|client| assert_eq!(client.read_response().unwrap().text(), "slow", "late, but not cut"));
    switchover.await_safe_to_stop("blue");
}

#[test]
fn going_back_opens_the_draining_pool_at_once() {
    let (blue, green, config) = shop("30s");
    blue.on("/slow", Act::SayAfter(Duration::from_secs(2), ok("slow")));
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed_without_slow);
    let mut slow = switchover.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_shop("it runs", |shop| shop["pools"][0]["in_flight"].as_u64() >= Some(1));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.admin_post("/v1/services/shop/promote?wait=drained", "{\"pool\": \"green\"}"));
        switchover.await_shop("blue drains", |shop| shop["pools"][0]["state"] == "draining");
        // Nobody could prove it again now, and nobody has to.
        blue.on("/actuator/health/readiness", Act::SayAfter(Duration::from_millis(900), ok("up")));
        let began = Instant::now();
        let output = switchover.cli(&["promote", "blue", "--wait", "promoted"]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        assert_eq!(switchover.get("/").text(), "blue");
        let (status, error) = waiter.join().unwrap();
        assert_eq!((status, &error["code"]), (409, &"superseded".into()), "{error}");
    });
    switchover.await_safe_to_stop("green");
    let last = green.heads().len();
    assert_eq!(slow.read_response().unwrap().text(), "slow");
    load.stop().assert_no_failures();
    assert_eq!(green.heads().len(), last);
}

fn mixed_without_slow(turn: usize) -> (&'static str, &'static str, &'static [u8]) {
    match mixed(turn) {
        (_, "/slow?ms=200", _) => ("GET", "/", b""),
        other => other,
    }
}

#[test]
fn a_passing_probe_does_not_reopen_a_draining_peer() {
    let (blue, _green, config) = shop("30s");
    blue.on("/slow", Act::SayAfter(Duration::from_millis(1200), ok("slow")));
    let switchover = Switchover::start(&config);
    let mut slow = switchover.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_shop("it runs", |shop| shop["pools"][0]["in_flight"] == 1);
    config.set_active("green", Edit::Rename);
    switchover.await_shop("blue drains", |shop| shop["pools"][0]["state"] == "draining");
    let served = blue.heads().len();
    let probed = switchover.pool("blue")["peers"][0]["last_probe"]["at"].clone();
    switchover.await_shop("it was probed again", |shop| {
        let peer = &shop["pools"][0]["peers"][0];
        assert_eq!(shop["pools"][0]["state"], "draining", "{shop}");
        peer["ready"] == true && peer["last_probe"]["at"] != probed
    });
    for _ in 0..20 {
        assert_eq!(switchover.get("/").text(), "green");
    }
    assert_eq!(blue.heads().len(), served);
    slow.read_response().unwrap();
    switchover.await_safe_to_stop("blue");
}

#[test]
fn websockets_and_event_streams_outlive_the_swap() {
    let (blue, _green, config) = shop("60s");
    blue.on("/ws", Act::Echo);
    let events: Vec<Vec<u8>> =
        std::iter::once(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec())
            .chain((0..40).map(|_| b"6\r\ndata\n\n\r\n".to_vec()))
            .chain([b"0\r\n\r\n".to_vec()])
            .collect();
    blue.on("/events", Act::Drip(Duration::from_millis(100), events));
    let switchover = Switchover::start(&config);
    let mut sockets: Vec<Client> = (0..20).map(|_| websocket(&switchover)).collect();
    let streams: Vec<_> = (0..10)
        .map(|_| {
            let mut client = switchover.client();
            client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            thread::spawn(move || read_events(&mut client))
        })
        .collect();
    let open = |shop: &serde_json::Value| shop["pools"][0]["in_flight"] == 30 && shop["pools"][0]["upgraded"] == 20;
    switchover.await_shop("all of them are open", open);
    let output = switchover.cli(&["promote", "green", "--wait", "promoted"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(switchover.get("/").text(), "green");
    for round in 0..3 {
        for socket in &mut sockets {
            let word = format!("round {round}");
            socket.send(&word).unwrap();
            assert_eq!(socket.read_exactly(word.len()).unwrap(), word.as_bytes());
        }
        assert_eq!(switchover.pool("blue")["safe_to_stop"], false);
    }
    for stream in streams {
        let (events, longest) = stream.join().unwrap();
        assert_eq!(events, 40);
        assert!(longest < Duration::from_secs(1), "a stall of {longest:?}");
    }
    let blue = switchover.pool("blue");
    assert_eq!(
        (&blue["upgraded"], &blue["safe_to_stop"], &blue["state"]),
        (&20.into(), &false.into(), &"draining".into()),
        "{blue}"
    );
    sockets.truncate(1);
    switchover.await_shop("one is left", |shop| shop["pools"][0]["in_flight"] == 1);
    assert_eq!(switchover.pool("blue")["safe_to_stop"], false);
    drop(sockets);
    switchover.await_safe_to_stop("blue");
    assert_eq!(switchover.shop()["swap"]["outcome"], "drained");
}

fn websocket(switchover: &Switchover) -> Client {
    let mut client = switchover.client();
    client
        .send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n")
        .unwrap();
    assert_eq!(client.read_head().unwrap().status, 101);
    client
}

/// Counts events, and the longest time between two.
fn read_events(client: &mut Client) -> (usize, Duration) {
    assert_eq!(client.read_head().unwrap().status, 200);
    let (mut events, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
    loop {
        let chunk = client.read_chunk().unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if chunk.is_empty() {
            return (events, longest);
        }
        events += String::from_utf8_lossy(&chunk).matches("data").count();
    }
}

/// Pingora would close some of them at once: those whose 101 it reads before it has noted that the request has no body.
#[test]
fn every_websocket_stays_open_however_quick_its_peer_and_slow_the_machine() {
    let (blue, _green, config) = shop("60s");
    blue.on("/ws", Act::Echo);
    let switchover = Switchover::start(&config);
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
    let (blue, _green, config) = shop("60s");
    blue.on("/ws", Act::Echo);
    let config = config.service("    health_check: {interval: 100ms}\n    timeouts: {response: 300ms, idle: 300ms}\n");
    let switchover = Switchover::start(&config);
    let mut quiet = websocket(&switchover);
    thread::sleep(Duration::from_millis(1500)); // Longer than every timeout.
    quiet.stream.write_all(b"still here").unwrap();
    let mut bytes = [0; 10];
    quiet.stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    eventually("it is counted", || if switchover.pool("blue")["upgraded"] == 1 { Ok(()) } else { Err(switchover.pool("blue")) });
}

/// Their host may have lost its power: neither end of a quiet WebSocket is waited for without being asked.
#[test]
fn both_ends_of_a_quiet_websocket_are_asked_whether_they_are_still_there() {
    let (blue, _green, config) = shop("60s");
    blue.on("/ws", Act::Echo);
    let switchover = Switchover::start(&config);
    let socket = websocket(&switchover);
    let listener = switchover.address.port();
    let client = socket.stream.local_addr().unwrap().port();
    // Local and remote address, state, queues, and the timer, of which 02 is that of keep-alive (proc(5)).
    let asked = |local: Option<u16>, remote: u16| {
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
    eventually("the client is asked", || if asked(Some(listener), client) { Ok(()) } else { Err(()) });
    eventually("the peer is asked", || if asked(None, blue.address().port()) { Ok(()) } else { Err(()) });
}
