//! The kit: the real binary, real sockets, real files, on ephemeral ports.
//!
//! Tests read as stories in its words: [`Switchover`], [`ConfigFile`], [`App`], [`Origin`], [`Client`], [`Load`]. A test waits
//! for a fact, with [`eventually`], and never for a time; where a time is what is tested, only its lower bound is asserted.

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

/// How long a test waits before it takes what it waits for to be lost. No test passes or fails by this on a slow machine: what
/// takes longer hangs.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits for a fact; reports what was seen last if it does not come.
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

/// Reports what this system cannot test, past the capture of a passing test's output. A test fails instead where `CI` is set.
pub fn not_tested(what: &str, why: &str) {
    // If the note cannot be written, the test has passed all the same.
    std::io::stderr().write_all(format!("NOT TESTED: {what}: {why}\n").as_bytes()).unwrap_or_default();
}
