//! `switchover demo`, and the hidden `demo-app` that it runs twice.

use std::{net::SocketAddr, time::Duration};

use clap::Args;

use super::Failure;
use crate::demo::{self, Options, app::App};

const EXAMPLES: &str = "Examples:
  switchover demo
  switchover demo --once --swaps 2";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DemoArgs {
    /// Number of swaps
    #[arg(long, default_value_t = 6)]
    swaps: usize,
    /// End after the last swap, also on a terminal
    #[arg(long)]
    once: bool,
}

#[derive(Args, Clone)]
pub(super) struct DemoAppArgs {
    /// Name of its pool, part of every response
    #[arg(long, default_value = "blue")]
    name: String,
    /// Its release, part of every response
    #[arg(long, default_value = "v1")]
    version: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// How long it is not ready after its start
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    ready_after: Duration,
    /// End when standard input is closed
    #[arg(long)]
    exit_on_stdin_close: bool,
}

pub(super) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let options = Options { swaps: args.swaps, once: args.once };
    match runtime()?.block_on(demo::run(options)).map_err(Failure::failed)? {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} requests failed"))),
    }
}

pub(super) fn run_app(args: &DemoAppArgs) -> Result<(), Failure> {
    let DemoAppArgs { name, version, listen, ready_after, exit_on_stdin_close } = args.clone();
    let app = App { name, version, listen, ready_after, exit_on_stdin_close };
    runtime()?.block_on(demo::app::serve(app)).map_err(|e| Failure::failed(format!("cannot listen on {listen}: {e}")))
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Runtime::new().map_err(Failure::failed)
}
