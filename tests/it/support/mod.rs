//! The kit: the real binary, real sockets, real files, on ephemeral ports.
//!
//! Tests read as stories in its words: [`Switchover`], [`ConfigFile`], [`App`], [`Origin`], [`Client`], [`Load`]. It never
//! sleeps to hope for the best: whoever waits, waits for a fact with [`eventually`].

pub mod app;
pub mod authority;
pub mod client;
pub mod config_file;
pub mod hyper_client;
pub mod load;
pub mod origin;
pub mod switchover;

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

pub use self::{
    app::App,
    authority::Authority,
    client::{Client, Response},
    config_file::{ConfigFile, Edit},
    hyper_client::Protocol,
    load::Load,
    origin::Origin,
    switchover::Switchover,
};

/// How long a test waits before it takes what it waits for to be lost. No test passes or fails by this on a slow machine: what
/// takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a fact; says what was seen last if it does not come.
pub fn eventually<T, E: Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(fact) => return fact,
            Err(seen) if Instant::now() > deadline => panic!("waited in vain: {what}; seen last: {seen:?}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The middle one.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
