//! switchover
pub mod admin;
pub mod cli;
pub mod config;
pub mod controller;
pub mod demo;
pub mod metrics;
pub mod pool;
pub mod proxy;
pub mod route;
pub mod server;
pub mod signals;
pub mod snapshot;
pub mod status;
pub mod watch;
