//! Two Spring Boot processes on one host, as in the tutorial.

use std::time::Duration;

use switchover::status::Outcome;

use super::spring::{Jar, Spring, chat, events, patiently, upload};
use crate::support::{ConfigFile, Load, Switchover, load::mixed};

const SERVICE: &str = "    promotion: {ready_timeout: 60s}\n    health_check: {interval: 500ms}\n";

#[test]
#[ignore = "needs a JVM: make test-deploy"]
fn six_swaps_under_load_with_uploads_events_and_websockets() {
    let mut apps = [Spring::new("set1", Jar::Current), Spring::new("set2", Jar::Current)];
    let config = ConfigFile::new(&[("set1", &[apps[0].address]), ("set2", &[apps[1].address])]).service(SERVICE);
    apps[0].start("v0", &[]);
    let switchover = Switchover::start(&config);
    patiently("set1 is ready", || if switchover.get("/").status == 200 { Ok(()) } else { Err(switchover.service()) });
    let load = Load::start(switchover.address, 12, mixed);
    for swap in 1..=6 {
        let (old, new) = ((swap + 1) % 2, swap % 2);
        apps[new].start(&format!("v{swap}"), &[]);
        apps[new].await_port();
        let long = [upload, events, chat].map(|begin| begin(switchover.address));
        switchover.await_service("they have begun", |service| service.pools[old].upgraded == 1);
        let output = switchover.cli(&["promote", if new == 1 { "set2" } else { "set1" }, "--wait", "drained"]);
        assert_eq!(output.code, 0, "{output:?}");
        // The moment it is said to be safe.
        apps[old].stop(swap % 2 == 1);
        for what in long {
            assert_eq!(what.join().unwrap(), Ok(()), "swap {swap}");
        }
        let text = switchover.get("/").text();
        assert!(text.contains(&format!("v{swap}")), "{text}");
    }
    load.stop().assert_no_failures();
}

#[test]
#[ignore = "needs a JVM: make test-deploy"]
fn a_release_that_cannot_be_asked_or_is_not_ready_is_refused_and_the_reason_is_the_right_one() {
    let mut blue = Spring::new("blue", Jar::Current);
    blue.start("v1", &[]);
    for (jar, settings, reason) in [
        (Jar::Older, ("MANAGEMENT_ENDPOINT_HEALTH_PROBES_ENABLED", "false"), "management.endpoint.health.probes.enabled=true"),
        (Jar::Current, ("SHOP_READY", "false"), r#"503 {"status":"OUT_OF_SERVICE"#),
        (Jar::Secured, ("SHOP_READY", "true"), "401"),
    ] {
        let mut green = Spring::new("green", jar);
        green.start("v2", &[settings]);
        green.await_port();
        let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])])
            .service("    promotion: {ready_timeout: 2s}\n    health_check: {interval: 200ms}\n");
        let switchover = Switchover::start(&config);
        patiently("blue is ready", || if switchover.get("/").status == 200 { Ok(()) } else { Err(switchover.service()) });
        let output = switchover.cli(&["promote", "green"]);
        assert_eq!(output.code, 3, "{output:?}");
        assert!(output.stderr.contains(reason), "{reason}: {output:?}");
        assert_eq!(switchover.get("/").text(), "blue v1\n");
        green.stop(false);
    }
}

/// Tomcat closes a connection after a number of requests and after an idle timeout, and responds with 503 while it stops.
#[test]
#[ignore = "needs a JVM: make test-deploy"]
fn what_tomcat_does_with_kept_connections_is_seen_by_no_client() {
    let settings = [("SERVER_TOMCAT_MAX_KEEP_ALIVE_REQUESTS", "100"), ("SERVER_TOMCAT_KEEP_ALIVE_TIMEOUT", "2s")];
    let mut apps = [Spring::new("set1", Jar::Older), Spring::new("set2", Jar::Older)];
    apps.iter_mut().for_each(|app| app.start("v1", &settings));
    let config = ConfigFile::new(&[("set1", &[apps[0].address]), ("set2", &[apps[1].address])])
        .service("    timeouts: {idle: 1s}\n    promotion: {ready_timeout: 60s}\n    health_check: {interval: 500ms}\n");
    let switchover = Switchover::start(&config);
    apps.iter().for_each(Spring::await_port);
    patiently("set1 is ready", || if switchover.get("/").status == 200 { Ok(()) } else { Err(switchover.service()) });
    let busy = Load::start(switchover.address, 8, mixed);
    // Clients whose pauses end when Tomcat's patience does.
    let hesitant = Load::start(switchover.address, 12, |turn| {
        std::thread::sleep(Duration::from_millis(1900 + (turn as u64 * 37) % 200)); // The habit that is tested.
        if turn % 2 == 0 { ("GET", "/", b"") } else { ("POST", "/", b"order") }
    });
    let requests = |pool: &str| {
        let all = switchover.metrics();
        let of_pool = all.lines().filter(|line| line.contains("_requests_total") && line.contains(&format!("pool=\"{pool}\"")));
        of_pool.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
    };
    patiently("Tomcat has closed many a connection", || if requests("set1") > 3000.0 { Ok(()) } else { Err(requests("set1")) });
    let output = switchover.cli(&["promote", "set2", "--wait", "drained"]);
    assert_eq!(output.code, 0, "{output:?}");
    apps[0].stop(true);
    patiently("the other one too", || if requests("set2") > 3000.0 { Ok(()) } else { Err(requests("set2")) });
    busy.stop().assert_no_failures();
    hesitant.stop().assert_no_failures();
}

/// One of two peers is stopped without a word to switchover: Tomcat refuses new connections, and answers 503 on the kept ones.
#[test]
#[ignore = "needs a JVM: make test-deploy"]
fn a_peer_that_is_stopped_while_it_serves_is_passed_over() {
    let mut apps = [Spring::new("set1", Jar::Current), Spring::new("set2", Jar::Current)];
    apps.iter_mut().for_each(|app| app.start("v1", &[]));
    let both = [apps[0].address, apps[1].address];
    let config = ConfigFile::new(&[("both", &both)]).service("    health_check: {interval: 500ms}\n");
    let switchover = Switchover::start(&config);
    apps.iter().for_each(Spring::await_port);
    patiently("both are ready", || {
        let pool = switchover.pool_status("both");
        if pool.peers.iter().all(|peer| peer.ready) { Ok(()) } else { Err(pool) }
    });
    // Some that take longer than the stop takes to begin.
    let load = Load::start(switchover.address, 12, |turn| ("GET", if turn % 3 == 0 { "/slow?ms=300" } else { "/" }, b""));
    for _ in 0..3 {
        let done = load.done();
        patiently("they are busy", || if load.done() > done + 2000 { Ok(()) } else { Err(load.done()) });
        apps[1].stop(true);
        apps[1].start("v1", &[]);
        patiently("it is back", || {
            let pool = switchover.pool_status("both");
            if pool.peers[1].ready { Ok(()) } else { Err(pool) }
        });
    }
    load.stop().assert_no_failures();
}

/// With the defaults: observed for 10 seconds, and taken back at 20 failures that are a tenth of the requests.
#[test]
#[ignore = "needs a JVM: make test-deploy"]
fn a_release_that_dies_or_fails_half_of_its_requests_is_taken_back() {
    let mut blue = Spring::new("blue", Jar::Current);
    let mut green = [Spring::new("green", Jar::Current), Spring::new("green", Jar::Current)];
    let peers = [green[0].address, green[1].address];
    let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &peers)])
        .service(&SERVICE.replace("promotion: {", "promotion: {observe: 10s, "));
    blue.start("v1", &[]);
    let switchover = Switchover::start(&config);
    patiently("blue is ready", || if switchover.get("/").status == 200 { Ok(()) } else { Err(switchover.service()) });
    for (failing, allowed) in [("false", 50), ("true", 100)] {
        green[0].start("v2", &[("SHOP_FAILING", failing)]);
        green[1].start("v2", &[]);
        green.iter().for_each(Spring::await_port);
        let load = Load::start(switchover.address, 12, mixed);
        let output = switchover.cli(&["promote", "green", "--wait", "promoted"]);
        assert_eq!(output.code, 0, "{output:?}");
        if failing == "false" {
            std::thread::sleep(Duration::from_millis(1500)); // It is fine for this long.
            green.iter_mut().for_each(|app| app.stop(false));
        }
        let shop = patiently("green is taken back", || {
            let shop = switchover.service();
            if shop.swap.as_ref().is_some_and(|swap| swap.outcome == Some(Outcome::TakenBack)) { Ok(shop) } else { Err(shop) }
        });
        let sent = load.done();
        patiently("blue serves the load", || if load.done() > sent + 1000 { Ok(()) } else { Err(load.done()) });
        let tally = load.stop();
        let reason = shop.swap.unwrap().reason;
        println!("{} of {} requests failed: {reason:?}", tally.failures.len(), tally.requests);
        assert!(tally.failures.len() < allowed, "{} failed: {reason:?}", tally.failures.len());
        assert_eq!((shop.active.as_str(), switchover.get("/").text().as_str()), ("blue", "blue v1\n"), "{reason:?}");
        if failing == "true" {
            assert!(reason.is_some_and(|reason| reason.contains("(500: ")));
            green.iter_mut().for_each(|app| app.stop(false));
        }
    }
}
