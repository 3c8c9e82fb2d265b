//! The commands of the controller and its replies.
//!
//! Signals, the watcher and the admin API send commands; only [`super::Controller`] executes them.

use std::{fmt, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

use super::view::ServiceView;
use crate::{
    config::{Problem, nearest},
    status::{self, Cancelled, ReloadResult},
};

/// A request to the controller.
pub enum Command {
    /// Read and apply the file.
    Reload {
        /// The source of the command.
        trigger: Trigger,
        /// Channel for the reply; none for the watcher.
        reply: Option<Reply<Accepted>>,
    },
    /// Promote a pool, and write that into the file.
    Promote {
        /// The pool to promote.
        promotion: Promotion,
        /// Where the answer goes.
        reply: Reply<Accepted>,
    },
    /// Cancel the swap of a service that is being proven.
    Cancel {
        /// Name of the service.
        service: String,
        /// Where the answer goes.
        reply: Reply<Cancelled>,
    },
}

/// A pool to promote.
#[derive(Clone)]
pub struct Promotion {
    /// Name of the service.
    pub service: String,
    /// Name of the pool.
    pub pool: String,
    /// A valid version to write into the pool, if any.
    pub version: Option<String>,
    /// Time limit of the proof, instead of `promotion.ready_timeout`.
    pub timeout: Option<Duration>,
}

/// Channel for a reply.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// The source of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The admin API.
    AdminApi,
    /// SIGHUP.
    Signal,
    /// The file has changed.
    FileChanged,
}

/// A command that was accepted.
pub struct Accepted {
    /// `applied` or `unchanged`.
    pub result: ReloadResult,
    /// Number of the current snapshot.
    pub generation: u64,
    /// The services that the command concerns.
    pub targets: Vec<Target>,
}

/// A service that a command concerns.
pub struct Target {
    /// Name of the service.
    pub service: String,
    /// The pool that the command makes active; none if the service was removed from the file.
    pub pool: Option<String>,
    /// The swap to that pool; none if it already is active and no pool drains.
    pub swap: Option<watch::Receiver<status::Swap>>,
    /// The service before the change.
    pub(super) before: ServiceView,
}

/// A command that was rejected; nothing has changed.
#[derive(Clone, Debug)]
pub enum CommandError {
    /// The file cannot be read or is invalid.
    Invalid(Vec<Problem>),
    /// The file changes static values, which need a restart.
    StaticChanged(Vec<Problem>),
    /// Unknown service; with the known ones.
    UnknownService(String, Vec<String>),
    /// Unknown pool; with the known ones.
    UnknownPool(String, Vec<String>),
    /// The file cannot be written.
    NotWritable(String),
    /// No swap to cancel.
    NothingToCancel(String),
}

/// Channel to the controller.
pub type Commands = mpsc::Sender<Command>;

impl CommandError {
    /// The error code of the admin API; stable, kebab-case.
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

    /// The problems of the file, if these are the reason.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) | Self::StaticChanged(problems) => problems,
            _ => &[],
        }
    }
}

impl fmt::Display for CommandError {
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
                write!(f, "the configuration file cannot be written: {why}; edit it at its source instead, and the swap follows")
            }
            Self::NothingToCancel(why) => f.write_str(why),
        }
    }
}
