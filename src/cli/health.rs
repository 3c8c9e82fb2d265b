//! `switchover health`: a health check for containers without curl.

use clap::Args;

use super::{AdminArg, Failure};

const EXAMPLES: &str = "Examples:
  switchover health";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    admin: AdminArg,
}

pub(super) fn run(args: &HealthArgs) -> Result<(), Failure> {
    args.admin.reader()?.ready().map_err(Failure::from)
}
