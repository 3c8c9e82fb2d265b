//! Puts the version into the program: in a release build with the git commit, so that a bug report names its source.
//!
//! A debug build has no commit: it would be built again after each one. `SWITCHOVER_COMMIT` replaces git where there is no
//! repository, as in the image's build; a source archive has neither, and its version is the number alone.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-env-changed=SWITCHOVER_COMMIT");
    let number = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let is_debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let build = if is_debug { Some("debug build".to_owned()) } else { commit() };
    let version = build.map_or(number.clone(), |build| format!("{number} ({build})"));
    println!("cargo:rustc-env=SWITCHOVER_VERSION={version}");
}

fn commit() -> Option<String> {
    if let Some(commit) = env::var("SWITCHOVER_COMMIT").ok().filter(|commit| !commit.is_empty()) {
        return Some(commit);
    }
    // A folder without .git may lie in another project's repository.
    if !Path::new(".git").exists() {
        return None;
    }
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // Changes with every commit and checkout.
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    git(&["rev-parse", "--short=12", "HEAD"])
}
