//! `wait` of the commands, and the conditions of "safe to stop".

use std::{thread, time::Instant};

use switchover::status::{Phase, PoolState};

use crate::support::{Client, ConfigFile, Edit, Origin, Switchover, eventually, origin::Act};

const QUICK: &str = "    hosts: [shop.test]\n    health_check: {interval: 100ms}\n    drain: {timeout: 300ms}\n";

/// A second service, with the pools `one`, which is active, and `two`.
fn api(one: &Origin, two: &Origin) -> String {
    format!(
        "  api:\n    hosts: [api.test]\n    active: one\n    health_check: {{interval: 100ms}}\n    promotion: {{observe: 0s}}\n    drain: {{timeout: 300ms}}\n    \
         pools: {{one: {{peers: [\"{}\"]}}, two: {{peers: [\"{}\"]}}}}\n",
        one.address(),
        two.address()
    )
}

fn shop() -> (Origin, Origin, ConfigFile) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).service(QUICK);
    (blue, green, config)
}

fn websocket(switchover: &Switchover, host: &str) -> Client {
    let mut client = switchover.client();
    let head = format!("GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
    client.send(head + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 101);
    client
}

fn phase(switchover: &Switchover, service: &str) -> Phase {
    switchover.service_named(service).swap.unwrap().phase
}

fn promote(switchover: &Switchover, service: &str, pool: &str, wait: &str) -> (u16, serde_json::Value) {
    switchover.admin_post(&format!("/v1/services/{service}/promote?wait={wait}"), &format!("{{\"pool\": \"{pool}\"}}"))
}

#[test]
fn a_promotion_waits_for_its_own_service_alone() {
    let (_blue, _green, config) = shop();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    two.readiness(503, "never");
    config.write_in_place(&(config.text() + &api(&one, &two)));
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    assert_eq!(promote(&switchover, "api", "two", "none").0, 200);
    let (status, applied) = promote(&switchover, "shop", "green", "drained");
    assert_eq!((status, applied["swaps"].as_array().unwrap().len()), (200, 1), "{applied}");
    assert_eq!((&applied["swaps"][0]["service"], &applied["swaps"][0]["outcome"]), (&"shop".into(), &"drained".into()));
    assert_eq!(phase(&switchover, "api"), Phase::Proving, "the promotion of shop does not change api");
}

#[test]
fn a_reload_waits_for_what_the_last_change_was_about() {
    let (_blue, _green, config) = shop();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    two.readiness(503, "never");
    let text = config.text() + &api(&one, &two);
    config.write_in_place(&text);
    let switchover = Switchover::start(&config);
    assert_eq!(promote(&switchover, "api", "two", "none").0, 200);
    // The reload applies the edit itself; for `drained`, the watcher may have applied it before.
    for wait in ["promoted", "drained"] {
        config.set_active("green", Edit::Rename);
        let (status, applied) = switchover.admin_post(&format!("/v1/reload?wait={wait}"), "{}");
        assert_eq!(status, 200, "{applied}");
        switchover.await_active("green");
    }
    assert_eq!(phase(&switchover, "api"), Phase::Proving);
}

#[test]
fn drained_means_safe_to_stop_however_often_it_is_asked() {
    let (blue, _green, config) = shop();
    blue.on("/ws", Act::Echo);
    let switchover = Switchover::start(&config);
    let socket = websocket(&switchover, "shop.test");
    for _ in 0..3 {
        let began = Instant::now();
        let (status, error) = promote(&switchover, "shop", "green", "drained");
        assert_eq!((status, &error["code"]), (504, &"drain-timed-out".into()), "{error}");
        assert_eq!(error["message"], "green serves, but blue is not safe to stop: 1 request still runs");
        assert!(began.elapsed().as_millis() >= 300, "each request waits for the drain timeout: {:?}", began.elapsed());
        assert_eq!(switchover.cli(&["promote", "green"]).code, 3);
        let (status, error) = switchover.admin_post("/v1/reload?wait=drained", "{}");
        assert_eq!((status, &error["code"]), (504, &"drain-timed-out".into()), "{error}");
    }
    drop(socket);
    assert_eq!(promote(&switchover, "shop", "green", "drained").0, 200);
    assert_eq!(switchover.admin_post("/v1/reload?wait=drained", "{}").0, 200);
    assert!(switchover.pool_status("blue").safe_to_stop);
}

#[test]
fn a_pool_that_another_swap_left_behind_is_waited_for_as_well() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let red = Origin::start("red");
    blue.on("/ws", Act::Echo);
    let pools: [(&str, &[_]); 3] = [("blue", &[blue.address()]), ("green", &[green.address()]), ("red", &[red.address()])];
    let config = ConfigFile::new(&pools).service(QUICK);
    let switchover = Switchover::start(&config);
    let socket = websocket(&switchover, "shop.test");
    assert_eq!(promote(&switchover, "shop", "green", "drained").0, 504);
    let (status, error) = promote(&switchover, "shop", "red", "drained");
    assert_eq!((status, &error["message"]), (504, &"red serves, but blue is not safe to stop: 1 request still runs".into()));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.admin_get("/v1/services/shop/pools/blue/safe-to-stop?wait=20s"));
        drop(socket);
        assert_eq!(waiter.join().unwrap().0, 200);
    });
    assert_eq!(promote(&switchover, "shop", "red", "drained").0, 200);
}

#[test]
fn a_pool_that_is_being_proven_is_not_safe_to_stop() {
    let (_blue, green, config) = shop();
    let switchover = Switchover::start(&config);
    switchover.await_safe_to_stop("green");
    green.readiness(503, "starting");
    assert_eq!(promote(&switchover, "shop", "green", "none").0, 200);
    let pool = switchover.pool_status("green");
    assert_eq!((pool.state, pool.safe_to_stop), (PoolState::Proving, false), "{pool:?}");
    assert_eq!(pool.not_safe_because.as_deref(), Some("green is being proven"));
    let (status, error) = switchover.admin_get("/v1/services/shop/pools/green/safe-to-stop");
    assert!(status == 504 && error.contains("green is not safe to stop: green is being proven"), "{status} {error}");
    assert_eq!(switchover.pool_status("blue").not_safe_because.as_deref(), Some("blue serves"));
    assert!(switchover.cli(&["status"]).stdout.contains("proving"));
}

#[test]
fn a_pool_whose_process_another_service_uses_is_not_safe_to_stop() {
    let (blue, _green, config) = shop();
    let other = Origin::start("other");
    blue.on("/ws", Act::Echo);
    config.write_in_place(&(config.text() + &api(&blue, &other)));
    let switchover = Switchover::start(&config);
    let (status, error) = promote(&switchover, "shop", "green", "drained");
    let reason = format!("{} also serves api", blue.address());
    assert_eq!((status, &error["code"]), (504, &"drain-timed-out".into()), "{error}");
    assert_eq!(error["message"], format!("green serves, but blue is not safe to stop: {reason}"));
    let not_safe_because = || switchover.pool_status("blue").not_safe_because;
    assert_eq!(not_safe_because(), Some(reason));
    // The other service is promoted away from that process too, but a request of it still runs there.
    let socket = websocket(&switchover, "api.test");
    assert_eq!(promote(&switchover, "api", "two", "drained").0, 504);
    assert_eq!(not_safe_because(), Some(format!("{} still has requests of api", blue.address())));
    drop(socket);
    assert_eq!(promote(&switchover, "api", "two", "drained").0, 200);
    assert_eq!(promote(&switchover, "shop", "green", "drained").0, 200);
    assert!(switchover.pool_status("blue").safe_to_stop);
}

#[test]
fn drained_waits_for_the_pools_of_a_removed_service() {
    let (_blue, _green, config) = shop();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    one.on("/ws", Act::Echo);
    let without = config.text();
    config.write_in_place(&(without.clone() + &api(&one, &two)));
    let switchover = Switchover::start(&config);
    let socket = websocket(&switchover, "api.test");
    config.replace_by_rename(&without);
    // The first reload or the watcher applies the removal; for the second one it is already applied.
    for _ in 0..2 {
        let (status, error) = switchover.admin_post("/v1/reload?wait=drained", "{}");
        assert_eq!((status, &error["code"]), (504, &"drain-timed-out".into()), "{error}");
        let reason = "api: it was removed from the file, but one is not safe to stop: 1 request still runs";
        assert_eq!(error["message"], reason);
    }
    assert_eq!(switchover.admin_post("/v1/reload?wait=promoted", "{}").0, 200);
    drop(socket);
    eventually("api is gone", || match switchover.read_status().services.iter().find(|service| service.name == "api") {
        None => Ok(()),
        Some(api) => Err(api.clone()),
    });
    assert_eq!(switchover.admin_post("/v1/reload?wait=drained", "{}").0, 200);
}

#[test]
fn a_removed_service_has_no_drift() {
    let (_blue, _green, config) = shop();
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    one.on("/ws", Act::Echo);
    two.readiness(503, "never");
    let without = config.text();
    let with = without.clone() + &api(&one, &two);
    config.write_in_place(&with);
    let switchover = Switchover::start(&config);
    let _socket = websocket(&switchover, "api.test");
    config.replace_by_rename(&with.replace("active: one", "active: two"));
    assert_eq!(switchover.admin_post("/v1/reload", "{}").0, 200);
    assert_eq!(switchover.cli(&["cancel", "api"]).code, 0);
    assert_eq!(switchover.cli(&["reload", "--wait", "promoted"]).code, 3);
    config.replace_by_rename(&without);
    let output = switchover.cli(&["reload", "--wait", "promoted"]);
    assert_eq!(output.code, 0, "{output:?}");
}

#[test]
fn a_process_that_another_pool_takes_over_is_not_safe_to_stop() {
    let (blue, _green, config) = shop();
    blue.on("/ws", Act::Echo);
    let config = config.service(&QUICK.replace("300ms", "20s"));
    let switchover = Switchover::start(&config);
    let socket = websocket(&switchover, "shop.test");
    assert_eq!(promote(&switchover, "shop", "green", "promoted").0, 200);
    let text = std::fs::read_to_string(&config.path).unwrap();
    let renamed = text.replace("active: green", "active: purple").replace("blue:", "purple:");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.admin_get("/v1/services/shop/pools/blue/safe-to-stop?wait=5s"));
        config.replace_by_rename(&renamed);
        switchover.await_active("purple");
        drop(socket);
        let (status, error) = waiter.join().unwrap();
        let reason = format!("blue is not safe to stop: {} also serves purple", blue.address());
        assert!(status == 504 && error.contains(&reason), "{status} {error}");
    });
}

#[test]
fn drained_does_not_ignore_a_process_that_another_service_takes_over() {
    let (blue, _green, config) = shop();
    let other = Origin::start("other");
    blue.on("/ws", Act::Echo);
    let config = config.service(&QUICK.replace("300ms", "5s"));
    let switchover = Switchover::start(&config);
    let socket = websocket(&switchover, "shop.test");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| promote(&switchover, "shop", "green", "drained"));
        switchover.await_draining("blue");
        let text = std::fs::read_to_string(&config.path).unwrap();
        let line = text.lines().position(|line| line.trim() == "blue:").unwrap();
        let lines = text.lines().enumerate().filter(|(at, _)| *at != line && *at != line + 1).map(|(_, line)| line);
        let without = lines.collect::<Vec<_>>().join("\n") + "\n";
        config.replace_by_rename(&(without + &api(&blue, &other)));
        eventually("api serves", || match switchover.read_status().services.as_slice() {
            [api, _shop] => Ok(api.name.clone()),
            _ => Err(()),
        });
        drop(socket);
        let (status, error) = waiter.join().unwrap();
        assert_eq!(status, 504, "{error}");
        assert_eq!(error["message"], format!("green serves, but blue is not safe to stop: {} also serves api", blue.address()));
    });
}

#[test]
fn a_promotion_of_the_active_pool_waits_until_it_serves() {
    let (blue, _green, config) = shop();
    let config = config.service(&QUICK.replace("drain:", "promotion: {ready_timeout: 300ms}\n    drain:"));
    blue.readiness(503, "starting");
    let switchover = Switchover::start(&config);
    switchover.await_log("not ready in time, requests get 503 until it is service=shop");
    // It has not been ready since the start, then it was ready and is not any more.
    for reason in ["starting", "broken"] {
        blue.readiness(503, reason);
        switchover.await_pool("blue", "not ready", |pool| !pool.peers[0].ready);
        let output = switchover.cli(&["promote", "blue"]);
        assert_eq!(output.code, 3, "{output:?}");
        let expected = format!("promotion of blue failed: {}: 503 {reason}", blue.address());
        assert!(output.stderr.contains(&expected), "{expected}: {output:?}");
        let output = switchover.cli(&["promote", "blue", "--version", "2.0.0"]);
        assert_eq!((output.code, switchover.pool_status("blue").version), (3, None), "{output:?}");
        assert_eq!(promote(&switchover, "shop", "blue", "none").1["swaps"][0]["phase"], "proving");
        let (status, error) = promote(&switchover, "shop", "blue", "drained");
        assert_eq!((status, &error["code"]), (504, &"not-ready".into()), "{error}");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| switchover.cli(&["promote", "blue", "--timeout", "60s"]));
            switchover.await_proving();
            blue.readiness(200, "up");
            let output = waiter.join().unwrap();
            assert_eq!(output.code, 0, "{output:?}");
            assert!(output.stdout.contains("shop: blue is ready and serves"), "{output:?}");
        });
        let output = switchover.cli(&["promote", "blue"]);
        assert_eq!((output.code, output.stdout.trim()), (0, "shop: nothing to do, this pool already serves"));
    }
}

#[test]
fn an_edit_is_applied_after_a_promotion_of_the_active_pool_has_failed() {
    let (blue, _green, config) = shop();
    let switchover = Switchover::start(&config);
    blue.readiness(503, "broken");
    switchover.await_pool("blue", "not ready", |pool| !pool.peers[0].ready);
    let promotion = "{\"pool\": \"blue\", \"timeout\": \"100ms\"}";
    assert_eq!(switchover.admin_post("/v1/services/shop/promote?wait=promoted", promotion).0, 504);
    config.replace_by_rename(&config.text().replace("    pools:", "    retries: 7\n    pools:"));
    assert_eq!(switchover.admin_post("/v1/reload?wait=drained", "{}").0, 200);
    let (_, running) = switchover.admin_get("/v1/config");
    assert!(running.contains("retries: 7"), "{running}");
    assert_eq!(switchover.drift(), None);
}
