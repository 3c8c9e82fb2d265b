//! The gate of a promotion: the check, as a command and as a URL, and what becomes of its processes.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use nix::sys::signal::Signal;
use serde_json::Value;
use switchover::status::{Outcome, Phase, Swap};

use crate::support::{
    Authority, ConfigFile, HyperPeer, Origin, Port, Switchover, eventually, install,
    origin::{Act, Gate, status},
    two_pools,
};

/// A service whose check is this YAML in flow style.
fn checked(check: &str) -> (Origin, Origin, ConfigFile, Switchover) {
    two_pools(|config| config.service(&format!("promotion: {{check: {check}}}")))
}

/// A check by a shell with this script, which must have no single quotes.
fn script(script: &str, timeout: &str) -> String {
    format!("{{command: [/bin/sh, -c, '{script}'], timeout: {timeout}}}")
}

fn promote(switchover: &Switchover, pool: &str, wait: &str) -> (u16, Value) {
    switchover.admin_post(&format!("/v1/services/shop/promote?wait={wait}"), &format!("{{\"pool\": \"{pool}\"}}"))
}

/// Promotes green, which has to be refused. Returns the reason.
fn refusal(switchover: &Switchover) -> String {
    let (status, error) = promote(switchover, "green", "drained");
    assert_eq!((status, &error["code"]), (409, &"refused".into()), "{error}");
    let swap = switchover.service().swap.unwrap();
    assert_eq!((swap.outcome, switchover.service().active.as_str()), (Some(Outcome::Refused), "blue"));
    let reason = swap.reason.unwrap();
    assert_eq!(error["message"], format!("promotion of green was refused: {reason}"));
    assert_eq!(switchover.get("/").text(), "blue");
    reason
}

fn await_checking(switchover: &Switchover) -> Swap {
    let shop =
        switchover.await_service("checking", |service| service.swap.as_ref().is_some_and(|swap| swap.phase == Phase::Checking));
    shop.swap.unwrap()
}

/// Waits until a script has written its process ID.
fn pid(file: &Path) -> String {
    eventually("a process has written its ID", || match fs::read_to_string(file) {
        Ok(text) if text.ends_with('\n') => Ok(text.trim().to_owned()),
        other => Err(format!("{other:?}")),
    })
}

/// Whether a process runs. One that its new parent has not reaped does not run.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn await_gone(pids: &[String]) {
    for pid in pids {
        eventually(&format!("process {pid} is gone"), || if runs(pid) { Err(pid) } else { Ok(()) });
    }
}

/// A script that starts a process in the background and then waits; both write their process IDs into files.
const HANGS: &str = "echo $$ >parent; sleep 1000 & echo $! >child; wait";

fn pids(config: &ConfigFile) -> Vec<String> {
    ["parent", "child"].map(|file| pid(&config.folder().join(file))).to_vec()
}

#[test]
fn a_command_that_fails_refuses_the_release_and_one_that_succeeds_promotes_it() {
    let (_blue, _green, config, switchover) = checked(&script("cat verdict >&2; echo; test ! -s verdict", "30s"));
    let before = fs::read_to_string(&config.path).unwrap();
    fs::write(config.folder().join("verdict"), "checkout: 500\n\x1b[1mat Checkout.java:7\n").unwrap();
    let reason = refusal(&switchover);
    assert_eq!(reason, "command /bin/sh: exited with 1: checkout: 500 | \\u{1b}[1mat Checkout.java:7");
    assert_eq!(fs::read_to_string(&config.path).unwrap(), before, "a refused release leaves the file alone");
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output.stderr.contains("promotion of green was refused: command /bin/sh: exited with 1: checkout: 500"),
        "{output:?}"
    );
    let text = switchover.cli(&["status"]).stdout;
    assert!(text.contains("blue -> green, FAILED, green was refused after "), "{text}");
    fs::write(config.folder().join("verdict"), "").unwrap();
    let (status, applied) = promote(&switchover, "green", "drained");
    assert_eq!(status, 200, "{applied}");
    assert_eq!(switchover.get("/").text(), "green");
    let metric = |series: &str| switchover.metric(&format!("switchover_{series}"));
    assert_eq!(metric("hooks_total{hook=\"check\",result=\"success\"}"), Some(1.0));
    assert_eq!(metric("hooks_total{hook=\"check\",result=\"failure\"}"), Some(2.0));
    assert_eq!(metric("swaps_total{result=\"refused\",service=\"shop\"}"), Some(2.0));
}

#[test]
fn a_release_that_the_file_names_is_refused_too_and_not_tried_again() {
    let (_blue, _green, config, switchover) = checked(&script("echo run >>runs; exit 7", "30s"));
    config.set_active("green", crate::support::Edit::Rename);
    switchover.await_outcome(Outcome::Refused);
    let drift = switchover.drift().unwrap();
    assert_eq!((drift.file.as_str(), drift.serves.as_str()), ("green", "blue"));
    assert_eq!(drift.reason, "command /bin/sh: exited with 7");
    assert_eq!(switchover.admin_post("/v1/reload?wait=none", "{}").0, 200);
    assert_eq!(fs::read_to_string(config.folder().join("runs")).unwrap(), "run\n");
}

#[test]
fn a_command_gets_the_facts_and_little_else_in_its_environment() {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]);
    let config = config.service("promotion: {check: {command: [./checks/smoke, --fast, \"a b\"]}}");
    fs::create_dir(config.folder().join("checks")).unwrap();
    let (source, program) = (config.folder().join("source"), config.folder().join("checks/smoke"));
    fs::write(&source, "#!/bin/sh\nenv >facts; pwd >>facts; echo \"$# $1 $2\" >>facts; readlink /proc/self/fd/0 >>facts\n")
        .unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    let path = config.path.to_str().unwrap();
    let warned = crate::support::switchover::run(&["check", "--config", path]);
    assert!(warned.code == 0 && warned.stderr.contains("promotion.check.command[0]: "), "{warned:?}");
    install(&source, &program);
    let mut command = crate::support::switchover::command(&["run", "--config", path]);
    command.env("DATABASE_PASSWORD", "hush").env("HOME", "/tmp").env("LANG", "C.UTF-8");
    let switchover = Switchover::spawn(command, &config);
    switchover.await_ready("green");
    let output = switchover.cli(&["promote", "green", "--version", "2.0.0"]);
    assert_eq!(output.code, 0, "{output:?}");
    let facts = fs::read_to_string(config.folder().join("facts")).unwrap();
    for fact in [
        "SWITCHOVER_SERVICE=shop",
        "SWITCHOVER_POOL=green",
        "SWITCHOVER_FROM=blue",
        "SWITCHOVER_VERSION=2.0.0",
        &format!("SWITCHOVER_PEERS={}", green.address()),
        "HOME=/tmp",
        "LANG=C.UTF-8",
        config.folder().to_str().unwrap(),
        "2 --fast a b",
        "/dev/null",
    ] {
        assert!(facts.lines().any(|line| line == fact), "no {fact}: {facts}");
    }
    let known = ["SWITCHOVER_", "PATH=", "HOME=", "LANG=", "PWD=", "OLDPWD=", "SHLVL=", "_="];
    let others = facts.lines().filter(|line| line.contains('=') && !known.iter().any(|name| line.starts_with(name)));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn a_command_that_hangs_is_killed_with_its_children() {
    let (_blue, _green, config, switchover) = checked(&script(&format!("echo so far; {HANGS}"), "1s"));
    // On a busy machine it may be killed before it has begun.
    let begun = || ["parent", "child"].iter().all(|file| config.folder().join(file).exists());
    let reason = eventually("the command has begun", || {
        let reason = refusal(&switchover);
        if begun() { Ok(reason) } else { Err(reason) }
    });
    assert_eq!(reason, "command /bin/sh: has not ended within 1s and was killed: so far");
    await_gone(&pids(&config));
}

#[test]
fn a_command_that_ends_leaves_nothing_running() {
    let (_blue, _green, config, switchover) = checked(&script("sleep 1000 & echo $! >child", "30s"));
    let (status, applied) = promote(&switchover, "green", "drained");
    assert_eq!(status, 200, "{applied}");
    let child = pid(&config.folder().join("child"));
    assert!(!runs(&child), "{child} was killed before the promotion");
}

#[test]
fn a_command_is_killed_when_its_swap_is_cancelled_or_superseded_and_when_switchover_stops() {
    let (_blue, _green, config, mut switchover) = checked(&script(HANGS, "1h"));
    let begin = || {
        assert_eq!(promote(&switchover, "green", "none").0, 200);
        let swap = await_checking(&switchover);
        let reason = swap.reason.unwrap();
        assert!(reason.starts_with("command /bin/sh running for ") && reason.ends_with(" s"), "{reason}");
        let pids = pids(&config);
        ["parent", "child"].iter().for_each(|file| fs::remove_file(config.folder().join(file)).unwrap());
        assert!(pids.iter().all(|pid| runs(pid)), "{pids:?}");
        pids
    };
    let pids = begin();
    let text = switchover.cli(&["status"]).stdout;
    assert!(text.contains("blue -> green, checking: command /bin/sh running for "), "{text}");
    assert_eq!(switchover.cli(&["cancel"]).code, 0);
    await_gone(&pids);
    assert_eq!(switchover.service().swap.unwrap().outcome, Some(Outcome::Cancelled));
    let pids = begin();
    assert_eq!(promote(&switchover, "blue", "none").0, 200);
    await_gone(&pids);
    assert_eq!(switchover.service().last_swap.unwrap().outcome, Some(Outcome::Superseded));
    let pids = begin();
    switchover.signal(Signal::SIGTERM);
    assert!(switchover.await_exit().0.success());
    let running: Vec<&String> = pids.iter().filter(|pid| runs(pid)).collect();
    assert!(running.is_empty(), "{running:?} outlived switchover");
}

#[test]
fn output_without_end_neither_blocks_the_command_nor_fills_the_memory() {
    let (_blue, _green, _config, switchover) = checked(&script("yes", "1s"));
    let before = switchover.memory();
    let reason = refusal(&switchover);
    assert!(reason.starts_with("command /bin/sh: has not ended within 1s and was killed"), "{reason}");
    assert!(reason.len() < 2200, "{}", reason.len());
    let grown = switchover.memory() - before;
    assert!(grown < 16.0, "{grown} MiB");
    let (_blue, _green, _config, switchover) = checked(&script("head -c 30000000 /dev/zero", "1h"));
    let (status, applied) = promote(&switchover, "green", "drained");
    assert_eq!(status, 200, "{applied}");
}

#[test]
fn a_program_that_cannot_be_started_refuses_the_release() {
    let (_blue, _green, _config, switchover) = checked("{command: [./none]}");
    let reason = refusal(&switchover);
    assert!(reason.starts_with("command ./none: cannot be started: No such file"), "{reason}");
}

#[test]
fn a_pool_that_loses_its_readiness_during_the_check_is_not_promoted() {
    let (_blue, green, config, switchover) = checked(&script(HANGS, "1h"));
    assert_eq!(promote(&switchover, "green", "none").0, 200);
    await_checking(&switchover);
    let pids = pids(&config);
    green.readiness(503, "out of memory");
    let shop = switchover.await_outcome(Outcome::NotReady);
    let reason = shop.swap.unwrap().reason.unwrap();
    assert_eq!(reason, format!("was ready, and then no more: {}: 503 out of memory", green.address()));
    await_gone(&pids);
    assert_eq!(switchover.get("/").text(), "blue");
}

#[test]
fn the_time_of_the_check_is_not_part_of_ready_timeout() {
    let check = script("while ! test -e go; do sleep 0.1; done", "1h");
    let (_blue, _green, config, switchover) =
        two_pools(|config| config.service(&format!("promotion: {{ready_timeout: 3s, check: {check}}}")));
    assert_eq!(promote(&switchover, "green", "none").0, 200);
    await_checking(&switchover);
    switchover.await_service("the time is over", |service| {
        service.swap.as_ref().is_some_and(|swap| swap.phase == Phase::Checking && swap.seconds > swap.timeout_seconds)
    });
    fs::write(config.folder().join("go"), "").unwrap();
    switchover.await_active("green");
}

#[test]
fn a_draining_pool_that_serves_again_is_not_checked() {
    let (blue, _green, config, switchover) = checked(&script("echo run >>runs", "30s"));
    let gate = Gate::new();
    blue.on("/slow", Act::SayHeld(gate.clone(), Vec::new(), status(200, "late")));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| switchover.get("/slow"));
        switchover.await_in_flight("blue", 1);
        assert_eq!(promote(&switchover, "green", "promoted").0, 200);
        let (status, applied) = promote(&switchover, "blue", "promoted");
        assert_eq!(status, 200, "{applied}");
        gate.open();
        assert_eq!(slow.join().unwrap().text(), "late");
    });
    assert_eq!(fs::read_to_string(config.folder().join("runs")).unwrap(), "run\n", "only green was checked");
}

#[test]
fn a_url_gets_the_facts_and_decides() {
    let hook = Origin::start("hook");
    let (_blue, green, _config, switchover) = checked(&format!("{{url: \"http://{}/smoke?suite=fast\"}}", hook.address()));
    hook.on("/smoke", Act::Say(status(500, "checkout: 3 of 12 failed\nsee the report")));
    let reason = refusal(&switchover);
    let at = format!("url http://{}/", hook.address());
    assert_eq!(reason, format!("{at}: responded with 500: checkout: 3 of 12 failed | see the report"));
    hook.on("/smoke", Act::Say(b"HTTP/1.1 302 Found\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n".to_vec()));
    assert_eq!(refusal(&switchover), format!("{at}: responded with 302"));
    hook.on("/smoke", Act::Say(status(204, "")));
    let (status, applied) = promote(&switchover, "green", "drained");
    assert_eq!(status, 200, "{applied}");
    let (heads, bodies) = hook.own_requests();
    assert_eq!(heads.len(), 3, "redirects are not followed: {heads:?}");
    let head = heads[2].to_ascii_lowercase();
    assert!(head.starts_with("post /smoke?suite=fast http/1.1\r\n"), "{head}");
    assert!(
        head.contains(&format!("host: {}\r\n", hook.address())) && head.contains("content-type: application/json\r\n"),
        "{head}"
    );
    let facts: Value = serde_json::from_slice(&bodies[2]).unwrap();
    let peers = [green.address().to_string()];
    assert_eq!(facts, serde_json::json!({"service": "shop", "pool": "green", "from": "blue", "version": null, "peers": peers}));
}

#[test]
fn a_url_that_cannot_be_reached_refuses_the_release() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new().sign(folder.path(), "hook", &["localhost"], 2040);
    let (port, hook) = (Port::reserve(), Origin::start("hook"));
    let (tls, plain) = (HyperPeer::start(false, Some((folder.path(), "hook"))), HyperPeer::start(false, None));
    hook.on("/hang", Act::Hang).on("/close", Act::Close);
    for (url, timeout, reason) in [
        (format!("http://{}/", port.address), "1m", "no connection to 127.0.0.1"),
        (format!("http://{}/hang", hook.address()), "300ms", "no response within 300ms"),
        (format!("http://{}/close", hook.address()), "1m", "no response: "),
        (format!("https://localhost:{}/", tls.address.port()), "1m", "no connection to localhost"),
        (format!("https://localhost:{}/", plain.address.port()), "1m", "no connection to localhost"),
        ("http://no-such-host.invalid/".to_owned(), "1m", "no-such-host.invalid cannot be resolved: "),
    ] {
        let (_blue, _green, _config, switchover) = checked(&format!("{{url: \"{url}\", timeout: {timeout}}}"));
        let seen = refusal(&switchover);
        assert!(seen.contains(reason), "{url}: {seen}");
    }
}
