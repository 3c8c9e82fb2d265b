//! ACME against a minimal server of the test kit; `deploy::acme` tests against Pebble.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::support::{AcmeServer, Authority, ConfigFile, Origin, Switchover, eventually};

/// Two TLS listeners with the same ACME certificate, and a listener without TLS for the authority.
pub fn ordering(origin: &Origin, year: i32) -> (ConfigFile, AcmeServer) {
    let config = ConfigFile::new(&[("blue", &[origin.address()])]);
    let authority = Authority::new();
    authority.write(config.folder());
    let server = AcmeServer::start(config.folder(), authority, year);
    let acme = format!("tls: {{acme: {{names: [shop.test], store: store, directory: \"{}\", ca: ca.crt}}}}", server.directory());
    let listeners = format!("    {acme}\n  - address: 127.0.0.2:0\n    {acme}\n  - address: 127.0.0.1:0\n");
    (config.listener(&listeners), server)
}

#[test]
fn listeners_with_the_same_names_share_one_order_and_a_restart_needs_none() {
    let blue = Origin::start("blue");
    let (config, server) = ordering(&blue, 2040);
    let serves = |switchover: &Switchover| {
        let resolve = format!("shop.test:{}:127.0.0.1", switchover.address.port());
        eventually("it serves with the certificate", || {
            let output = Command::new("curl")
                .args(["-sS", "--max-time", "5", "--noproxy", "*", "--resolve", &resolve, "--cacert"])
                .arg(config.folder().join("ca.crt"))
                .arg(format!("https://shop.test:{}/", switchover.address.port()))
                .output()
                .unwrap();
            if output.stdout == b"blue" { Ok(()) } else { Err((output, switchover.log())) }
        });
    };
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    serves(&switchover);
    assert_eq!(server.orders(), 1);
    drop(switchover);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    serves(&switchover);
    assert_eq!(server.orders(), 1);

    // A damaged file prevents neither the start nor a new order.
    drop(switchover);
    let store = fs::read_dir(config.folder().join("store")).unwrap().next().unwrap().unwrap().path();
    let file = store.join("shop.test.pem");
    let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    fs::write(&file, "nonsense").unwrap();
    // The read permission of the group is kept.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    serves(&switchover);
    assert_eq!((server.orders(), mode()), (2, 0o640));
}

/// With a clock that is far ahead, every certificate is due for renewal.
#[test]
fn a_certificate_that_is_due_as_soon_as_it_is_issued_is_not_ordered_again_at_once() {
    let blue = Origin::start("blue");
    let (config, server) = ordering(&blue, 2021);
    let switchover = Switchover::start(&config);
    eventually("the order is a failure, and the next one waits", || {
        let log = switchover.log();
        let failed = "is due for renewal already: two thirds of its time ended at 2020-";
        let line = log.lines().find(|line| line.contains(failed));
        if line.is_some_and(|line| line.contains("next_try=15m")) { Ok(()) } else { Err(log.clone()) }
    });
    assert_eq!(server.orders(), 1);
}
