//! `switchover promote`: starts a swap and waits for its end.

use std::time::Duration;

use clap::Args;

use super::{AdminArg, Failure, follow};
use crate::{
    config,
    status::{Promote, Status, Wait},
};

const EXAMPLES: &str = "Examples:
  switchover promote green
  switchover promote shop green --version 2.0.0 --timeout 20s
  switchover promote green --wait promoted

Ctrl-C ends the command and not the swap; switchover cancel gives up a swap that is still being proven.";

#[derive(Args)]
#[command(after_help = EXAMPLES, override_usage = "switchover promote [OPTIONS] [SERVICE] POOL")]
pub(super) struct PromoteArgs {
    /// [SERVICE] POOL: the pool to make active; the service is optional if only one service has such a pool
    #[arg(num_args = 1..=2, required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    admin: AdminArg,
    /// How long to wait for the swap
    #[arg(long, value_enum, default_value_t = Wait::Drained, value_name = "STEP")]
    wait: Wait,
    /// Time limit for the pool to become ready; default: promotion.ready_timeout of the file
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// The release of the pool, written into the file together with the active pool
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
}

pub(super) fn run(args: &PromoteArgs) -> Result<(), Failure> {
    let client = args.admin.client()?;
    let (service, pool) = match args.names.as_slice() {
        [service, pool] => (service.clone(), pool.clone()),
        [pool] => (service_with(&client.status()?, pool)?, pool.clone()),
        _ => return Err(Failure::usage("promote takes [SERVICE] POOL")),
    };
    let timeout = args.timeout.map(|timeout| humantime::format_duration(timeout).to_string());
    let promote = Promote { pool, version: args.version.clone(), timeout };
    let (wait, call, of) = (args.wait, client.clone(), service.clone());
    follow::follow(&client, Some(&service), move || call.promote(&of, &promote, wait))
}

/// The only service that has such a pool.
fn service_with(status: &Status, pool: &str) -> Result<String, Failure> {
    let with: Vec<&str> =
        status.services.iter().filter(|s| s.pools.iter().any(|p| p.name == pool)).map(|s| s.name.as_str()).collect();
    match (with.as_slice(), status.services.as_slice()) {
        ([service], _) => Ok((*service).to_owned()),
        // No error yet: the server reads the file again, which may have such a pool by now.
        ([], [service]) => Ok(service.name.clone()),
        ([], services) => {
            let pools = services.iter().flat_map(|service| &service.pools).map(|known| known.name.as_str());
            let hint = config::nearest(pool, pools);
            Err(Failure::usage(format!("no service has a pool \"{pool}\"{hint}; see switchover status")))
        }
        (several, _) => Err(Failure::usage(format!(
            "several services have a pool \"{pool}\": {}; write promote SERVICE {pool}",
            several.join(", ")
        ))),
    }
}
