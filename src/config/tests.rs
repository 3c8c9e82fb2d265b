//! Unit tests of the parser: complete and minimal files, static changes, and input of arbitrary bytes.

use std::time::Duration;

use super::*;

const COMPLETE: &str = include_str!("../../conf/switchover.yaml");
const MINIMAL: &str = include_str!("../../conf/minimal.yaml");

#[test]
fn the_complete_example_says_what_the_defaults_are() {
    let (complete, minimal) = (parse(COMPLETE).unwrap(), parse(MINIMAL).unwrap());
    let mut complete_shop = complete.services["shop"].clone();
    for pool in complete_shop.pools.values_mut() {
        pool.version = None;
    }
    assert_eq!(complete_shop, minimal.services["shop"]);
    assert_eq!((complete.shutdown_timeout, complete.admin), (minimal.shutdown_timeout, minimal.admin));
}

#[test]
fn every_key_is_read() {
    let text = r#"
listeners: [{address: "[::]:8080"}, {address: 127.0.0.1:0}]
admin: {address: 127.0.0.1:9999}
threads: 3
shutdown_timeout: 0s
trusted_proxies: [10.1.2.3/8, "::1"]
services:
  api:
    hosts: [Shop.Example.com., "*.example.com", "[::1]"]
    path_prefix: /api
    active: "2026"
    pools: {"2026": {version: 1.40, peers: ["[::1]:1", {address: app_blue.local:2, weight: 1000}]}}
    health_check: {path: "/r?x=1", host: a:80, port: 7, headers: {X-A: b}, expect_status: [200, 204-206], interval: 100ms, timeout: 2s, ready_after: 1, not_ready_after: 9}
    promotion: {ready_timeout: 5s, observe: 0s, take_back: {errors: 0.5%, at_least: 3}}
    drain: {timeout: 0s}
    balance: round_robin
    timeouts: {connect: 1s, response: 2m, idle: 3s}
    retries: 0
    fail_open: false
  tcp: {active: a, pools: {a: {peers: [10.0.0.1:5]}}, health_check: {tcp: true}, promotion:, timeouts: ~}
"#;
    let config = parse(text).unwrap();
    let api = &config.services["api"];
    assert_eq!(api.hosts, ["shop.example.com", "*.example.com", "[::1]"]);
    assert_eq!(api.pools["2026"].version.as_deref(), Some("1.40"));
    assert_eq!(api.pools["2026"].peers[0].address.to_string(), "[::1]:1");
    assert_eq!(
        api.pools["2026"].peers[1],
        Peer { address: PeerAddress { host: "app_blue.local".into(), port: 2 }, weight: 1000 }
    );
    assert_eq!(config.trusted_proxies[0].to_string(), "10.0.0.0/8");
    let check = &api.health_check;
    assert_eq!((check.tcp, check.path.as_str(), check.host.as_deref()), (false, "/r?x=1", Some("a:80")));
    assert_eq!((check.headers["X-A"].0.as_str(), check.expect_status.as_slice()), ("b", [200..=200, 204..=206].as_slice()));
    assert_eq!((api.retries, api.fail_open, api.balance, api.drain.timeout), (0, false, Balance::RoundRobin, Duration::ZERO));
    let rule = &api.promotion.take_back;
    assert_eq!((api.promotion.observe, rule.errors.per_mille, rule.at_least), (Duration::ZERO, 5, 3));
    assert!(config.services["tcp"].health_check.tcp);
    assert_eq!(config.services["tcp"].timeouts, Timeouts::default());
}

#[test]
fn a_static_field_that_differs_is_named_with_both_values() {
    let running = parse(MINIMAL).unwrap();
    let mut new = running.clone();
    new.listeners[0].address.set_port(9090);
    new.threads = Some(4);
    new.listeners[0].limits.header_timeout = Duration::from_secs(5);
    new.access_log = Some(AccessLog { format: LogFormat::Json, file: Some("access.log".into()) });
    new.admin.token_file = Some("token".into());
    new.services.get_mut("shop").unwrap().retries = 7;
    let problems: Vec<String> = diff::static_changes(&running, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "listeners[0].address: is static: \"0.0.0.0:8080\" runs, the file has \"0.0.0.0:9090\"; put it back, or restart switchover",
            "listeners[0].limits.header_timeout: is static: 10s runs, the file has 5s; put it back, or restart switchover",
            "admin.token_file: is static: no value runs, the file has token; put it back, or restart switchover",
            "threads: is static: no value runs, the file has 4; put it back, or restart switchover",
            "access_log: is static: off runs, the file has {format: json, file: access.log}; put it back, or restart switchover",
        ]
    );
}

#[test]
fn no_bytes_make_the_reader_fall_over() {
    for end in 0..COMPLETE.len() {
        if let Some(text) = COMPLETE.get(..end) {
            drop(parse(text));
        }
    }
    for nasty in ["\0", "\t", ":", "{", "]", "&a ", "*a ", "\"", "é", "\u{feff}", "-", "|", "\n"] {
        for at in 0..MINIMAL.len() {
            let mut text = MINIMAL.to_owned();
            text.replace_range(at..=at, nasty);
            drop(parse(&text));
        }
    }
}
