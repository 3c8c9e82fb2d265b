//! `switchover health`: what a container's health check asks, where there is no curl.

use super::{AdminArg, Failure};

pub(super) fn run(args: &AdminArg) -> Result<(), Failure> {
    args.client()?.ready().map_err(Failure::from)
}
