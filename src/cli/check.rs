//! `switchover check`: checks whether `run` would start with a file, by the same steps, without starting anything.

use std::net::IpAddr;

use clap::Args;

use super::{ConfigArg, Failure, out};
use crate::{
    admin::client::{CallError, Client},
    config::{self, Config, LoadError},
    descriptors, preflight,
};

const EXAMPLES: &str = "Examples:
  switchover check --config shop.yaml
  switchover check --effective";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Print the whole configuration with every default, as YAML, without the values of probe headers
    #[arg(long)]
    effective: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let path = args.config.path()?;
    let (text, config) = config::load(&path).map_err(|e| Failure::config(&e))?;
    let found = preflight::look(&path, &text, &config);
    found.warnings.iter().for_each(|warning| out::error(&format!("warning: {warning}")));
    // Not a problem of the file: a running switchover listens on its addresses, and a restart releases them first.
    if !found.in_use.is_empty() && !is_running(&config) {
        found.in_use.iter().for_each(|in_use| out::error(&format!("warning: {in_use}")));
    }
    if !found.problems.is_empty() {
        return Err(Failure::config(&LoadError { problems: found.problems }));
    }
    if args.effective {
        let text = config::effective(&config).map_err(Failure::failed)?;
        return text.lines().try_for_each(out::line);
    }
    out::line(format_args!("{} is valid", path.display()))?;
    for (name, service) in &config.services {
        let hosts = if service.hosts.is_empty() { "any host".to_owned() } else { service.hosts.join(", ") };
        let pools: Vec<&str> = service.pools.keys().map(String::as_str).collect();
        let (prefix, active, pools) = (&service.path_prefix, &service.active, pools.join(", "));
        out::line(format_args!("  {name}: {hosts}, path {prefix}, active {active} of {pools}"))?;
    }
    let connections = config.connections();
    out::line(format_args!(
        "  needs up to {} file descriptors and {} MiB for {connections} connections; an HTTP/2 connection takes up to 4 MiB",
        descriptors::needed(connections),
        config.memory_mib()
    ))
}

/// Whether a switchover responds at the admin address, also with an error such as a missing token.
fn is_running(config: &Config) -> bool {
    let mut address = config.admin.address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) });
    }
    matches!(Client::new(&address.to_string(), None).status(), Ok(_) | Err(CallError::Api(_)))
}
