//! Releases that fail their proof: the old pool continues to serve, no request fails, and the reason is reported.

use switchover::status::Outcome;

use crate::support::{
    ConfigFile, Edit, Load, Origin, Switchover,
    load::mixed,
    origin::{Act, ok, status},
};

const QUICK: &str = "promotion: {ready_timeout: 1s}";

fn shop(green: &Origin) -> (Origin, ConfigFile) {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).service(QUICK);
    (blue, config)
}

/// Promotes green in vain under load.
fn refused(green: &Origin, reason: &str) -> Switchover {
    let (_blue, config) = shop(green);
    let before = std::fs::read_to_string(&config.path).unwrap();
    let switchover = Switchover::start(&config);
    // A peer that hangs uses up the timeout of a probe before it is promoted with a ready_timeout of the same length.
    switchover.await_pool("green", "probed", |pool| pool.peers[0].last_probe.is_some());
    let load = Load::start(switchover.address, 4, mixed);
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.stderr.contains(reason), "{output:?}");
    load.stop().assert_no_failures();
    let shop = switchover.service();
    let swap = shop.swap.as_ref().unwrap();
    assert_eq!((shop.active.as_str(), swap.outcome), ("blue", Some(Outcome::NotReady)), "{shop:?}");
    assert!(swap.reason.as_ref().is_some_and(|said| said.contains(reason)), "{shop:?}");
    switchover.await_log("outcome=not_ready");
    switchover.await_log(reason);
    assert_eq!(switchover.metric("switchover_swaps_total{result=\"not_ready\",service=\"shop\"}"), Some(1.0));
    assert_eq!(std::fs::read_to_string(&config.path).unwrap(), before, "a refused release leaves no mark in the file");
    assert_eq!(switchover.get("/").text(), "blue");
    switchover
}

/// Waits until the swap is given up.
fn await_refusal(switchover: &Switchover) {
    switchover.await_service("the swap is given up", |shop| {
        shop.swap.as_ref().is_some_and(|swap| swap.outcome == Some(Outcome::NotReady))
    });
}

#[test]
fn a_pool_that_answers_503() {
    let green = Origin::start("green");
    green.readiness(503, "{\"status\":\"OUT_OF_SERVICE\"}");
    refused(&green, "503 {\"status\":\"OUT_OF_SERVICE\"}");
}

#[test]
fn a_pool_that_never_listens() {
    let green = Origin::start("green");
    green.kill();
    refused(&green, "connection refused");
}

#[test]
fn a_pool_that_hangs() {
    let green = Origin::start("green");
    green.on("/actuator/health/readiness", Act::Hang);
    refused(&green, "no answer within 1s");
}

#[test]
fn a_pool_whose_probes_are_switched_off_or_behind_a_login() {
    let green = Origin::start("green");
    green.readiness(404, "{\"error\":\"Not Found\"}");
    let switchover = refused(&green, "management.endpoint.health.probes.enabled=true");
    green.on(
        "/actuator/health/readiness",
        Act::Say(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n".to_vec()),
    );
    switchover.await_pool("green", "the reason is the login", |pool| {
        let probe = pool.peers[0].last_probe.as_ref();
        probe.and_then(|probe| probe.reason.as_ref()).is_some_and(|reason| reason.contains("302 to /login: security is in front"))
    });
}

#[test]
fn a_pool_that_flaps() {
    let green = Origin::start("green");
    let (_blue, config) = shop(&green);
    let config = config.service("health_check: {interval: 100ms, ready_after: 4}\npromotion: {ready_timeout: 2s}\n");
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed);
    let down = || status(503, "down");
    // Two, because the probe that the swap interrupts may take one of them.
    green.on("/actuator/health/readiness", Act::SayInTurn(vec![ok("up"), ok("up"), down(), down()]));
    config.set_active("green", Edit::Rename);
    await_refusal(&switchover);
    assert_eq!(switchover.service().active, "blue");
    load.stop().assert_no_failures();
}

#[test]
fn a_pool_of_which_one_peer_is_missing() {
    let (green, missing) = (Origin::start("green"), Origin::start("green"));
    missing.kill();
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address(), missing.address()])]).service(QUICK);
    let switchover = Switchover::start(&config);
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output.stderr.contains(&missing.address().to_string()) && !output.stderr.contains(&green.address().to_string()),
        "{output:?}"
    );
}

#[test]
fn a_refused_release_can_be_tried_again() {
    let green = Origin::start("green");
    green.readiness(503, "warming up");
    let (_blue, config) = shop(&green);
    let config = config.service("promotion: {ready_timeout: 3s}");
    let switchover = Switchover::start(&config);
    config.set_active("green", Edit::Rename);
    await_refusal(&switchover);
    green.readiness(200, "up");
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(switchover.get("/").text(), "green");
}
