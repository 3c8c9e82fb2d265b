//! What the controller can be asked, and what it answers.
//!
//! Signals, the watcher and the admin face send commands; [`super::Controller`] alone executes them.

use std::fmt;

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::Problem,
    status::{self, ReloadResult},
};

/// What the controller does for others.
pub enum Command {
    /// Read the file and do what it says.
    Reload {
        /// Why.
        trigger: Trigger,
        /// Who waits; nobody, if a signal or the watcher asks.
        reply: Option<Reply>,
    },
    /// Make a pool the active one, and write that into the file.
    Promote {
        /// Name of the service.
        service: String,
        /// Name of the pool.
        pool: String,
        /// Who waits.
        reply: Reply,
    },
}

/// Where an answer goes.
pub type Reply = oneshot::Sender<Result<Accepted, Refusal>>;

/// Why the file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Somebody asked for it.
    Asked,
    /// SIGHUP.
    Signal,
    /// The file has changed.
    FileChanged,
}

/// A command that was taken.
pub struct Accepted {
    /// `applied` or `unchanged`.
    pub result: ReloadResult,
    /// Number of the snapshot that serves.
    pub generation: u64,
    /// The swaps to wait for, by service.
    pub swaps: Vec<(String, watch::Receiver<status::Swap>)>,
}

/// A command that was not taken; nothing has changed.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// The file cannot be read, or something in it is wrong.
    Invalid(Vec<Problem>),
    /// The file changes what only a restart can change.
    StaticChanged(Vec<Problem>),
    /// No such service; these there are.
    UnknownService(String, Vec<String>),
    /// No such pool; these there are.
    UnknownPool(String, Vec<String>),
    /// The file cannot be written.
    NotWritable(String),
}

/// Where commands go.
pub type Commands = mpsc::Sender<Command>;

impl Refusal {
    /// Stable, kebab-case.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid-config",
            Self::StaticChanged(_) => "static-changed",
            Self::UnknownService(..) => "unknown-service",
            Self::UnknownPool(..) => "unknown-pool",
            Self::NotWritable(_) => "not-writable",
        }
    }

    /// What is wrong with the file, if that is it.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) | Self::StaticChanged(problems) => problems,
            _ => &[],
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(problems) | Self::StaticChanged(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                f.write_str(&problems.join("; "))
            }
            Self::UnknownService(name, known) => write!(f, "no service \"{name}\"; services are {}", known.join(", ")),
            Self::UnknownPool(name, known) => write!(f, "no pool \"{name}\"; pools are {}", known.join(", ")),
            Self::NotWritable(why) => {
                write!(f, "the configuration file cannot be written: {why}; edit it where it is kept, and the swap will follow")
            }
        }
    }
}
