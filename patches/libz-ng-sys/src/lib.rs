//! Stands in for the crate `libz-ng-sys`, whose build script needs cmake.
//!
//! pingora-core asks flate2 for zlib-ng, for a response compression that switchover never switches on. Classic zlib has
//! the same C interface and builds with a C compiler alone, so nobody has to install cmake for code that does not run.
pub use libz_sys::*;
