//! HTTP/2 as its specification has it, judged by h2spec.

use std::{path::Path, process::Command};

use crate::support::{Authority, ConfigFile, Origin, Switchover};

#[test]
#[ignore = "needs h2spec: make test-deploy"]
fn every_case_of_h2spec_passes() {
    // Some cases need an answer of more than a few bytes.
    let (blue, authority) = (Origin::start("an answer of some length"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    authority.sign(config.folder(), "shop", &["localhost"], 2040);
    let config = config.listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let h2spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/deploy/venv/bin/h2spec");
    let output = Command::new(h2spec)
        .args(["--tls", "--insecure", "--host", "127.0.0.1", "--timeout", "3", "--port"])
        .arg(switchover.address.port().to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("145 tests, 145 passed, 0 skipped, 0 failed"), "{said}");
    assert!(!switchover.log().contains("panicked"), "{}", switchover.log());
}
