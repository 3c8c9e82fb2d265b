//! `switchover reload`: the same as SIGHUP, with a result.

use clap::Args;

use super::{AdminArg, Failure, follow};
use crate::status::Wait;

const EXAMPLES: &str = "Examples:
  switchover reload
  switchover reload --wait promoted";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    admin: AdminArg,
    /// How long to wait for the swaps that it starts
    #[arg(long, value_enum, default_value_t = Wait::Drained, value_name = "STEP")]
    wait: Wait,
}

pub(super) fn run(args: &ReloadArgs) -> Result<(), Failure> {
    let client = args.admin.client()?;
    let wait = args.wait;
    let call = client.clone();
    follow::follow(&client, None, move || call.reload(wait))
}
