//! Edits that have to be proven, and edits that must not be lost.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use switchover::status::{Outcome, PoolStatus};

use crate::support::{ConfigFile, Load, Origin, Switchover, eventually, install, load::mixed};

const QUICK: &str = "    health_check: {interval: 100ms}\n    promotion: {ready_timeout: 500ms}\n";

fn shop(service: &str) -> (Origin, Origin, ConfigFile) {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).service(service);
    (blue, green, config)
}

/// Edits settings of the active pool so that its peers fail the proof.
fn refused(before: &str, after: &str, reason: &str) {
    let (_blue, _green, config) = shop(QUICK);
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed);
    let text = config.text();
    assert!(text.contains(before), "{text}");
    config.replace_by_rename(&text.replace(before, after));
    let shop = switchover.await_outcome(Outcome::NotReady);
    let (swap, drift) = (shop.swap.unwrap(), shop.drift.unwrap());
    assert_eq!((swap.from.as_deref(), swap.to.as_str()), (Some("blue"), "blue"), "{swap:?}");
    assert!(swap.reason.as_ref().unwrap().contains(reason), "{swap:?}");
    assert_eq!((drift.file.as_str(), drift.serves.as_str()), ("blue", "blue"), "{drift:?}");
    assert!(!switchover.log().contains("peer is not ready"), "the verdict of what serves is its own: {}", switchover.log());
    config.replace_by_rename(&text);
    switchover.await_service("no drift", |shop| shop.drift.is_none());
    load.stop().assert_no_failures();
}

#[test]
fn another_protocol_is_proven_before_it_serves() {
    refused("    promotion:", "    upstream: {protocol: h2c}\n    promotion:", "closed the connection");
}

#[test]
fn another_health_check_is_proven_before_it_judges_what_serves() {
    // The origin responds with 200 to every path, so the new check must require another status.
    refused("{interval: 100ms}", "{interval: 100ms, expect_status: 204}", "200");
}

#[test]
fn another_port_of_the_health_check_is_proven_before_it_judges_what_serves() {
    refused("{interval: 100ms}", "{interval: 100ms, port: 1}", "nothing listens on 127.0.0.1:1");
}

#[test]
fn settings_that_pass_their_proof_run() {
    let (blue, _green, config) = shop(QUICK);
    let switchover = Switchover::start(&config);
    let load = Load::start(switchover.address, 4, mixed);
    let edited = config.text().replace("{interval: 100ms}", "{interval: 100ms, path: /healthz}");
    config.replace_by_rename(&edited);
    switchover.await_service("the edit is proven", |shop| {
        let swap = shop.last_swap.as_ref();
        swap.is_some_and(|swap| swap.from.as_deref() == Some("blue") && swap.outcome == Some(Outcome::Drained))
    });
    // The old path is not probed any more.
    blue.readiness(503, "old");
    let probed = |pool: &PoolStatus| pool.peers[0].last_probe.as_ref().map(|probe| probe.at.clone());
    let before = probed(&switchover.pool_status("blue"));
    let pool = switchover.await_pool("blue", "probed again", |pool| probed(pool) != before);
    assert!(pool.peers[0].ready, "{pool:?}");
    load.stop().assert_no_failures();
}

#[test]
fn settings_of_a_pool_that_never_was_ready_are_replaced_at_once() {
    let (_blue, _green, config) = shop("    health_check: {interval: 100ms}\n    upstream: {protocol: h2c}\n");
    let switchover = Switchover::start(&config);
    assert_eq!(switchover.admin_get("/readyz").0, 503);
    config.replace_by_rename(&config.text().replace("h2c", "http1"));
    eventually("it serves", || match switchover.get("/").text() {
        text if text == "blue" => Ok(()),
        text => Err(text),
    });
    assert_eq!(switchover.drift(), None);
}

#[test]
fn a_certificate_authority_that_cannot_be_read_refuses_the_edit_with_its_place() {
    let (_blue, _green, config) = shop(QUICK);
    let switchover = Switchover::start(&config);
    let edited = config.text().replace("    promotion:", "    upstream:\n      tls: {ca: missing.pem}\n    promotion:");
    config.replace_by_rename(&edited);
    let (status, error) = switchover.admin_post("/v1/reload", "{}");
    assert_eq!((status, &error["code"]), (422, &"invalid-config".into()), "{error}");
    let problem = &error["problems"][0];
    let line = 1 + edited.lines().position(|line| line.contains("missing.pem")).unwrap();
    assert_eq!((&problem["at"], &problem["line"]), (&"services.shop.upstream.tls.ca".into(), &line.into()), "{error}");
    assert!(problem["message"].as_str().unwrap().contains("there is no file"), "{error}");
    fs::write(config.folder().join("missing.pem"), "nonsense").unwrap();
    let (_, error) = switchover.admin_post("/v1/reload", "{}");
    assert!(error["problems"][0]["message"].as_str().unwrap().contains("holds no certificate in PEM"), "{error}");
    assert_eq!(switchover.get("/").text(), "blue");
}

/// Another service is edited just before the promotion writes the file.
#[test]
fn what_a_promotion_finds_in_the_file_is_applied() {
    let (blue, green, config) = shop("    hosts: [shop.test]\n    health_check: {interval: 10ms}\n");
    let (one, two) = (Origin::start("one"), Origin::start("two"));
    let api = |active: &str| {
        format!(
            "  api:\n    hosts: [api.test]\n    active: {active}\n    health_check: {{interval: 10ms}}\n    promotion: {{observe: 0s}}\n    \
             pools: {{one: {{peers: [\"{}\"]}}, two: {{peers: [\"{}\"]}}}}\n",
            one.address(),
            two.address()
        )
    };
    config.write_in_place(&(config.text() + &api("one")));
    let switchover = Switchover::start(&config);
    for round in 0..12 {
        let (idle, pool) = if round % 2 == 0 { (&green, "green") } else { (&blue, "blue") };
        let active = if round % 2 == 0 { "two" } else { "one" };
        idle.readiness(503, "starting");
        let path = "/v1/services/shop/promote?wait=promoted";
        thread::scope(|scope| {
            let waiter = scope.spawn(|| switchover.admin_post(path, &format!("{{\"pool\": \"{pool}\"}}")));
            switchover.await_proving();
            // The edit falls on a different moment of the promotion in each round.
            idle.readiness(200, "up");
            thread::sleep(Duration::from_millis(10 * round % 120));
            let text = fs::read_to_string(&config.path).unwrap();
            let at = text.find("  api:").unwrap();
            config.replace_by_rename(&format!("{}{}", &text[..at], api(active)));
            waiter.join().unwrap();
        });
        let in_file = fs::read_to_string(&config.path).unwrap();
        eventually("what the file says of the other service serves", || {
            let api = switchover.service_named("api");
            if api.active == active { Ok(()) } else { Err((in_file.clone(), api)) }
        });
        // The edit may be based on the text before the promotion, and then reverts it.
        switchover.cli(&["promote", "shop", pool]);
    }
}

/// Three other writers save the file again and again, by rename and in place, each with its own line, while promotions write it.
#[test]
fn no_save_is_lost_to_a_promotion() {
    let (_blue, _green, config) = shop("    health_check: {interval: 10ms}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("green");
    let (stop, saves) = (AtomicBool::new(false), Mutex::new([0_usize; 3]));
    let line = |saver: usize, count: usize| format!("# saver {saver} was here {count} times");
    let check = |text: &str, saves: &[usize; 3]| {
        for (saver, count) in saves.iter().enumerate().filter(|(_, count)| **count > 0) {
            assert!(text.contains(&line(saver, *count)), "a save of {saver}, {count}, was lost: {text}");
        }
    };
    let save = |saver: usize, path: &Path| {
        // One at a time: otherwise the writers would overwrite each other's lines.
        let mut saves = saves.lock().unwrap();
        // A save between the last comparison and the exchange of the names is missing until switchover puts it back.
        let text = eventually("every save is there", || {
            let text = fs::read_to_string(path).unwrap();
            let lost = (0..3).find(|saver| saves[*saver] > 0 && !text.contains(&line(*saver, saves[*saver])));
            lost.map_or(Ok(text), Err)
        });
        let (old, new) = (line(saver, saves[saver]), line(saver, saves[saver] + 1));
        let text = if text.contains(&old) { text.replace(&old, &new) } else { format!("{text}{new}\n") };
        if saver == 0 {
            fs::write(path, text).unwrap();
        } else {
            let copy = path.with_extension("saved");
            fs::write(&copy, text).unwrap();
            fs::rename(copy, path).unwrap();
        }
        saves[saver] += 1;
    };
    thread::scope(|scope| {
        for saver in 0..3 {
            let (stop, save, path) = (&stop, &save, &config.path);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    save(saver, path);
                    thread::sleep(Duration::from_micros(700 * (saver as u64 + 1)));
                }
            });
        }
        for swap in 0..40 {
            let pool = if swap % 2 == 0 { "green" } else { "blue" };
            // May fail because of the concurrent saves; then the file keeps these.
            switchover.admin_post("/v1/services/shop/promote?wait=promoted", &format!("{{\"pool\": \"{pool}\"}}"));
        }
        stop.store(true, SeqCst);
    });
    let saves = saves.into_inner().unwrap();
    assert!(saves.iter().all(|count| *count > 0), "{saves:?}");
    check(&fs::read_to_string(&config.path).unwrap(), &saves);
    assert_eq!(switchover.cli(&["promote", "green"]).code, 0);
    assert_eq!(switchover.cli(&["promote", "blue"]).code, 0);
    check(&fs::read_to_string(&config.path).unwrap(), &saves);
    let left = fs::read_dir(config.folder()).unwrap().filter_map(Result::ok).map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(".switchover-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Runs switchover with a copy of the file in a separate file system, which `script` prepares; `$DIR` is its folder.
fn on_its_own_file_system(config: &ConfigFile, script: &str) -> Option<Switchover> {
    let works = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).output().is_ok_and(|o| o.status.success());
    assert!(works || std::env::var_os("CI").is_none(), "CI has to be able to unshare a mount namespace");
    if !works {
        eprintln!("NOT TESTED: this system has no mount namespaces for us");
        return None;
    }
    let folder = config.folder().join("mounted");
    fs::create_dir(&folder).unwrap();
    let (folder, file, program) = (folder.display(), config.path.display(), env!("CARGO_BIN_EXE_switchover"));
    let script = format!(
        "DIR={folder} && mount -t tmpfs -o size=64k none $DIR && cp {file} $DIR/c.yaml && {script} && exec {program} run --config $DIR/c.yaml"
    );
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", &script]);
    Some(Switchover::spawn(command, config))
}

#[test]
fn a_promotion_that_cannot_be_written_says_why_and_the_old_pool_serves() {
    for (script, reason) in [
        ("(dd if=/dev/zero of=$DIR/full bs=4k 2>/dev/null || true)", "No space left on device"),
        ("mount -o remount,ro $DIR", "Read-only file system"),
    ] {
        let (_blue, _green, config) = shop(QUICK);
        let Some(switchover) = on_its_own_file_system(&config, script) else { return };
        let (status, error) = switchover.admin_post("/v1/services/shop/promote?wait=drained", "{\"pool\": \"green\"}");
        assert!(status >= 400 && error["message"].as_str().unwrap().contains(reason), "{reason}: {status} {error}");
        assert!(
            error["message"].as_str().unwrap().contains("written") || error["message"].as_str().unwrap().contains("cannot write")
        );
        let shop = switchover.service();
        assert_eq!((shop.active.as_str(), &shop.drift), ("blue", &None), "{shop:?}");
        assert_eq!(switchover.get("/").text(), "blue");
    }
}

/// In /etc the folder is often not writable for the process, and the file has another owner.
#[test]
fn a_file_of_another_owner_is_written_in_place() {
    use std::os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: only root can run a process as another user");
        return;
    }
    let (_blue, _green, config) = shop(QUICK);
    let program = config.folder().join("switchover");
    install(Path::new(env!("CARGO_BIN_EXE_switchover")), &program);
    for writable in [false, true] {
        chown(&config.path, Some(0), Some(61_001)).unwrap();
        fs::set_permissions(&config.path, fs::Permissions::from_mode(0o664)).unwrap();
        fs::set_permissions(config.folder(), fs::Permissions::from_mode(if writable { 0o777 } else { 0o755 })).unwrap();
        let mut run = Command::new(&program);
        run.args(["run", "--config", config.path.to_str().unwrap()]).env_remove("RUST_LOG").uid(61_000).gid(61_001);
        let switchover = Switchover::spawn(run, &config);
        let before = fs::metadata(&config.path).unwrap();
        for pool in ["green", "blue"] {
            let (status, error) =
                switchover.admin_post("/v1/services/shop/promote?wait=drained", &format!("{{\"pool\": \"{pool}\"}}"));
            assert_eq!(status, 200, "{error}");
            assert!(fs::read_to_string(&config.path).unwrap().contains(&format!("active: {pool}")));
        }
        let after = fs::metadata(&config.path).unwrap();
        assert_eq!(
            (before.ino(), before.uid(), before.gid(), before.mode()),
            (after.ino(), after.uid(), after.gid(), after.mode())
        );
    }
}
