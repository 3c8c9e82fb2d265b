//! Every test that drives the real binary, in one program: one link instead of a dozen.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect has to fail"
)]
#![allow(clippy::result_large_err, reason = "what a wait has seen last is kept once, for its message")]
#![expect(unreachable_pub, reason = "`pub` marks what the kit offers to the tests")]

mod support;

mod acme;
mod admin;
mod answers;
mod balance;
mod canary;
mod check;
mod cli;
mod deploy;
mod drain;
mod drift;
mod edits;
mod exhaustion;
mod files;
mod framing;
mod gate;
mod h2;
mod headers;
mod http;
mod lifecycle;
mod limits;
mod memory;
mod metrics;
mod mirror;
mod msrv;
mod names;
mod notify;
mod observe;
mod paths;
mod preview;
mod promotion;
mod proxy_protocol;
mod refused;
mod release;
mod reload;
mod retry;
mod schema;
mod slow_disk;
mod swaps;
mod take_back;
mod tasks;
mod tls;
mod unprocessed;
mod unread;
mod upstream;
mod waits;
mod warm_up;
