//! `switchover run`: catches signals, starts logging, and hands over to the composition root.

use clap::Args;

use super::{ConfigArg, Failure, logging};
use crate::{
    server::{self, RunError},
    signals,
};

const EXAMPLES: &str = "Examples:
  switchover run --config shop.yaml
  switchover run --config shop.yaml --log-format json";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value_t = logging::LogFormat::Text, value_name = "FORMAT")]
    log_format: logging::LogFormat,
}

pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    // First, because a SIGHUP without a handler ends the process.
    let signals = signals::catch().map_err(|e| Failure::failed(format!("cannot catch signals: {e}")))?;
    logging::start(args.log_format);
    server::run(&args.config.path()?, signals).map_err(|e| match e {
        RunError::Config(e) => Failure::config(&e),
        e => Failure::failed(e),
    })
}
