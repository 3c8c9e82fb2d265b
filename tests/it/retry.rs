//! Peers that crash, hang or close connections: which requests fail, and which are retried.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    App, ConfigFile, Load, Origin, Switchover, eventually,
    load::mixed,
    one_pool,
    origin::{Act, ok},
};

#[test]
fn a_peer_that_refuses_connections_is_passed_over_for_any_method() {
    let (dead, alive) = (Origin::start("dead"), Origin::start("alive"));
    let config = ConfigFile::new(&[("blue", &[dead.address(), alive.address()])]).service("    health_check: {interval: 60s}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    dead.kill();
    for turn in 0..40 {
        let mut client = switchover.client();
        let method = if turn % 2 == 0 { "GET" } else { "POST" };
        let response = client.request(method, "/", b"body").unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "alive"));
    }
    assert!(switchover.metric("switchover_retries_total{outcome=\"success\",service=\"shop\"}").unwrap() > 0.0);
}

#[test]
fn a_request_that_can_be_repeated_gets_one_more_try_and_a_post_none() {
    let blue = Origin::start("blue");
    blue.on("/lost", Act::Close);
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    for (method, tries) in [("GET", 2), ("PUT", 2), ("DELETE", 2), ("POST", 1), ("PATCH", 1)] {
        let before = blue.heads().len();
        let mut client = switchover.client();
        let response = client.request(method, "/lost", b"body").unwrap();
        assert_eq!(response.status, 502, "{method}");
        assert!(response.text().starts_with("502 ") && !response.text().contains("127.0.0.1"), "{}", response.text());
        assert_eq!(blue.heads().len() - before, tries, "{method}");
        assert!(blue.bodies()[before..].iter().all(|body| body == b"body"), "{method}");
    }
}

/// Java's `HttpClient` offers HTTP/2 with its first plain requests.
#[test]
fn a_request_that_offers_another_protocol_is_retried_and_shares_connections_as_any_other() {
    let blue = Origin::start("blue");
    blue.on("/lost", Act::Close);
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).service("    health_check: {interval: 60s}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    const OFFER: &str = "Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let before = blue.connections();
    let mut client = switchover.client();
    for _ in 0..20 {
        client.send(format!("GET / HTTP/1.1\r\n{OFFER}")).unwrap();
        assert_eq!(client.read_response().unwrap().text(), "blue");
    }
    assert_eq!(blue.connections() - before, 1);
    let before = blue.heads().len();
    client.send(format!("GET /lost HTTP/1.1\r\n{OFFER}")).unwrap();
    assert_eq!(client.read_response().unwrap().status, 502);
    assert_eq!(blue.heads().len() - before, 2, "a second try");
}

#[test]
fn a_kept_connection_that_died_costs_a_get_nothing() {
    let blue = Origin::start("blue");
    blue.on("/", Act::CloseAtSecond);
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    for _ in 0..20 {
        assert_eq!(switchover.get("/").status, 200);
    }
}

#[test]
fn two_peers_killed_in_turn_cost_no_request_that_can_be_repeated() {
    let mut peers = [App::start("a", "1", "0s"), App::start("b", "1", "0s")];
    let config =
        ConfigFile::new(&[("blue", &[peers[0].address, peers[1].address])]).service("    health_check: {interval: 200ms}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let load = Load::start(switchover.address, 16, mixed);
    for round in 0..6 {
        let peer = &mut peers[round % 2];
        peer.stop(false);
        // The outage lasts until every client has sent a request during it and the probes have detected it.
        load.await_sent(100);
        switchover.await_pool("blue", "the outage is found", |pool| !pool.peers[round % 2].ready);
        peer.restart("1", "0s");
        switchover.await_ready("blue");
        load.await_sent(100);
    }
    let tally = load.stop();
    let (posts, others): (Vec<_>, Vec<_>) = tally.failures.iter().partition(|(method, _)| *method == "POST");
    assert!(others.is_empty(), "{others:?}");
    // A POST that was sent to the peer before it crashed, on one of 16 connections, six times.
    assert!(posts.len() <= 6 * 16, "{} of {}", posts.len(), tally.requests);
    assert!(posts.iter().all(|(_, reason)| reason.contains(": 502 ")), "{posts:?}");
}

#[test]
fn a_peer_that_hangs_is_out_by_its_probes_and_gets_no_new_request_after_that() {
    let (hangs, fine) = (Origin::start("hangs"), Origin::start("fine"));
    let config = ConfigFile::new(&[("blue", &[hangs.address(), fine.address()])])
        .service("health_check: {interval: 100ms, timeout: 1s, not_ready_after: 2}");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    hangs.on("/", Act::Hang).on("/actuator/health/readiness", Act::Hang);
    switchover.await_pool("blue", "it is out", |pool| !pool.peers[0].ready);
    let seen = hangs.heads().len();
    for _ in 0..50 {
        assert_eq!(switchover.get("/").text(), "fine");
    }
    assert_eq!(hangs.heads().len(), seen);
}

#[test]
fn a_late_answer_is_504_after_the_response_timeout_and_not_before() {
    let (blue, _config, switchover) = one_pool(|config| config.service("timeouts: {response: 300ms}"));
    blue.on("/late", Act::Hang);
    let began = Instant::now();
    assert_eq!(switchover.get("/late").status, 504);
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert!(upstream_errors(&switchover, &blue, "response_timeout") >= Some(1.0), "{}", switchover.metrics());
}

/// The count of errors of this kind.
fn upstream_errors(switchover: &Switchover, peer: &Origin, kind: &str) -> Option<f64> {
    let labels = format!("kind=\"{kind}\",peer=\"{}\",pool=\"blue\",service=\"shop\"", peer.address());
    switchover.metric(&format!("switchover_upstream_errors_total{{{labels}}}"))
}

#[test]
fn failures_have_the_right_status_and_are_counted() {
    let (blue, _config, switchover) = one_pool(|config| config.service("health_check: {interval: 60s}\nhosts: [shop.test]\n"));
    blue.on("/garbage", Act::Say(b"nonsense\r\n\r\n".to_vec()));
    assert_eq!(switchover.get("/garbage").status, 502);
    let mut stranger = switchover.client();
    stranger.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").unwrap();
    assert_eq!(stranger.read_response().unwrap().status, 404);
    blue.kill();
    assert_eq!(switchover.get("/").status, 502);
    for kind in ["protocol", "connect"] {
        assert!(upstream_errors(&switchover, &blue, kind) >= Some(1.0), "{kind}\n{}", switchover.metrics());
    }
}

#[test]
fn without_a_ready_peer_the_answer_is_503_with_retry_after() {
    let blue = Origin::start("blue");
    blue.readiness(503, "starting");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    let response = switchover.get("/");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    assert!(blue.heads().is_empty(), "a peer that never was ready is never tried");
    assert_eq!(switchover.metric("switchover_no_ready_peer_total{service=\"shop\"}"), Some(1.0));
    blue.readiness(200, "up");
    eventually("it serves", || match switchover.get("/") {
        response if response.status == 200 => Ok(()),
        response => Err(response),
    });
    // A peer that was ready before gets requests even if its probes fail, unless `fail_open` is false.
    blue.readiness(503, "database");
    switchover.await_pool("blue", "not ready", |pool| !pool.peers[0].ready);
    assert_eq!(switchover.get("/").text(), "blue");
    let config = config.service("fail_open: false");
    eventually("fail_open: false is taken", || match switchover.get("/").status {
        503 => Ok(()),
        status => Err(status),
    });
    drop(config);
}

#[test]
fn a_slow_upload_is_not_a_late_answer() {
    let (blue, _config, switchover) = one_pool(|config| config.service("timeouts: {response: 1s}"));
    blue.on("/upload", Act::Say(ok("thanks")));
    let mut client = switchover.client();
    client.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n").unwrap();
    for byte in b"in parts" {
        thread::sleep(Duration::from_millis(200)); // In all, longer than the timeout.
        client.send([*byte]).unwrap();
    }
    assert_eq!(client.read_response().unwrap().text(), "thanks");
    assert_eq!(blue.bodies(), [b"in parts"]);
}
