//! The JSON Schema, as a validator that many editors and pipelines use applies it: check-jsonschema.

use std::{fs, path::Path, process::Command};

use crate::schema::configurations;

/// Invalid files that the schema accepts, each with the reason. Everything else in `tests/invalid` is rejected by it.
const NOT_BY_A_SCHEMA: [(&str, &str); 6] = [
    ("duplicate-listener", "compares addresses of several listeners"),
    ("peer-in-two-pools", "compares lists of several pools"),
    ("proofs", "one listener needs another"),
    ("same-route", "compares hosts and prefixes of several services"),
    ("unknown-pool", "compares a value with keys"),
    ("laughs", "its aliases multiply to a thousand million values, all of which the validator would visit"),
];

fn accepts(file: &Path) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let validator = Command::new(root.join("target/deploy/venv/bin/check-jsonschema"))
        .arg("--schemafile")
        .args([&root.join("conf/switchover.schema.json"), file])
        .output()
        .unwrap();
    assert!(validator.status.code().is_some_and(|code| code < 2), "{}: {validator:?}", file.display());
    validator.status.success()
}

#[test]
#[ignore = "needs check-jsonschema: make test-deploy"]
fn the_schema_accepts_every_configuration_and_rejects_invalid_ones() {
    for file in configurations() {
        assert!(accepts(&file), "{}", file.display());
    }
    let invalid = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/invalid");
    for file in fs::read_dir(invalid).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_stem().unwrap().to_str().unwrap();
        if file.extension().is_some_and(|extension| extension == "yaml") && name != "laughs" {
            let known = NOT_BY_A_SCHEMA.iter().any(|(known, _)| *known == name);
            assert_eq!(accepts(&file), known, "{}", file.display());
        }
    }
}
