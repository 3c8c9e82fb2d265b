//! Edits of the configuration file: which are applied, which are refused, and what they leave as it is.

use std::{fs, thread, time::Duration};

use nix::sys::signal::Signal;
use switchover::status::{Outcome, ReloadResult};

use crate::support::{App, ConfigFile, Load, Origin, Switchover, eventually, load::mixed, one_pool, origin::Act};

#[test]
fn a_file_that_is_not_valid_changes_nothing_and_says_why() {
    let (blue, config, switchover) = one_pool(|config| config);
    let load = Load::start(switchover.address, 4, mixed);
    let good = config.text();
    let bad = [
        ("gren", good.replace("active: blue", "active: gren"), "no pool \"gren\"; pools are blue"),
        ("unknown key", good.replace("    active", "    activ"), "did you mean \"active\"?"),
        ("syntax", good.replace("peers: [", "peers: [["), "not YAML"),
        ("empty", "# nothing\n".to_owned(), "is empty"),
        (
            "weight",
            good.replace(&format!("[\"{}\"]", blue.address()), "[{address: a:1, weight: 0}]"),
            "0 is not allowed; use 1 to 1000",
        ),
    ];
    for (name, text, message) in &bad {
        config.replace_by_rename(text);
        eventually(name, || {
            let reload = switchover.read_status().config.last_reload;
            if reload.problems.iter().any(|problem| problem.to_string().contains(message)) { Ok(()) } else { Err(reload) }
        });
        assert_eq!(switchover.metric("switchover_config_last_reload_successful"), Some(0.0), "{name}");
        let (status, error) = switchover.admin_post("/v1/reload", "");
        assert_eq!((status, &error["code"]), (422, &"invalid-config".into()), "{name}: {error}");
        assert_eq!(switchover.cli(&["reload"]).code, 78, "{name}");
        assert_eq!(switchover.admin_get("/readyz").0, 200, "{name}");
        assert_eq!(switchover.get("/").text(), "blue", "{name}");
    }
    config.replace_by_rename(&good);
    eventually("the good file is applied again", || {
        if switchover.metric("switchover_config_last_reload_successful") == Some(1.0) {
            Ok(())
        } else {
            Err(switchover.read_status())
        }
    });
    load.stop().assert_no_failures();
}

/// One that is missing or empty for a moment only is tested beside the watcher, with a clock of its own.
#[test]
fn a_file_that_stays_missing_is_a_problem_and_the_old_one_serves() {
    let (_blue, config, switchover) = one_pool(|config| config);
    fs::remove_file(&config.path).unwrap();
    eventually("it is a problem", || {
        let reload = switchover.read_status().config.last_reload;
        let problem = reload.problems.iter().any(|problem| problem.to_string().contains("there is no such file"));
        if problem { Ok(()) } else { Err(reload) }
    });
    assert_eq!(switchover.get("/").text(), "blue");
}

#[test]
fn a_static_field_is_refused_as_a_whole() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let switchover = Switchover::start(&config);
    let text = config.text().replacen("address: 127.0.0.1:0", "address: 127.0.0.1:1", 1).replace("active: blue", "active: green");
    config.replace_by_rename(&format!("threads: 7\n{text}"));
    eventually("both fields are named", || {
        let reload = switchover.read_status().config.last_reload;
        let named = |key: &str| reload.problems.iter().any(|problem| problem.at == key);
        if named("listeners[0].address") && named("threads") { Ok(()) } else { Err(reload) }
    });
    assert_eq!(switchover.read_status().config.last_reload.result, ReloadResult::StaticChanged);
    assert_eq!(switchover.get("/").text(), "blue", "nothing of the file is taken");
    assert_eq!(switchover.cli(&["promote", "green"]).code, 78);
}

#[test]
fn a_file_written_in_two_halves_is_taken_whole_wherever_it_was_cut() {
    let (blue, green) = (App::start("blue", "1", "0s"), App::start("green", "1", "0s"));
    let config =
        ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])]).service("hosts: [shop.test, other.test]");
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed);
    let blue = config.text();
    let green = blue.replace("active: blue", "active: green");
    let cuts = 12;
    for i in 1..cuts {
        let (name, text) = if i % 2 == 1 { ("green", &green) } else { ("blue", &blue) };
        config.write_in_two_halves(text, text.len() * i / cuts, Duration::from_millis(300), i % 3 == 0);
        switchover.await_active(name);
    }
    load.stop().assert_no_failures();
}

#[test]
fn an_edit_that_changes_nothing_touches_nothing() {
    let (_blue, config, switchover) = one_pool(|config| config);
    // It serves from its first ready probe on; the end of the proof is one more snapshot.
    switchover.await_outcome(Outcome::Drained);
    let generation = switchover.read_status().generation;
    config.replace_by_rename(&format!("# a comment\n{}", config.text()));
    let (status, applied) = switchover.admin_post("/v1/reload", "{}");
    assert_eq!((status, &applied["result"]), (200, &"unchanged".into()));
    assert_eq!(switchover.cli(&["reload"]).stdout.trim(), "unchanged");
    assert_eq!(switchover.read_status().generation, generation);
}

#[test]
fn sighup_reads_the_file() {
    let (_blue, _config, switchover) = one_pool(|config| config);
    let reloads = || switchover.metrics().lines().filter(|l| l.starts_with("switchover_config_reloads_total")).count();
    assert_eq!(reloads(), 1);
    switchover.signal(Signal::SIGHUP);
    eventually("it was read", || match switchover.metric("switchover_config_reloads_total{result=\"unchanged\"}") {
        Some(1.0) => Ok(()),
        other => Err(other),
    });
}

#[test]
fn a_new_weight_or_timeout_resets_no_health() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let config = ConfigFile::new(&[("blue", &[a.address(), b.address()])]);
    let mut config = config.service("health_check: {interval: 10m}\ntimeouts: {response: 8s}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    // From now on no peer could become ready again, and none is probed often enough to become unready.
    a.readiness(503, "");
    b.readiness(503, "");
    let ready_before = switchover.log().matches("peer is ready").count();
    let (a, b) = (format!("{{address: \"{}\", weight: 5}}", a.address()), format!("\"{}\"", b.address()));
    let slow = config.text();
    config = config.service("health_check: {interval: 20m}\ntimeouts: {response: 7s}\n");
    assert_ne!(slow, config.text());
    config.set_peers("blue", &[&a, &b]);
    switchover.await_pool("blue", "the weight is there", |pool| pool.peers[0].weight == 5);
    assert_eq!(switchover.log().matches("peer is ready").count(), ready_before);
    let pool = switchover.pool_status("blue");
    assert!(pool.peers.iter().all(|peer| peer.ready), "{pool:?}");
}

#[test]
fn the_last_ready_peer_stays_until_its_replacement_is_ready() {
    let (old, new) = (Origin::start("old"), Origin::start("new"));
    new.readiness(503, "starting");
    let mut config = ConfigFile::new(&[("blue", &[old.address()])]);
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed);
    config.set_peers("blue", &[&format!("\"{}\"", new.address())]);
    switchover.await_proving();
    assert_eq!(switchover.get("/").text(), "old");
    new.readiness(200, "up");
    eventually("the new peer serves", || match switchover.get("/").text() {
        text if text == "new" => Ok(()),
        text => Err(text),
    });
    load.stop().assert_no_failures();
}

#[test]
fn an_added_peer_takes_requests_when_it_is_ready_and_a_removed_one_none() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    b.readiness(503, "starting");
    let mut config = ConfigFile::new(&[("blue", &[a.address()])]);
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed);
    let (of_a, of_b) = (format!("\"{}\"", a.address()), format!("\"{}\"", b.address()));
    config.set_peers("blue", &[&of_a, &of_b]);
    switchover.await_pool("blue", "it is there", |pool| pool.peers.len() == 2);
    load.await_sent(100);
    assert!(b.heads().is_empty(), "it was not ready");
    b.readiness(200, "up");
    eventually("it takes requests", || if b.heads().len() > 10 { Ok(()) } else { Err(b.heads().len()) });
    config.set_peers("blue", &[&of_b]);
    switchover.await_pool("blue", "the other has left", |pool| pool.peers.len() == 1);
    let last = a.heads().len();
    load.await_sent(100);
    assert_eq!(a.heads().len(), last);
    load.stop().assert_no_failures();
}

#[test]
fn a_newer_promotion_supersedes_a_swap_that_is_being_proven() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    green.readiness(503, "starting");
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let switchover = Switchover::start(&config);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| switchover.admin_post("/v1/services/shop/promote?wait=drained", "{\"pool\": \"green\"}"));
        switchover.await_proving();
        let output = switchover.cli(&["promote", "blue"]);
        assert_eq!(output.code, 0, "{output:?}");
        let (status, error) = waiter.join().unwrap();
        assert_eq!((status, &error["code"]), (409, &"superseded".into()), "{error}");
    });
    green.on("/actuator/health/readiness", Act::Say(crate::support::origin::ok("up")));
    switchover.await_ready("green");
    assert_eq!(switchover.get("/").text(), "blue", "what was superseded does not come back");
}

#[test]
fn services_come_and_go_with_the_file() {
    let (shop, extra) = (Origin::start("shop"), Origin::start("extra"));
    let config = ConfigFile::new(&[("blue", &[shop.address()])]).service("hosts: [shop.test]");
    let switchover = Switchover::start(&config);
    let ask = |path: &str| {
        let mut client = switchover.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: extra.test\r\n\r\n")).unwrap();
        client.read_response().unwrap()
    };
    assert_eq!(ask("/").status, 404);
    let text = config.text();
    let service = format!(
        "  extra:\n    hosts: [extra.test]\n    path_prefix: /api\n    active: a\n    pools: {{a: {{peers: [\"{}\"]}}}}\n    health_check: {{interval: 100ms}}\n",
        extra.address()
    );
    config.replace_by_rename(&(text.clone() + &service));
    eventually("it serves", || match ask("/api/x") {
        answer if answer.text() == "extra" => Ok(()),
        answer => Err(answer.status),
    });
    assert_eq!(ask("/apix").status, 404);
    config.replace_by_rename(&text);
    eventually("it has gone", || if ask("/api/x").status == 404 { Ok(()) } else { Err("there") });
    eventually(
        "its series have gone",
        || if switchover.metrics().contains("extra") { Err(switchover.metrics()) } else { Ok(()) },
    );
    assert_eq!(switchover.get("/").text(), "shop");
}
