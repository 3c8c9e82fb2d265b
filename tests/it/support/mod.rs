//! The test kit: the real binary, real sockets and files, ephemeral ports.
//!
//! Tests are written with [`Switchover`], [`ConfigFile`], [`App`], [`Origin`], [`Client`] and [`Load`]. A test waits for a
//! condition with [`eventually`], never for a time. A test of a duration asserts only its lower bound.

pub mod acme_server;
pub mod app;
pub mod authority;
pub mod client;
pub mod config_file;
pub mod curl;
pub mod fixture;
pub mod hyper_client;
pub mod hyper_peer;
pub mod load;
pub mod origin;
pub mod port;
pub mod switchover;

use std::{
    fmt::Debug,
    io::Write,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

pub use self::{
    acme_server::AcmeServer,
    app::App,
    authority::Authority,
    client::{Client, Response},
    config_file::{ConfigFile, Edit},
    curl::curl,
    fixture::{one_pool, two_pools},
    hyper_client::Protocol,
    hyper_peer::HyperPeer,
    load::Load,
    origin::{Gate, Origin},
    port::Port,
    switchover::Switchover,
};

/// Time limit of every wait. It only ends tests that hang: even on a slow machine, no condition takes as long.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until `look` returns `Ok`. Panics at the timeout, with the last error.
pub fn eventually<T, E: Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match look() {
            Ok(fact) => return fact,
            Err(seen) if Instant::now() > deadline => panic!("waited in vain: {what}; seen last: {seen:?}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Installs an executable file. `cp` writes it: if this process did, a child that another thread forks at that moment would inherit
/// the descriptor, and for as long as a file is open for writing its execution fails with ETXTBSY.
pub fn install(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--preserve=mode").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "cp {} {}", from.display(), to.display());
}

/// Reports that this system cannot run a test. Writes to the real standard error, because output of a passing test is not shown.
/// With `CI` set, such a test fails instead.
pub fn not_tested(what: &str, why: &str) {
    // A failed write does not make the test fail.
    std::io::stderr().write_all(format!("NOT TESTED: {what}: {why}\n").as_bytes()).unwrap_or_default();
}
