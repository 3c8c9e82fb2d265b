//! A disk that blocks: probes, the status and signals do not wait for it, and commands get an error in time.

use std::{fs, path::PathBuf};

use nix::sys::signal::Signal;

use crate::support::{
    Authority, ConfigFile, Edit, HyperPeer, Origin, Switchover, eventually,
    origin::Act,
    switchover::{command, run},
};

/// A switchover whose reads of the configuration can be made to block.
struct Slow {
    blue: Origin,
    green: Origin,
    config: ConfigFile,
    switchover: Switchover,
    blocks: PathBuf,
}

fn slow(top: &str) -> Slow {
    let (blue, green) = (Origin::start("blue"), Origin::start("green"));
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[green.address()])]).top(top);
    let blocks = config.folder().join("blocks");
    let mut run = command(&["run", "--config", config.path.to_str().unwrap()]);
    run.env("SWITCHOVER_TEST_SLOW_READ", &blocks);
    let switchover = Switchover::spawn(run, &config);
    switchover.await_ready("blue");
    switchover.await_ready("green");
    Slow { blue, green, config, switchover, blocks }
}

/// Longer than any test waits.
const NEVER: &str = "shutdown_timeout: 30m\n";

#[test]
fn probes_and_commands_do_not_wait_for_a_read_that_blocks() {
    let Slow { blue, config, switchover, blocks, .. } = slow("");
    fs::write(&blocks, "").unwrap();
    config.set_active("green", Edit::InPlace);
    switchover.signal(Signal::SIGHUP);
    blue.readiness(503, "down");
    switchover.await_pool("blue", "probed during the read", |pool| !pool.peers[0].ready);

    // The first command waits for its read until the limit; the next ones are answered at once while that read has not ended.
    for promotion in [["promote", "shop", "green"], ["promote", "shop", "blue"]] {
        let output = run(&[&promotion[..], &["--admin", &switchover.admin.to_string()]].concat());
        assert_eq!(output.code, 78, "{output:?}");
        let expected = format!("{}: reading has not ended after 10 s", config.path.display());
        assert!(output.stderr.contains(&expected), "{output:?}");
    }
    assert_eq!(switchover.service().active, "blue");
    assert!(!switchover.read_status().config.last_reload.problems.is_empty());

    fs::remove_file(&blocks).unwrap();
    switchover.await_active("green");
    eventually("the edit is applied", || match switchover.read_status().config.last_reload.problems {
        problems if problems.is_empty() => Ok(()),
        problems => Err(problems),
    });
}

#[test]
fn probes_of_other_services_do_not_wait_for_a_ca_file_that_blocks() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let ca = authority.write(folder.path());
    authority.sign(folder.path(), "peer", &["peer.test"], 2040);
    let (peer, other) = (HyperPeer::start(false, Some((folder.path(), "peer"))), Origin::start("other"));
    let upstream = format!("{{tls: {{ca: \"{}\", server_name: peer.test}}}}", ca.display());
    let quick = "{interval: 100ms, timeout: 500ms}";
    let config = ConfigFile::new(&[("blue", &[peer.address])])
        .service(&format!("    hosts: [shop.test]\n    upstream: {upstream}\n    health_check: {quick}\n"));
    let pools = format!("{{one: {{peers: [\"{}\"]}}}}", other.address());
    config
        .write_in_place(&format!("{}  other:\n    active: one\n    health_check: {quick}\n    pools: {pools}\n", config.text()));
    let blocks = folder.path().join("blocks");
    let mut run = command(&["run", "--config", config.path.to_str().unwrap()]);
    run.env("SWITCHOVER_TEST_SLOW_READ", &blocks);
    let switchover = Switchover::spawn(run, &config);
    switchover.await_ready("blue");
    fs::write(&blocks, "").unwrap();
    // A new date, so that it is read again.
    authority.write(folder.path());
    let shop = switchover.await_pool("blue", "a probe waits for the file", |pool| {
        let last = pool.peers[0].last_probe.as_ref().and_then(|probe| probe.reason.as_deref());
        last.is_some_and(|reason| reason.contains("upstream.tls.ca: the file cannot be read within 500ms"))
    });
    assert!(shop.peers[0].ready, "a slow disk of this host is no verdict on the peer");
    other.readiness(503, "down");
    eventually("the other service is probed", || match switchover.service_named("other") {
        service if service.pools[0].peers[0].ready => Err(service),
        _ => Ok(()),
    });
    fs::remove_file(&blocks).unwrap();
    switchover
        .await_pool("blue", "probed again", |pool| pool.peers[0].last_probe.as_ref().is_some_and(|probe| probe.reason.is_none()));
}

#[test]
fn a_stop_and_a_second_signal_do_not_wait_for_a_read_that_blocks() {
    for twice in [false, true] {
        let Slow { blue, mut switchover, blocks, config: _config, .. } =
            slow(if twice { NEVER } else { "shutdown_timeout: 500ms\n" });
        let mut idle = switchover.client();
        assert_eq!(idle.get("/").unwrap().status, 200);
        let mut running = switchover.client();
        if twice {
            blue.on("/hang", Act::Hang);
            running.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            switchover.await_in_flight("blue", 1);
        }
        fs::write(&blocks, "").unwrap();
        switchover.signal(Signal::SIGHUP);
        switchover.signal(Signal::SIGHUP);
        switchover.signal(Signal::SIGTERM);
        switchover.await_log("] stopping ");
        if twice {
            switchover.signal(Signal::SIGTERM);
        }
        let (status, _) = switchover.await_exit();
        assert_eq!(status.code(), Some(i32::from(twice)), "{}", switchover.log());
    }
}

/// The write of a promotion reads the file first.
#[test]
fn a_cancellation_waits_for_the_write_of_a_promotion_and_a_stop_does_not() {
    let Slow { green, mut switchover, blocks, config: _config, .. } = slow("shutdown_timeout: 500ms\n");
    green.readiness(503, "not yet");
    switchover.await_pool("green", "not ready", |pool| !pool.peers[0].ready);
    let (status, promoted) = switchover.admin_post("/v1/services/shop/promote?wait=none", "{\"pool\":\"green\"}");
    assert_eq!(status, 200, "{promoted}");
    fs::write(&blocks, "").unwrap();
    green.readiness(200, "up");
    switchover.await_service("it is being written", |service| {
        service.swap.as_ref().is_some_and(|swap| swap.reason.as_ref().is_some_and(|reason| reason.contains("writ")))
    });
    let (status, cancelled) = switchover.admin_post("/v1/services/shop/cancel", "");
    assert_eq!(status, 409, "{cancelled}");
    assert!(cancelled.to_string().contains("writing has not ended after 10 s"), "{cancelled}");
    switchover.signal(Signal::SIGHUP);
    switchover.signal(Signal::SIGTERM);
    assert!(switchover.await_exit().0.success());
}
