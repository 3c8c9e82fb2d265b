//! The command line: one file per command, and the exit codes they share.
//!
//! Called by `main` alone. A command that talks to a running switchover goes through its admin face and decides nothing.

mod check;
mod demo;
mod follow;
mod health;
mod promote;
mod reload;
mod run;
mod status;

use std::{fmt, net::IpAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{
    admin::{
        self,
        client::{CallError, Client},
    },
    config,
};

/// Replace the application behind it, under load, without a failed request.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failed, 2 usage, 3 timed out or not ready (the old pool serves on), 78 invalid configuration";

#[derive(Subcommand)]
enum Command {
    /// Serve, until SIGTERM or Ctrl-C; SIGHUP reads the configuration again
    Run(ConfigArg),
    /// Say whether a configuration file is valid, and everything that is wrong with it
    Check(ConfigArg),
    /// Show services, pools, peers and the swap in progress
    Status(status::StatusArgs),
    /// Make a pool the active one: prove it ready, switch to it, drain the old one
    Promote(promote::PromoteArgs),
    /// Read the configuration file again
    Reload(reload::ReloadArgs),
    /// Say by the exit code whether it serves: for a container's health check
    Health(AdminArg),
    /// Watch a swap happen: two small applications, steady load, live
    Demo(demo::DemoArgs),
    /// One of the demo's applications
    #[command(hide = true)]
    DemoApp(demo::DemoAppArgs),
}

#[derive(Args, Clone)]
struct ConfigArg {
    /// The configuration file
    #[arg(long, short, env = "SWITCHOVER_CONFIG", default_value = "conf/switchover.yaml", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args, Clone)]
struct AdminArg {
    #[command(flatten)]
    config: ConfigArg,
    /// Address of the admin face; otherwise as the configuration file says
    #[arg(long, env = "SWITCHOVER_ADMIN", value_name = "IP:PORT")]
    admin: Option<String>,
}

impl AdminArg {
    /// A client of the running switchover that is meant.
    fn client(&self) -> Result<Client, Failure> {
        let named = config::admin(&self.config.config);
        // With an address of its own a command needs no file; with one, it takes the token from there.
        let token_file = named.as_ref().ok().and_then(|admin| admin.token_file.clone());
        let token = token_file.map(|file| admin::token(&file)).transpose().map_err(Failure::failed)?;
        if let Some(address) = &self.admin {
            return Ok(Client::new(address, token));
        }
        let mut address = named.map_err(|e| Failure::config(&e))?.address;
        // Where it listens on every address it also listens on this one.
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]) });
        }
        Ok(Client::new(&address.to_string(), token))
    }
}

/// Why a command failed, and what the process says of it.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn failed(message: impl fmt::Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    fn usage(message: impl fmt::Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    fn config(error: &config::LoadError) -> Self {
        Self { code: 78, message: error.to_string() }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let code = match &error {
            CallError::Unreachable(_) => 1,
            CallError::Refused(refused) => match refused.code.as_str() {
                "not-ready" | "drain-timed-out" => 3,
                "unknown-service" | "unknown-pool" => 2,
                "invalid-config" | "static-changed" => 78,
                _ => 1,
            },
        };
        Self { code, message: error.to_string() }
    }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Promote(args) => promote::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::DemoApp(args) => demo::run_app(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            eprintln!("{message}");
            ExitCode::from(code)
        }
    }
}
