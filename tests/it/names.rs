//! Peers by name: a recreated container has another address, without an edit of the file.

use std::{fs, process::Command};

use crate::support::{ConfigFile, Origin, Switchover, eventually, not_tested};

/// Runs in a separate mount namespace, in which `/etc/hosts` is a file of the test.
pub fn with_hosts(config: &ConfigFile, hosts: &std::path::Path) -> Command {
    let mut command = Command::new("unshare");
    let program = env!("CARGO_BIN_EXE_switchover");
    let script = format!("mount --bind {} /etc/hosts && exec {program} run --config {}", hosts.display(), config.path.display());
    command.args(["--map-root-user", "--mount", "sh", "-c", &script]);
    command
}

pub fn can_unshare() -> bool {
    let output = Command::new("unshare").args(["--map-root-user", "--mount", "true"]).output();
    let works = output.as_ref().is_ok_and(|output| output.status.success());
    assert!(works || std::env::var_os("CI").is_none(), "CI has to be able to unshare a mount namespace: {output:?}");
    if !works {
        not_tested("a peer whose name gets another address", "this system does not let us unshare a mount namespace");
    }
    works
}

#[test]
fn a_name_that_gets_another_address_is_followed_without_an_edit() {
    if !can_unshare() {
        return;
    }
    let old = Origin::start("old");
    // The same port at another address, like a recreated container.
    let listener = std::net::TcpListener::bind(("127.0.0.2", old.address().port())).unwrap();
    let mut config = ConfigFile::new(&[("blue", &[old.address()])]);
    config.set_peers("blue", &[&format!("app-blue.test:{}", old.address().port())]);
    let hosts = config.folder().join("hosts");
    fs::write(&hosts, "127.0.0.1 app-blue.test\n").unwrap();
    let switchover = Switchover::spawn(with_hosts(&config, &hosts), &config);
    assert_eq!(switchover.get("/").text(), "old");
    let new = Origin::on_listener("new", listener);
    // Written in place, because a bind mount keeps its inode.
    fs::write(&hosts, "127.0.0.2 app-blue.test\n").unwrap();
    old.kill();
    eventually("the new one serves", || match switchover.get("/").text() {
        text if text == "new" => Ok(()),
        text => Err(text),
    });
    assert_eq!(switchover.pool_status("blue").peers[0].resolved, [new.address().to_string()]);
}

#[test]
fn a_name_that_cannot_be_resolved_is_the_reason_of_a_refusal() {
    let blue = Origin::start("blue");
    let mut config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[])]);
    config.set_peers("green", &["no-such-name.invalid:8080"]);
    let config = config.service("promotion: {ready_timeout: 1s}");
    let switchover = Switchover::start(&config);
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 3, "{output:?}");
    assert!(output.stderr.contains("cannot resolve no-such-name.invalid"), "{output:?}");
}

#[test]
fn localhost_is_a_name() {
    let blue = Origin::start("blue");
    let mut config = ConfigFile::new(&[("blue", &[blue.address()])]);
    config.set_peers("blue", &[&format!("localhost:{}", blue.address().port())]);
    let switchover = Switchover::start(&config);
    assert_eq!(switchover.get("/").text(), "blue");
}
