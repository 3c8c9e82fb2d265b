//! What the controller can be asked, and what it answers.
//!
//! Signals, the watcher and the admin API send commands; [`super::Controller`] alone executes them.

use std::{fmt, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::{Problem, nearest},
    status::{self, Cancelled, ReloadResult},
};

/// What the controller does for others.
pub enum Command {
    /// Read the file and apply it.
    Reload {
        /// Why.
        trigger: Trigger,
        /// Where the answer goes; none for a signal or the watcher.
        reply: Option<Reply<Accepted>>,
    },
    /// Make a pool the active one, and write that into the file.
    Promote {
        /// What to promote.
        promotion: Promotion,
        /// Where the answer goes.
        reply: Reply<Accepted>,
    },
    /// Give up the swap of a service that is being proven.
    Cancel {
        /// Name of the service.
        service: String,
        /// Where the answer goes.
        reply: Reply<Cancelled>,
    },
}

/// A pool to promote.
pub struct Promotion {
    /// Name of the service.
    pub service: String,
    /// Name of the pool.
    pub pool: String,
    /// What to write as the pool's version; it has to be a valid one.
    pub version: Option<String>,
    /// How long it may take to be proven, instead of `promotion.ready_timeout`.
    pub timeout: Option<Duration>,
}

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Why the file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The admin API.
    Asked,
    /// SIGHUP.
    Signal,
    /// The file has changed.
    FileChanged,
}

/// A command that was accepted.
pub struct Accepted {
    /// `applied` or `unchanged`.
    pub result: ReloadResult,
    /// Number of the snapshot that serves.
    pub generation: u64,
    /// The services that the command is about.
    pub targets: Vec<Target>,
}

/// A service that a command is about.
pub struct Target {
    /// Name of the service.
    pub service: String,
    /// The pool that the command wants to serve.
    pub pool: String,
    /// The swap that leads there; none if the pool serves already and nothing drains.
    pub swap: Option<watch::Receiver<status::Swap>>,
}

/// A command that was refused; nothing has changed.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// The file cannot be read, or something in it is wrong.
    Invalid(Vec<Problem>),
    /// The file changes what only a restart can change.
    StaticChanged(Vec<Problem>),
    /// No such service; these exist.
    UnknownService(String, Vec<String>),
    /// No such pool; these exist.
    UnknownPool(String, Vec<String>),
    /// The file cannot be written.
    NotWritable(String),
    /// No swap that could be given up.
    NothingToCancel(String),
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
            Self::NothingToCancel(_) => "nothing-to-cancel",
        }
    }

    /// What is wrong with the file, if that is the reason.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) | Self::StaticChanged(problems) => problems,
            _ => &[],
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = |what: &str, name: &str, known: &[String]| {
            let hint = nearest(name, known.iter().map(String::as_str));
            format!("no {what} \"{name}\"; {what}s are {}{hint}", known.join(", "))
        };
        match self {
            Self::Invalid(problems) | Self::StaticChanged(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                f.write_str(&problems.join("; "))
            }
            Self::UnknownService(name, known) => f.write_str(&unknown("service", name, known)),
            Self::UnknownPool(name, known) => f.write_str(&unknown("pool", name, known)),
            Self::NotWritable(why) => {
                write!(f, "the configuration file cannot be written: {why}; edit it where it is kept, and the swap will follow")
            }
            Self::NothingToCancel(why) => f.write_str(why),
        }
    }
}
