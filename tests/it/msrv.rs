//! The oldest Rust that `Cargo.toml` promises: no dependency needs a newer one, and the documentation names the same. `tests/msrv`
//! builds with it.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `1.88` and `1.88.0` are the same version.
fn version(text: &str) -> Vec<u64> {
    let mut numbers: Vec<u64> = text.split('.').map(|number| number.parse().unwrap()).collect();
    numbers.resize(3, 0);
    numbers
}

#[test]
fn no_dependency_needs_a_newer_rust_than_we_promise() {
    let ours = env!("CARGO_PKG_RUST_VERSION");
    // Without the filter Cargo would have to download the dependencies of other systems.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let args = ["metadata", "--locked", "--offline", "--format-version=1", "--filter-platform", &target];
    let output = Command::new(env!("CARGO")).args(args).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    let needs = |package: &Value| package["rust_version"].as_str().map(str::to_owned);
    let newer: Vec<String> = (packages.iter())
        .filter(|package| needs(package).is_some_and(|needed| version(&needed) > version(ours)))
        .map(|package| format!("{} {} needs Rust {}", package["name"], package["version"], package["rust_version"]))
        .collect();
    assert!(newer.is_empty(), "we promise {ours}: {newer:#?}; take an older release: cargo update NAME --precise VERSION");
}

/// Every `1.NN` of these files is a version of Rust.
#[test]
fn the_documentation_names_the_oldest_rust() {
    for (file, needed) in [("README.md", true), ("CONTRIBUTING.md", true), ("Dockerfile", false), ("rust-toolchain.toml", false)]
    {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_digit() && c != '.').map(|word| word.trim_matches('.'));
        let versions: Vec<&str> = words.filter(|word| word.starts_with("1.") && word.len() >= "1.88".len()).collect();
        assert!(!needed || !versions.is_empty(), "{file} names no version of Rust");
        for named in versions {
            assert_eq!(version(named), version(env!("CARGO_PKG_RUST_VERSION")), "{file} and Cargo.toml differ");
        }
    }
}
