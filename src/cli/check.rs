//! `switchover check`: the steps of a reload that change nothing.

use clap::Args;

use super::{ConfigArg, Failure, out};
use crate::config;

const EXAMPLES: &str = "Examples:
  switchover check --config shop.yaml
  switchover check";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let path = args.config.path()?;
    let (_, config) = config::load(&path).map_err(|e| Failure::config(&e))?;
    out::line(format_args!("{} is valid", path.display()))?;
    for (name, service) in &config.services {
        let hosts = if service.hosts.is_empty() { "any host".to_owned() } else { service.hosts.join(", ") };
        let pools: Vec<&str> = service.pools.keys().map(String::as_str).collect();
        let (prefix, active, pools) = (&service.path_prefix, &service.active, pools.join(", "));
        out::line(format_args!("  {name}: {hosts}, path {prefix}, active {active} of {pools}"))?;
    }
    Ok(())
}
