//! A TLS scan by sslyze, against Mozilla's recommendation for public servers ("intermediate").

use std::{path::Path, process::Command};

use crate::support::{Authority, ConfigFile, Origin, Switchover};

#[test]
#[ignore = "needs sslyze: make test-deploy"]
fn a_scanner_finds_nothing_but_that_it_does_not_know_the_authority() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    authority.sign(config.folder(), "shop", &["localhost"], 2040);
    let config = config.listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n");
    let switchover = Switchover::start(&config);
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/deploy/venv/bin/sslyze"))
        .args(["--mozilla_config", "intermediate", &switchover.address.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let verdict = said.split_once("COMPLIANCE AGAINST").unwrap_or_else(|| panic!("{output:?}")).1;
    let found: Vec<&str> = verdict.lines().filter_map(|line| line.trim().strip_prefix("* ")).collect();
    let of_the_test = ["certificate_path_validation", "maximum_certificate_lifespan"];
    assert!(!found.is_empty() && found.iter().all(|line| of_the_test.iter().any(|name| line.starts_with(name))), "{said}");
    for attack in ["Client Renegotiation DoS Attack:   OK", "TLS_FALLBACK_SCSV:                 OK", "Compression disabled"] {
        assert!(said.contains(attack), "no {attack:?}: {said}");
    }
    assert!(!switchover.log().contains("panicked"), "{}", switchover.log());
}
