//! `switchover completions` and the hidden `switchover man`: print the files that packages install beside the program.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, out};

const EXAMPLES: &str = "Examples:
  switchover completions bash
  switchover completions zsh
  switchover completions fish";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Args)]
pub(super) struct ManArgs {
    /// The folder to write the pages into; it must exist
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "switchover", &mut script);
    out::raw(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .map_err(|e| Failure::failed(format!("cannot write man pages into {}: {e}", args.folder.display())))
}
