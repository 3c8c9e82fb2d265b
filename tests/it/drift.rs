//! Drift: the file names another pool than the one that serves. It is reported, retried only by a command, and survives a
//! restart.

use std::fs;

use switchover::status::{Outcome, Phase};

use crate::support::{ConfigFile, Edit, Load, Origin, Switchover, eventually, load::mixed};

const QUICK: &str = "    health_check: {interval: 100ms}\n    promotion: {ready_timeout: 500ms}\n";

fn shop(service: &str) -> (Origin, Origin, ConfigFile) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).service(service);
    (blue, green, config)
}

/// Edits the file to green, which fails its proof.
fn refused() -> (Origin, Origin, ConfigFile, Switchover) {
    let (blue, green, config) = shop(QUICK);
    green.readiness(503, "{\"status\":\"OUT_OF_SERVICE\"}");
    let switchover = Switchover::start(&config);
    assert_eq!(drift_metric(&switchover), Some(0.0), "present from the start");
    config.set_active("green", Edit::Rename);
    switchover.await_outcome(Outcome::NotReady);
    (blue, green, config, switchover)
}

fn drift_metric(switchover: &Switchover) -> Option<f64> {
    switchover.metric("switchover_config_drift{service=\"shop\"}")
}

#[test]
fn a_refused_edit_is_shown_and_the_serving_pool_can_be_written_back() {
    let (_blue, green, config, switchover) = refused();
    let drift = switchover.drift().unwrap();
    assert_eq!((drift.file.as_str(), drift.serves.as_str()), ("green", "blue"), "{drift:?}");
    assert!(drift.reason.contains("503 {\"status\":\"OUT_OF_SERVICE\"}"), "{drift:?}");
    assert!(humantime::parse_rfc3339(&drift.since).is_ok(), "{drift:?}");
    switchover.await_log("the running service differs from the file service=shop file=green serves=blue");
    assert_eq!(drift_metric(&switchover), Some(1.0));
    // A reload succeeds only if the file serves now.
    let (status, error) = switchover.admin_post("/v1/reload?wait=drained", "{}");
    assert_eq!((status, &error["code"]), (409, &"drift".into()), "{error}");
    let reason = format!("shop: the file names green, which failed at {}: {}; blue serves", drift.since, drift.reason);
    assert_eq!(error["message"], reason);
    let output = switchover.cli(&["reload", "--wait", "promoted"]);
    assert!(output.code == 3 && output.stderr.contains(&reason), "{output:?}");
    // Without a wait it only reads the file.
    let output = switchover.cli(&["reload", "--wait", "none"]);
    assert!(output.code == 0 && output.stdout.contains(&reason), "{output:?}");
    green.readiness(200, "up");
    let output = switchover.cli(&["promote", "blue"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(fs::read_to_string(&config.path).unwrap().contains("active: blue"));
    assert_eq!((switchover.drift(), drift_metric(&switchover)), (None, Some(0.0)));
    assert_eq!(switchover.get("/").text(), "blue");
}

#[test]
fn an_unrelated_edit_does_not_begin_a_refused_release_again() {
    let (_blue, green, config, switchover) = refused();
    green.readiness(200, "up");
    switchover.await_ready("green");
    let load = Load::start(switchover.address, 2, mixed);
    let text = fs::read_to_string(&config.path).unwrap();
    for (name, text) in [
        ("a comment", format!("# night\n{text}")),
        ("another section", format!("trusted_proxies: [10.0.0.0/8]\n{text}")),
        ("another setting of the service", text.replace("    pools:", "    retries: 7\n    pools:")),
    ] {
        config.replace_by_rename(&text);
        let (status, error) = switchover.admin_post("/v1/reload?wait=drained", "{}");
        assert_eq!((status, &error["code"]), (409, &"drift".into()), "{name}: {error}");
        assert_eq!((switchover.service().active.as_str(), switchover.get("/").text().as_str()), ("blue", "blue"), "{name}");
    }
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(switchover.get("/").text(), "green");
    assert_eq!(switchover.drift(), None);
    load.stop().assert_no_failures();
}

#[test]
fn an_edit_of_what_was_refused_tries_it_again() {
    let (_blue, green, config, switchover) = refused();
    green.readiness(200, "up");
    let text = fs::read_to_string(&config.path).unwrap();
    config.replace_by_rename(&text.replace("ready_timeout: 500ms", "ready_timeout: 600ms"));
    switchover.await_active("green");
}

#[test]
fn a_file_that_is_edited_back_has_no_drift() {
    let (_blue, _green, config, switchover) = refused();
    config.set_active("blue", Edit::InPlace);
    switchover.await_service("no drift", |shop| shop.drift.is_none());
    config.set_active("green", Edit::InPlace);
    switchover.await_service("green has failed again", |shop| shop.drift.as_ref().is_some_and(|drift| drift.file == "green"));
}

/// Restarts switchover with green in the file and blue in its state.
fn restarted(green_ready: bool, service: &str) -> (Origin, Origin, ConfigFile, Switchover) {
    let (blue, green, config) = shop(service);
    let config = config.top("state_dir: state\n");
    fs::create_dir(config.folder().join("state")).unwrap();
    let switchover = Switchover::start(&config);
    eventually("what serves is remembered", || match fs::read_to_string(config.folder().join("state/served-last")) {
        Ok(text) if text == "shop blue\n" => Ok(()),
        other => Err(other.ok()),
    });
    assert_eq!(switchover.read_status().config.state_dir.unwrap().problem, None);
    drop(switchover);
    if !green_ready {
        green.readiness(503, "starting");
    }
    config.set_active("green", Edit::InPlace);
    let switchover = Switchover::start(&config);
    (blue, green, config, switchover)
}

#[test]
fn a_restart_serves_the_pool_that_served_last_if_the_files_is_not_ready() {
    let (_blue, green, config, switchover) = restarted(false, "    health_check: {interval: 100ms}\n");
    switchover.await_active("blue");
    assert_eq!(switchover.get("/").text(), "blue");
    assert_eq!(switchover.admin_get("/readyz").0, 200);
    assert_eq!(switchover.cli(&["health"]).code, 0);
    let shop = switchover.service();
    let drift = shop.drift.as_ref().unwrap();
    assert_eq!((drift.file.as_str(), drift.serves.as_str()), ("green", "blue"), "{shop:?}");
    assert!(drift.reason.contains("503 starting") && drift.reason.contains("blue served last"), "{shop:?}");
    assert_eq!(shop.swap.as_ref().unwrap().phase, Phase::Proving, "green has the rest of its ready_timeout: {shop:?}");
    // A reload changes none of this.
    assert_eq!(switchover.admin_post("/v1/reload", "{}").1["result"], "unchanged");
    let load = Load::start(switchover.address, 2, mixed);
    green.readiness(200, "up");
    switchover.await_active("green");
    switchover.await_safe_to_stop("blue");
    load.stop().assert_no_failures();
    assert_eq!(switchover.drift(), None);
    eventually("green is remembered", || {
        let text = fs::read_to_string(config.folder().join("state/served-last")).unwrap();
        if text == "shop green\n" { Ok(()) } else { Err(text) }
    });
}

#[test]
fn the_files_pool_is_refused_after_a_restart_when_its_time_is_over() {
    let (_blue, green, _config, switchover) = restarted(false, QUICK);
    switchover.await_outcome(Outcome::NotReady);
    assert_eq!((switchover.get("/").text().as_str(), switchover.drift().unwrap().file.as_str()), ("blue", "green"));
    green.readiness(200, "up");
    switchover.await_ready("green");
    assert_eq!(switchover.admin_post("/v1/reload?wait=drained", "{}").0, 409);
    assert_eq!(switchover.get("/").text(), "blue", "only a promotion tries it again");
    assert_eq!(switchover.cli(&["promote", "green"]).code, 0);
    assert_eq!(switchover.get("/").text(), "green");
}

#[test]
fn the_pool_that_served_last_is_shown_until_a_pool_serves() {
    let (blue, green, config, switchover) = restarted(true, "    health_check: {interval: 100ms}\n");
    switchover.await_active("green");
    assert_eq!(switchover.service().served_last, None);
    eventually("green is remembered", || {
        let text = fs::read_to_string(config.folder().join("state/served-last")).unwrap();
        if text == "shop green\n" { Ok(()) } else { Err(text) }
    });
    drop(switchover);
    config.set_active("blue", Edit::InPlace);
    green.readiness(503, "starting");
    blue.readiness(503, "starting");
    let switchover = Switchover::start(&config);
    assert_eq!(switchover.service().served_last.as_deref(), Some("green"));
    let output = switchover.cli(&["status"]);
    assert!(output.stdout.contains("shop  active blue, green served last"), "{output:?}");
    green.readiness(200, "up");
    switchover.await_active("green");
    assert_eq!(switchover.service().served_last, None);
}

#[test]
fn after_a_restart_the_files_pool_serves_if_it_is_ready() {
    let (_blue, _green, _config, switchover) = restarted(true, "    health_check: {interval: 100ms}\n");
    switchover.await_active("green");
    assert_eq!(switchover.get("/").text(), "green");
    assert!(!switchover.log().contains("pool=blue generation="), "{}", switchover.log());
    assert_eq!(switchover.drift(), None);
}

#[test]
fn a_state_folder_that_cannot_be_written_is_said_and_changes_nothing_else() {
    let (_blue, _green, config) = shop(QUICK);
    let config = config.top("state_dir: nowhere\n");
    let switchover = Switchover::start(&config);
    let problem = switchover.read_status().config.state_dir.unwrap().problem.unwrap();
    assert!(problem.contains("No such file"), "{problem}");
    switchover.await_log("cannot record the active pools");
    assert_eq!(switchover.log().matches("cannot record the active pools").count(), 1);
    assert_eq!(switchover.cli(&["promote", "green"]).code, 0);
}

#[test]
fn a_start_is_not_ready_before_a_pool_serves_and_says_why() {
    let (blue, _green, config) = shop("    health_check: {interval: 100ms}\n");
    blue.readiness(503, "starting");
    let switchover = Switchover::start(&config);
    let (status, reason) = switchover.admin_get("/readyz");
    assert_eq!((status, reason), (503, format!("shop has no pool to serve: {}: 503 starting\n", blue.address())));
    assert_eq!(switchover.get("/").status, 503);
    let health = switchover.cli(&["health"]);
    assert!(health.code == 1 && health.stderr.contains("shop has no pool to serve"), "{health:?}");
    blue.readiness(200, "up");
    eventually("ready", || match switchover.admin_get("/readyz") {
        (200, _) => Ok(()),
        other => Err(other),
    });
    assert_eq!(switchover.get("/").text(), "blue");
    // Once ready, the process stays ready, whatever happens to the applications.
    blue.readiness(503, "down");
    switchover.await_pool("blue", "not ready", |pool| !pool.peers[0].ready);
    assert_eq!(switchover.admin_get("/readyz").0, 200);
}

#[test]
fn one_service_holds_a_start_back_for_its_ready_timeout_at_most() {
    let (_blue, _green, config) = shop("    hosts: [shop.test]\n    health_check: {interval: 100ms}\n");
    let dead = Origin::start("dead");
    dead.kill();
    let api = format!(
        "  api:\n    active: one\n    promotion: {{ready_timeout: 1s}}\n    pools: {{one: {{peers: [\"{}\"]}}}}\n",
        dead.address()
    );
    config.write_in_place(&(config.text() + &api));
    let switchover = Switchover::start(&config);
    eventually("ready", || match switchover.admin_get("/readyz") {
        (200, _) => Ok(()),
        other => Err(other),
    });
    switchover.await_log("not ready in time, requests get 503 until it is service=api");
}
