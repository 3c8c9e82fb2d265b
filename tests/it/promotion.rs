//! Promotions with a version or a timeout, their cancellation, and their status while they are proven.

use std::{fs, thread};

use switchover::status::Outcome;

use crate::support::{ConfigFile, Edit, Origin, Switchover, eventually};

fn shop() -> (Origin, Origin, ConfigFile, Switchover) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    (blue, green, config, switchover)
}

fn promote(switchover: &Switchover, body: &str, wait: &str) -> (u16, serde_json::Value) {
    switchover.admin_post(&format!("/v1/services/shop/promote?wait={wait}"), body)
}

#[test]
fn the_version_is_written_with_the_promotion_and_only_then() {
    let (_blue, green, config, switchover) = shop();
    let before = fs::read_to_string(&config.path).unwrap();
    green.readiness(503, "starting");
    let (status, error) = promote(&switchover, r#"{"pool": "green", "version": "2.0.0", "timeout": "300ms"}"#, "drained");
    assert_eq!((status, &error["code"]), (504, &"not-ready".into()), "{error}");
    assert_eq!(fs::read_to_string(&config.path).unwrap(), before, "a refused release leaves the file alone");
    assert_eq!(switchover.drift(), None);
    green.readiness(200, "up");
    for version in ["2.0.0", "2.0.1"] {
        let (status, applied) = promote(&switchover, &format!("{{\"pool\": \"green\", \"version\": \"{version}\"}}"), "drained");
        assert_eq!((status, &applied["result"]), (200, &"applied".into()), "{applied}");
        let after = before.replace("active: blue", "active: green");
        let after = after.replace("      green:\n", &format!("      green:\n        version: \"{version}\"\n"));
        assert_eq!(fs::read_to_string(&config.path).unwrap(), after);
        assert_eq!(switchover.pool_status("green").version.as_deref(), Some(version));
        let series = format!("switchover_active_pool{{pool=\"green\",service=\"shop\",version=\"{version}\"}}");
        assert_eq!(switchover.metric(&series), Some(1.0));
    }
    let (status, applied) = promote(&switchover, r#"{"pool": "green", "version": "2.0.1"}"#, "drained");
    assert_eq!((status, &applied["result"]), (200, &"unchanged".into()));
    for body in [
        r#"{"pool": "green", "version": "two\nlines"}"#,
        r#"{"pool": "green", "version": ""}"#,
        r#"{"pool": "green", "timeout": "soon"}"#,
        r#"{"pool": "green", "timeout": "0s"}"#,
    ] {
        let (status, error) = promote(&switchover, body, "none");
        assert_eq!((status, &error["code"]), (400, &"bad-request".into()), "{body}: {error}");
    }
}

#[test]
fn how_long_it_will_try_is_shown_and_can_be_asked_for() {
    let (_blue, green, _config, switchover) = shop();
    green.readiness(503, "{\"status\":\"OUT_OF_SERVICE\"}");
    assert_eq!(promote(&switchover, r#"{"pool": "green", "timeout": "600s"}"#, "none").0, 200);
    let swap = || switchover.service().swap.unwrap();
    assert_eq!(swap().timeout_seconds, 600.0);
    let left = swap().deadline_seconds;
    assert!(left > 0.0 && left <= 600.0, "{left}");
    // A promotion of the same pool joins the swap, with its own time.
    let (status, error) = promote(&switchover, r#"{"pool": "green", "timeout": "300ms"}"#, "promoted");
    let address = green.address();
    assert_eq!((status, &error["code"]), (504, &"not-ready".into()));
    assert_eq!(error["message"], format!("promotion of green failed: {address}: 503 {{\"status\":\"OUT_OF_SERVICE\"}}"));
    assert_eq!(swap().deadline_seconds, 0.0);
}

#[test]
fn a_dead_port_differs_from_a_slow_start() {
    let (_blue, green, _config, switchover) = shop();
    green.kill();
    assert_eq!(promote(&switchover, r#"{"pool": "green"}"#, "none").0, 200);
    let address = green.address();
    let reason = || switchover.service().swap.unwrap().reason.unwrap_or_default();
    eventually("the reason counts the seconds", || {
        let reason = reason();
        let seconds = reason
            .strip_prefix(&format!("{address}: connection refused for "))
            .and_then(|rest| rest.strip_suffix(" s: nothing listens there; is it started?")?.parse::<u64>().ok());
        if seconds >= Some(2) { Ok(()) } else { Err(reason) }
    });
}

#[test]
fn a_swap_that_is_being_proven_can_be_cancelled() {
    let (_blue, green, config, switchover) = shop();
    let nothing = switchover.admin_post("/v1/services/shop/cancel", "{}");
    assert_eq!((nothing.0, &nothing.1["code"]), (409, &"nothing-to-cancel".into()), "{nothing:?}");
    assert_eq!(nothing.1["message"], "nothing to cancel: blue serves, and no other pool of shop is being proven");
    let (status, error) = switchover.admin_post("/v1/services/shp/cancel", "{}");
    assert_eq!(status, 404);
    assert!(error["message"].as_str().unwrap().ends_with("(did you mean \"shop\"?)"), "{error}");
    green.readiness(503, "starting");
    let before = fs::read_to_string(&config.path).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| promote(&switchover, r#"{"pool": "green"}"#, "drained"));
        switchover.await_proving();
        let (status, cancelled) = switchover.admin_post("/v1/services/shop/cancel", "{}");
        assert_eq!((status, cancelled), (200, serde_json::json!({"service": "shop", "cancelled": "green", "serves": "blue"})));
        let (status, error) = waiter.join().unwrap();
        assert_eq!((status, &error["code"]), (409, &"cancelled".into()), "{error}");
        assert_eq!(error["message"], "promotion of green was cancelled on request");
    });
    assert_eq!(switchover.service().swap.unwrap().outcome, Some(Outcome::Cancelled));
    assert_eq!(switchover.metric("switchover_swaps_total{result=\"cancelled\",service=\"shop\"}"), Some(1.0));
    assert_eq!(fs::read_to_string(&config.path).unwrap(), before);
    // One that the file asked for leaves the file as it is, and that is a drift.
    config.set_active("green", Edit::Rename);
    switchover.await_proving();
    assert_eq!(switchover.admin_post("/v1/services/shop/cancel", "").0, 200);
    let drift = switchover.drift().unwrap();
    assert_eq!((drift.file.as_str(), drift.reason.as_str()), ("green", "cancelled on request"), "{drift:?}");
    green.readiness(200, "up");
    switchover.await_ready("green");
    assert_eq!(switchover.get("/").text(), "blue");
}

#[test]
fn a_misspelt_pool_or_service_has_a_hint() {
    let (_blue, _green, _config, switchover) = shop();
    let (status, error) = promote(&switchover, r#"{"pool": "gren"}"#, "none");
    assert_eq!((status, &error["code"]), (404, &"unknown-pool".into()));
    assert_eq!(error["message"], "no pool \"gren\"; pools are blue, green (did you mean \"green\"?)");
    let (_, error) = switchover.admin_get("/v1/services/shopp/pools/blue/safe-to-stop");
    assert!(error.contains("did you mean \\\"shop\\\"?"), "{error}");
}
