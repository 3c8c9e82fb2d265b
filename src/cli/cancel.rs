//! `switchover cancel`: cancels a swap that is still being proven; the old pool continues to serve.

use clap::Args;

use super::{AdminArg, Failure, out};
use crate::status::{Status, Swap};

const EXAMPLES: &str = "Examples:
  switchover cancel
  switchover cancel shop";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CancelArgs {
    /// The service; optional if only one service is proving a pool
    service: Option<String>,
    #[command(flatten)]
    admin: AdminArg,
}

pub(super) fn run(args: &CancelArgs) -> Result<(), Failure> {
    let client = args.admin.client()?;
    let service = match &args.service {
        Some(service) => service.clone(),
        None => proving(&client.status()?)?,
    };
    let ended = client.cancel(&service)?;
    out::line(format_args!("{}: cancelled the swap to {}, {} serves", ended.service, ended.cancelled, ended.serves))
}

/// The only service that is proving a pool.
fn proving(status: &Status) -> Result<String, Failure> {
    let is_proving = |swap: &Swap| swap.phase.is_before_promotion();
    let proving: Vec<&str> =
        status.services.iter().filter(|s| s.swap.as_ref().is_some_and(is_proving)).map(|s| s.name.as_str()).collect();
    match proving.as_slice() {
        [service] => Ok((*service).to_owned()),
        [] => Err(Failure::failed("nothing to cancel: no service is proving a pool")),
        several => {
            Err(Failure::usage(format!("several services are proving a pool: {}; write cancel SERVICE", several.join(", "))))
        }
    }
}
