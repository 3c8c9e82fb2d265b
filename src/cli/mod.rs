//! The command line: one file per command, and their common exit codes.
//!
//! Called by `main`. Commands for a running switchover use its admin API and make no decisions.

mod cancel;
mod check;
mod completions;
mod follow;
mod health;
mod logging;
mod out;
mod promote;
mod reload;
mod run;
mod schema;
mod status;

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{self, Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    admin::client::{CallError, Client},
    config, token,
};

/// Replace the application behind it, under load, without a failed request.
#[derive(Parser)]
#[command(version = env!("SWITCHOVER_VERSION"), after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0    done
  1    failed, cancelled, or superseded by a newer edit
  2    usage, an unknown service or pool, or a process that runs another file
  3    timed out, not ready, or refused by a check (the old pool continues to serve), or taken back (it serves again)
  78   invalid configuration
  130  interrupted by Ctrl-C (the swap continues)
  141  standard output is a closed pipe";

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C; SIGHUP reloads the configuration
    Run(run::RunArgs),
    /// Validate a configuration file and report every problem in it
    Check(check::CheckArgs),
    /// Print the JSON Schema of the configuration file, for editors and validators
    #[command(after_help = schema::EXAMPLES)]
    Schema,
    /// Show services, pools, peers and the swap in progress
    Status(status::StatusArgs),
    /// Make a pool the active one: prove it ready, switch to it, drain the old one
    Promote(promote::PromoteArgs),
    /// Cancel a swap that is still being proven
    Cancel(cancel::CancelArgs),
    /// Reload the configuration file
    Reload(reload::ReloadArgs),
    /// Exit with 0 if switchover serves, for the health check of a container
    Health(health::HealthArgs),
    /// Print the completion script of a shell
    Completions(completions::CompletionsArgs),
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man(completions::ManArgs),
}

/// The default files, in the order in which they are tried.
const DEFAULT_FILES: [&str; 2] = ["conf/switchover.yaml", "/etc/switchover/switchover.yaml"];

#[derive(Args, Clone)]
struct ConfigArg {
    /// The configuration file; default: conf/switchover.yaml, then /etc/switchover/switchover.yaml
    #[arg(long, short, env = "SWITCHOVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArg {
    /// The given file, or the first default file that exists.
    fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.config {
            return Ok(path.clone());
        }
        let found = DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.exists());
        found.ok_or_else(|| Failure {
            code: INVALID_CONFIG,
            message: format!("no configuration file: tried {}; name one with --config", DEFAULT_FILES.join(" and ")),
        })
    }
}

#[derive(Args, Clone)]
struct AdminArg {
    #[command(flatten)]
    config: ConfigArg,
    /// Address of the admin API; default: the one in the configuration file
    #[arg(long, env = "SWITCHOVER_ADMIN", value_parser = admin_address, value_name = "HOST:PORT")]
    admin: Option<String>,
}

impl AdminArg {
    /// A client for commands that change something. Without `--admin`, the configuration file must be readable, and the process must
    /// run it: the address could belong to another switchover.
    fn client(&self) -> Result<Client, Failure> {
        let client = self.connect(Err)?;
        if self.admin.is_none() {
            check_runs(&client, &self.config.path()?)?;
        }
        Ok(client)
    }

    /// A client for commands that only read. Without a readable file, it uses the default address.
    fn reader(&self) -> Result<Client, Failure> {
        self.connect(|unread| {
            out::error(&format!("{}; asking the default admin address {}", unread.message, config::ADMIN_ADDRESS));
            Ok(config::ADMIN_ADDRESS)
        })
    }

    fn connect(&self, without_file: impl Fn(Failure) -> Result<SocketAddr, Failure>) -> Result<Client, Failure> {
        let named = self.config.path().and_then(|path| config::admin(&path).map_err(|e| Failure::config(&e)));
        // With --admin no file is required; an existing one provides the token.
        let token_file = named.as_ref().ok().and_then(|admin| admin.token_file.clone());
        let token = token_file.map(|file| token::named(&file)).transpose().map_err(Failure::failed)?;
        if let Some(address) = &self.admin {
            return Ok(Client::new(address, token));
        }
        let mut address = named.map(|admin| admin.address).or_else(without_file)?;
        // A wildcard address includes loopback.
        match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Ok(Client::new(&address.to_string(), token))
    }
}

/// Checks that the process behind `client` runs the configuration file `path`. Only warns if the file of the process is not visible
/// here: a process in a container has other paths.
fn check_runs(client: &Client, path: &Path) -> Result<(), Failure> {
    // Equal for every path of a file: symbolic and hard links, and bind mounts.
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let (address, given, running) = (client.address(), path.display(), client.status()?.config.file);
    if path::absolute(path).is_ok_and(|path| path == Path::new(&running)) {
        return Ok(());
    }
    match identity(Path::new(&running)) {
        Ok(of_running) if identity(path).is_ok_and(|of_given| of_given == of_running) => Ok(()),
        Ok(_) => Err(Failure::usage(format!(
            "the switchover at {address} runs {running}, not {given}; name its file with --config, or its address with --admin {address}"
        ))),
        Err(e) => {
            out::error(&format!("warning: cannot check that {address} runs {given}: it runs {running}, here: {e}"));
            Ok(())
        }
    }
}

/// Parses `127.0.0.1:9901`, `localhost:9901` or `http://127.0.0.1:9901/`.
fn admin_address(text: &str) -> Result<String, String> {
    const FORM: &str = "write HOST:PORT, such as 127.0.0.1:9901";
    if text.starts_with("https://") {
        return Err(format!("the admin API speaks plain HTTP; {FORM}"));
    }
    let address = text.strip_prefix("http://").unwrap_or(text);
    let address = address.strip_suffix('/').unwrap_or(address);
    let is_host =
        |host: &str| !host.is_empty() && !host.contains(['/', '@', '?', '#']) && (host.starts_with('[') || !host.contains(':'));
    match address.rsplit_once(':') {
        Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(address.to_owned()),
        _ => Err(FORM.to_owned()),
    }
}

/// `EX_CONFIG` of sysexits(3).
const INVALID_CONFIG: u8 = 78;

/// Why a command failed: its exit code, and a message for standard error, which may be empty.
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
        Self { code: INVALID_CONFIG, message: error.to_string() }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let code = match &error {
            CallError::Unreachable(_) => 1,
            CallError::Api(refused) => match refused.code.as_str() {
                "not-ready" | "refused" | "taken-back" | "drain-timed-out" | "drift" => 3,
                "unknown-service" | "unknown-pool" => 2,
                "invalid-config" | "static-changed" => INVALID_CONFIG,
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
        Command::Schema => schema::run(),
        Command::Status(args) => status::run(&args),
        Command::Promote(args) => promote::run(&args),
        Command::Cancel(args) => cancel::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            out::error(&message);
            ExitCode::from(code)
        }
    }
}
