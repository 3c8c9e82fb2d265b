//! `switchover run`: catches signals, starts logging, and hands over to the composition root.

use env_logger::{Builder, Env};

use super::{ConfigArg, Failure};
use crate::{
    server::{self, RunError},
    signals,
};

/// Pingora says something of every broken connection; what matters of it is counted and logged here.
const LOG_FILTER: &str = "info,pingora_core=off,pingora_proxy=off";

pub(super) fn run(args: &ConfigArg) -> Result<(), Failure> {
    // Before anything that takes time: a SIGHUP that comes first would end the process.
    let signals = signals::catch().map_err(|e| Failure::failed(format!("cannot catch signals: {e}")))?;
    Builder::from_env(Env::default().default_filter_or(LOG_FILTER)).init();
    server::run(&args.config, signals).map_err(|e| match e {
        RunError::Config(e) => Failure::config(&e),
        e => Failure::failed(e),
    })
}
