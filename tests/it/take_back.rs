//! The observation of a new pool after its promotion, and its end: the old pool is safe to stop, or serves again.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    thread,
};

use nix::sys::signal::Signal;
use switchover::status::{Outcome, Phase, PoolState, ServiceStatus};

use crate::support::{
    App, ConfigFile, Edit, Load, Origin, Switchover, eventually, install,
    load::{Tally, mixed},
    origin::{Act, ok, status},
    switchover::{Output, command},
    two_pools,
};

/// Longer than any test: an observation ends because of what the test does.
const LONG: &str = "promotion: {observe: 1h}";

fn shop(service: &str) -> (Origin, Origin, ConfigFile, Switchover) {
    two_pools(|config| config.service(service))
}

fn promote(switchover: &Switchover, pool: &str) {
    let output = switchover.cli(&["promote", pool, "--wait", "promoted"]);
    assert_eq!(output.code, 0, "{output:?}");
}

fn text(config: &ConfigFile) -> String {
    fs::read_to_string(&config.path).unwrap()
}

fn seen(shop: &ServiceStatus) -> (u64, u64) {
    let observation = shop.swap.as_ref().unwrap().observation.as_ref().unwrap();
    (observation.requests, observation.failed)
}

fn await_seen(switchover: &Switchover, requests: u64) -> ServiceStatus {
    switchover.await_service(&format!("{requests} requests are observed"), |shop| seen(shop).0 >= requests)
}

/// Waits for the end of the swap to green, and returns its reason.
fn taken_back(switchover: &Switchover) -> String {
    let shop = switchover.await_outcome(Outcome::TakenBack);
    let swap = shop.swap.clone().unwrap();
    assert_eq!((swap.from.as_deref(), swap.to.as_str(), swap.phase), (Some("blue"), "green", Phase::Done), "{swap:?}");
    assert_eq!(shop.active, "blue", "{shop:?}");
    assert!(switchover.pool_status("green").safe_to_stop, "{shop:?}");
    assert_eq!(switchover.pool_status("blue").not_safe_because.as_deref(), Some("blue serves"));
    assert_eq!(switchover.metric("switchover_swaps_total{result=\"taken_back\",service=\"shop\"}"), Some(1.0));
    swap.reason.unwrap()
}

fn counted(switchover: &Switchover, reason: &str) {
    for label in ["errors", "not_ready", "hanging"] {
        let series = format!("switchover_take_backs_total{{reason=\"{label}\",service=\"shop\"}}");
        assert_eq!(switchover.metric(&series), Some(if label == reason { 1.0 } else { 0.0 }), "{series}");
    }
}

/// The file names blue again, and nothing differs from it.
fn is_set_back(switchover: &Switchover, config: &ConfigFile) {
    assert_eq!(text(config), config.text(), "only active: was changed, and changed back");
    assert_eq!(switchover.drift(), None);
}

/// Promotes green under a load, waits for its end, and checks that the load is served by blue again.
fn promoted_under_load(switchover: &Switchover, then: impl FnOnce(&Load)) -> (Output, Tally) {
    let load = Load::start(switchover.address, 6, mixed);
    let output = thread::scope(|scope| {
        let promoted = scope.spawn(|| switchover.cli(&["promote", "green"]));
        switchover.await_service("green was promoted", |shop| shop.swap.as_ref().is_some_and(|swap| swap.observation.is_some()));
        then(&load);
        promoted.join().unwrap()
    });
    let tally = load.stop();
    println!("{} of {} requests failed: {}", tally.failures.len(), tally.requests, output.stderr);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.stderr.contains("green was taken back, blue serves again: "), "{output:?}");
    let after = Load::start(switchover.address, 4, mixed);
    after.await_sent(100);
    after.stop().assert_no_failures();
    (output, tally)
}

#[test]
fn a_release_that_fails_is_taken_back_at_the_least_failure_of_the_rule() {
    let (_blue, green, config, switchover) = shop(LONG);
    green.on("/", Act::Say(status(500, "broken")));
    for _ in 0..10 {
        assert_eq!(switchover.get("/").status, 200);
    }
    promote(&switchover, "green");
    let pool = switchover.pool_status("blue");
    assert_eq!((pool.state, pool.safe_to_stop), (PoolState::Kept, false), "{pool:?}");
    assert_eq!(pool.not_safe_because.as_deref(), Some("kept until green is observed, for another 3600 s"));
    for _ in 0..19 {
        assert_eq!(switchover.get("/").status, 500);
    }
    let shop = await_seen(&switchover, 19);
    assert_eq!((seen(&shop), shop.swap.as_ref().unwrap().phase), ((19, 19), Phase::Observing), "{shop:?}");
    assert_eq!(switchover.get("/").status, 500, "the twentieth");
    let reason = taken_back(&switchover);
    assert!(reason.starts_with("20 of 20 requests failed (500: 20) in ") && reason.ends_with(" s; blue had 0%"), "{reason}");
    assert_eq!(switchover.get("/").text(), "blue");
    counted(&switchover, "errors");
    is_set_back(&switchover, &config);
    let status = switchover.cli(&["status"]).stdout;
    assert!(status.contains("swap  blue -> green, TAKEN BACK after ") && status.contains("standby, safe to stop"), "{status}");
    // Nothing promotes it again but a promotion.
    config.replace_by_rename(&text(&config).replace("    promotion:", "    retries: 1\n    promotion:"));
    assert_eq!(switchover.cli(&["reload"]).code, 0);
    assert_eq!(switchover.get("/").text(), "blue");
    green.on("/", Act::Say(ok("green")));
    promote(&switchover, "green");
    assert_eq!(switchover.get("/").text(), "green");
}

#[test]
fn a_waiting_command_exits_with_3_and_the_numbers() {
    for (answers, rule) in [
        (vec![status(500, "")], "errors: 10%, at_least: 20"),
        (vec![status(502, ""), ok("green")], "errors: 10%, at_least: 20"),
        ([vec![status(503, "")], vec![ok("green"); 9]].concat(), "errors: 5%, at_least: 20"),
    ] {
        let (_blue, green, config, switchover) = shop(&format!("promotion: {{observe: 1h, take_back: {{{rule}}}}}"));
        for path in ["/", "/slow"] {
            green.on(path, Act::SayInTurn(answers.clone()));
        }
        let (output, tally) = promoted_under_load(&switchover, |_| {});
        assert!(output.stderr.contains(" requests failed (5"), "{output:?}");
        assert!(tally.failures.len() >= 20, "{tally:?}");
        taken_back(&switchover);
        counted(&switchover, "errors");
        is_set_back(&switchover, &config);
    }
}

#[test]
fn a_release_that_dies_after_the_swap_is_taken_back_by_its_latest_requests() {
    let blue = Origin::start("blue");
    let mut green = App::start("green", "2", "0s");
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address])]).service(LONG);
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    let (_, tally) = promoted_under_load(&switchover, |load| {
        // More than ten times as many as the rule looks at: all of these succeed.
        load.await_sent(3000);
        green.stop(false);
    });
    assert!(tally.failures.len() < 300, "a tenth of all would be too late: {}", tally.failures.len());
    taken_back(&switchover);
    counted(&switchover, "errors");
    is_set_back(&switchover, &config);
}

#[test]
fn a_release_that_hangs_is_taken_back() {
    let (_blue, green, config, switchover) = shop("promotion: {observe: 1h, take_back: {at_least: 4}}");
    for path in ["/", "/slow"] {
        green.on(path, Act::Hang);
    }
    let (output, _) = promoted_under_load(&switchover, |_| {
        switchover.await_active("blue");
        // Ends the requests that hang.
        green.kill();
    });
    assert!(output.stderr.contains(" requests wait, and no response has come for 2 s"), "{output:?}");
    taken_back(&switchover);
    counted(&switchover, "hanging");
    is_set_back(&switchover, &config);
}

#[test]
fn a_release_that_loses_its_readiness_is_taken_back() {
    let (_blue, green, config, switchover) = shop(LONG);
    promote(&switchover, "green");
    green.readiness(503, "database lost");
    let reason = taken_back(&switchover);
    assert_eq!(reason, format!("no peer is ready: {}: 503 database lost", green.address()));
    counted(&switchover, "not_ready");
    is_set_back(&switchover, &config);
}

#[test]
fn the_failures_that_the_old_release_had_too_are_no_reason() {
    let (blue, green, _config, switchover) = shop("promotion: {observe: 1h, take_back: {errors: 1%, at_least: 5}}");
    let two_percent = [vec![status(500, "")], vec![ok("fine"); 49]].concat();
    for origin in [&blue, &green] {
        origin.on("/", Act::SayInTurn(two_percent.clone())).on("/slow", Act::SayInTurn(two_percent.clone()));
    }
    let load = Load::start(switchover.address, 4, mixed);
    load.await_sent(500);
    promote(&switchover, "green");
    let shop = await_seen(&switchover, 1500);
    assert_eq!((shop.active.as_str(), shop.swap.as_ref().unwrap().phase), ("green", Phase::Observing), "{shop:?}");
    assert!(seen(&shop).1 >= 30, "{shop:?}");
    load.stop();
}

#[test]
fn bad_requests_of_clients_are_no_reason() {
    let (_blue, green, _config, switchover) = shop(LONG);
    green.on("/", Act::Say(status(404, "")));
    promote(&switchover, "green");
    for _ in 0..100 {
        assert_eq!(switchover.get("/").status, 404);
    }
    let shop = await_seen(&switchover, 100);
    assert_eq!((shop.active.as_str(), seen(&shop)), ("green", (100, 0)), "{shop:?}");
}

#[test]
fn the_old_pool_is_kept_until_the_new_one_is_observed() {
    let (_blue, _green, config, switchover) = shop("promotion: {observe: 2s}");
    let load = Load::start(switchover.address, 2, mixed);
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 0, "{output:?}");
    load.stop().assert_no_failures();
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("shop: observing green for another 2 s, 0 of ")), "{output:?}");
    let last = lines.last().unwrap();
    assert!(last.starts_with("shop: drained in ") && last.ends_with(" ms, observed for 2 s, safe to stop blue"), "{output:?}");
    let swap = switchover.service().swap.unwrap();
    assert!(swap.outcome == Some(Outcome::Drained) && swap.seconds >= 2.0, "{swap:?}");
    assert!(swap.drain_seconds.unwrap() < 2.0, "the drain does not include the observation: {swap:?}");
    assert!(switchover.pool_status("blue").safe_to_stop);
    assert_eq!(text(&config), config.text().replace("active: blue", "active: green"));
}

#[test]
fn going_back_while_the_new_release_is_observed_is_instant() {
    let (_blue, _green, _config, switchover) = shop(LONG);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.cli(&["promote", "green"]));
        switchover.await_pool("blue", "kept", |pool| pool.state == PoolState::Kept);
        // Waits for no observation: this swap has none.
        assert_eq!(switchover.cli(&["promote", "blue"]).code, 0);
        let swap = switchover.service().swap.unwrap();
        assert_eq!((swap.to.as_str(), swap.to_prove, swap.observation), ("blue", 0, None));
        let output = waiter.join().unwrap();
        assert!(output.code == 1 && output.stderr.contains("its old pool serves again"), "{output:?}");
    });
    assert_eq!(switchover.get("/").text(), "blue");
    assert!(switchover.pool_status("green").safe_to_stop);
    // Another version of a pool that is kept is a new release.
    promote(&switchover, "green");
    let output = switchover.cli(&["promote", "blue", "--version", "2.0.0", "--wait", "promoted"]);
    let swap = switchover.service().swap.unwrap();
    assert_eq!((output.code, swap.to.as_str(), swap.to_prove), (0, "blue", 1), "{output:?}");
}

/// Starts switchover so that it cannot write its file: as root by another user, otherwise by the mode of the file.
fn that_cannot_write(config: &ConfigFile) -> Switchover {
    let file = config.path.to_str().unwrap();
    if !rustix::process::geteuid().is_root() {
        return Switchover::spawn(command(&["run", "--config", file]), config);
    }
    let program = config.folder().join("switchover");
    install(Path::new(env!("CARGO_BIN_EXE_switchover")), &program);
    fs::set_permissions(config.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut run = std::process::Command::new(&program);
    run.args(["run", "--config", file]).env_remove("RUST_LOG").uid(61_000).gid(61_000);
    Switchover::spawn(run, config)
}

#[test]
fn a_file_that_cannot_be_written_differs_from_what_serves_until_it_is_edited() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).service(LONG);
    let switchover = that_cannot_write(&config);
    switchover.await_ready("green");
    config.set_active("green", Edit::InPlace);
    for (mode, path) in [(0o444, config.path.as_path()), (0o555, config.folder())] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    switchover.await_active("green");
    green.readiness(503, "down");
    taken_back(&switchover);
    let drift = switchover.await_service("the write has failed", |shop| {
        shop.drift.as_ref().is_some_and(|drift| drift.reason.contains("; the file could not be set back: cannot write "))
    });
    let drift = drift.drift.unwrap();
    assert_eq!((drift.file.as_str(), drift.serves.as_str()), ("green", "blue"), "{drift:?}");
    assert!(drift.reason.starts_with("no peer is ready: "), "{drift:?}");
    assert!(text(&config).contains("active: green"));
    assert_eq!(switchover.metric("switchover_config_drift{service=\"shop\"}"), Some(1.0));
    // An unrelated edit does not promote it again, not even when it is ready.
    fs::set_permissions(config.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&config.path, fs::Permissions::from_mode(0o644)).unwrap();
    green.readiness(200, "up");
    switchover.await_ready("green");
    config.write_in_place(&text(&config).replace("    promotion:", "    retries: 1\n    promotion:"));
    assert_eq!(switchover.cli(&["reload", "--wait", "promoted"]).code, 3);
    assert_eq!(switchover.get("/").text(), "blue");
    // A promotion does.
    assert_eq!(switchover.cli(&["promote", "green", "--wait", "promoted"]).code, 0);
    assert_eq!((switchover.get("/").text().as_str(), switchover.drift()), ("green", None));
}

#[test]
fn an_edit_meanwhile_is_kept_when_a_release_is_taken_back() {
    let (_blue, green, config, switchover) = shop(LONG);
    promote(&switchover, "green");
    config.replace_by_rename(&text(&config).replace("    promotion:", "    timeouts: {response: 7s}\n    promotion:"));
    assert_eq!(switchover.cli(&["reload", "--wait", "promoted"]).code, 0);
    let running = || switchover.admin_get("/v1/config").1;
    assert!(running().contains("response: 7s"), "{}", running());
    assert_eq!(switchover.pool_status("blue").state, PoolState::Kept, "the observation goes on");
    green.readiness(503, "down");
    taken_back(&switchover);
    assert!(text(&config).contains("active: blue") && text(&config).contains("response: 7s"), "{}", text(&config));
    assert!(running().contains("active: blue") && running().contains("response: 7s"), "{}", running());
    assert_eq!(switchover.drift(), None);
}

#[test]
fn the_observation_ends_if_its_pools_change() {
    let [blue, green, purple] = ["blue", "green", "purple"].map(Origin::start);
    let pools = [("blue", &[blue.address()][..]), ("green", &[green.address()]), ("purple", &[purple.address()])];
    let config = ConfigFile::new(&pools).service(LONG);
    let switchover = Switchover::start(&config);
    promote(&switchover, "green");
    promote(&switchover, "purple");
    switchover.await_log("the observation ends early service=shop pool=green reason=green does not serve");
    switchover.await_safe_to_stop("blue");
    assert_eq!(switchover.pool_status("green").state, PoolState::Kept);
    config.write_in_place(&text(&config).replace(&green.address().to_string(), "127.0.0.1:1"));
    switchover.await_log("the observation ends early service=shop pool=purple reason=green was changed");
    switchover.await_outcome(Outcome::Drained);
    switchover.await_safe_to_stop("green");
}

#[test]
fn a_release_that_fails_serves_on_while_the_old_one_is_not_ready() {
    let (blue, green, _config, switchover) = shop(LONG);
    promote(&switchover, "green");
    blue.readiness(503, "down");
    switchover.await_pool("blue", "not ready", |pool| !pool.peers[0].ready);
    green.on("/", Act::Say(status(500, "broken")));
    for _ in 0..20 {
        assert_eq!(switchover.get("/").status, 500);
    }
    let shop = switchover.await_service("the reason", |shop| {
        shop.swap.as_ref().is_some_and(|swap| {
            swap.reason.as_ref().is_some_and(|why| why.ends_with("; green serves on, because no peer of blue is ready"))
        })
    });
    assert_eq!((shop.active.as_str(), shop.swap.unwrap().phase), ("green", Phase::Observing));
    for _ in 0..5 {
        assert_eq!(switchover.get("/").status, 500);
    }
    assert_eq!(switchover.log().matches("cannot be taken back").count(), 1);
    blue.readiness(200, "up");
    taken_back(&switchover);
    assert_eq!(switchover.get("/").text(), "blue");
}

#[test]
fn two_services_are_taken_back_at_once() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])])
        .service("hosts: [shop.test]\npromotion: {observe: 1h}");
    let api = format!(
        "  api:\n    hosts: [api.test]\n    active: one\n    health_check: {{interval: 100ms}}\n    promotion: {{observe: 1h}}\n    \
         pools: {{one: {{peers: [\"{}\"]}}, two: {{peers: [\"{}\"]}}}}\n",
        one.address(),
        two.address()
    );
    let before = config.text() + &api;
    config.write_in_place(&before);
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    config.replace_by_rename(&before.replace("active: blue", "active: green").replace("active: one", "active: two"));
    switchover.await_active("green");
    eventually("two is active", || match switchover.service_named("api").active {
        active if active == "two" => Ok(()),
        active => Err(active),
    });
    green.readiness(503, "down");
    two.readiness(503, "down");
    eventually("both are taken back, and the file is set back", || {
        let outcomes = ["shop", "api"].map(|name| switchover.service_named(name).swap.unwrap().outcome);
        if outcomes == [Some(Outcome::TakenBack); 2] && text(&config) == before { Ok(()) } else { Err((outcomes, text(&config))) }
    });
    assert_eq!((switchover.service().active.as_str(), switchover.service_named("api").active.as_str()), ("blue", "one"));
    assert_eq!((switchover.drift(), switchover.service_named("api").drift), (None, None));
}

#[test]
fn a_restart_while_a_bad_release_is_observed_serves_the_old_one() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).service(LONG);
    let config = config.top("state_dir: state\n");
    fs::create_dir(config.folder().join("state")).unwrap();
    let remembered = |pool: &str| {
        eventually(&format!("{pool} is remembered"), || {
            let text = fs::read_to_string(config.folder().join("state/served-last")).unwrap_or_default();
            if text == format!("shop {pool}\n") { Ok(()) } else { Err(text) }
        });
    };
    let mut switchover = Switchover::start(&config);
    switchover.await_ready("green");
    remembered("blue");
    promote(&switchover, "green");
    assert_eq!(switchover.get("/").text(), "green");
    remembered("blue");
    green.readiness(503, "down");
    switchover.signal(Signal::SIGKILL);
    switchover.await_exit();
    let switchover = Switchover::start(&config);
    switchover.await_active("blue");
    assert_eq!(switchover.get("/").text(), "blue");
    let drift = switchover.drift();
    // The old process was killed before it could set the file back, or just after.
    assert!(drift.is_none_or(|drift| drift.file == "green" && drift.reason.contains("blue served last")));
}
