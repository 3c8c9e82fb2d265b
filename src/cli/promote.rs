//! `switchover promote`: asks for a swap and follows it to its end.

use clap::Args;

use super::{AdminArg, Failure, follow};
use crate::status::{Status, Wait};

#[derive(Args)]
pub(super) struct PromoteArgs {
    /// [SERVICE] POOL: the pool to make active; the service may be left out where only one has such a pool
    #[arg(num_args = 1..=2, required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    admin: AdminArg,
    /// How far to follow the swap
    #[arg(long, value_enum, default_value_t = Wait::Drained, value_name = "STEP")]
    wait: Wait,
}

pub(super) fn run(args: &PromoteArgs) -> Result<(), Failure> {
    let client = args.admin.client()?;
    let (service, pool) = match args.names.as_slice() {
        [service, pool] => (service.clone(), pool.clone()),
        [pool] => (service_with(&client.status()?, pool)?, pool.clone()),
        _ => return Err(Failure::usage("promote takes [SERVICE] POOL")),
    };
    let (wait, call, of) = (args.wait, client.clone(), service.clone());
    follow::follow(&client, Some(&service), move || call.promote(&of, &pool, wait))
}

/// The one service that has such a pool.
fn service_with(status: &Status, pool: &str) -> Result<String, Failure> {
    let with: Vec<&str> =
        status.services.iter().filter(|s| s.pools.iter().any(|p| p.name == pool)).map(|s| s.name.as_str()).collect();
    match (with.as_slice(), status.services.as_slice()) {
        ([service], _) => Ok((*service).to_owned()),
        // The server knows best what there is instead.
        ([], [service]) => Ok(service.name.clone()),
        ([], _) => Err(Failure::usage(format!("no service has a pool \"{pool}\"; see switchover status"))),
        (several, _) => Err(Failure::usage(format!(
            "several services have a pool \"{pool}\": {}; write promote SERVICE {pool}",
            several.join(", ")
        ))),
    }
}
