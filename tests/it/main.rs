//! Every test that drives the real binary, in one program: one link instead of a dozen.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect has to fail"
)]
#![expect(unreachable_pub, reason = "`pub` marks what the kit offers to the tests")]

mod support;

mod admin;
mod deploy;
mod drain;
mod exhaustion;
mod files;
mod framing;
mod h2;
mod headers;
mod http;
mod lifecycle;
mod limits;

mod metrics;
mod names;
mod observe;
mod proxy_protocol;
mod refused;
mod reload;
mod retry;
mod speed;
mod swaps;
mod tasks;
mod tls;
mod unread;
mod upstream;
