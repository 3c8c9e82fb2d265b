//! The edit of the file that belongs to `promote`: prepared with the command, written when the new pool is proven.
//!
//! If it were written first, a pool that never becomes ready would be active after a restart, and a failed release would leave
//! its edit behind. Other edits that were saved meanwhile are kept. The write may wait for a slow disk, so it runs on a blocking
//! thread: see [`Writing`].

use std::{path::Path, time::Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::{CommandError, reading};
use crate::{
    config::{
        self, Config, Problem, edit,
        write::{self, WriteError},
    },
    status::Outcome,
};

/// The edit of one promotion.
#[derive(Clone)]
pub(super) struct Edit {
    pub service: String,
    pub pool: String,
    pub version: Option<String>,
    /// The service in the file at the time of the command.
    pub base: config::Service,
}

/// An edit that is being written.
pub(super) struct Writing {
    pub service: String,
    pub began: Instant,
    task: JoinHandle<Result<Written, (Outcome, String)>>,
}

/// A file that was written.
pub(super) struct Written {
    /// Its new text.
    pub text: String,
    /// The parsed text, with edits that others saved since the command.
    pub config: Config,
    /// Whether it can be applied.
    pub usable: Result<(), CommandError>,
}

impl Edit {
    /// Begins to write the file. `running` is the running configuration, whose static values the file must not change.
    pub(super) fn write(self, path: &Path, running: &Config) -> Writing {
        let (service, path, running) = (self.service.clone(), path.to_path_buf(), running.clone());
        Writing { service, began: Instant::now(), task: spawn_blocking(move || self.commit(&path, &running)) }
    }

    fn commit(&self, path: &Path, running: &Config) -> Result<Written, (Outcome, String)> {
        let outcome = write::update(path, |text| self.change(path, running, text));
        outcome.map_err(|failure| match failure {
            WriteError::Invalid(reason) => (Outcome::Superseded, format!("{} is not valid any more: {reason}", path.display())),
            WriteError::Overtaken(reason) => (Outcome::Superseded, reason),
            WriteError::Io(e) => (Outcome::NotReady, format!("cannot write {}: {e}", path.display())),
        })
    }

    fn change(&self, path: &Path, running: &Config, text: &str) -> Result<(String, Written), WriteError> {
        let invalid = |problems: Vec<Problem>| WriteError::Invalid(list(&problems));
        let folder = config::folder(path);
        let before = config::parse_in(folder, text).map_err(invalid)?;
        let fixed = config::diff::static_changes(running, &before);
        if !fixed.is_empty() {
            return Err(WriteError::Overtaken(list(&fixed)));
        }
        if before.services.get(&self.service) != Some(&self.base) {
            return Err(WriteError::Overtaken("the service was changed in the file during the promotion".to_owned()));
        }
        let text = self.applied_to(text).map_err(invalid)?;
        let config = config::parse_in(folder, &text).map_err(invalid)?;
        let usable = reading::check(path, running, &text, &config);
        Ok((text.clone(), Written { text, config, usable }))
    }

    /// Applies the edit to a text.
    pub(super) fn applied_to(&self, text: &str) -> Result<String, Vec<Problem>> {
        edit::promote(text, &self.service, &self.pool, self.version.as_deref())
    }
}

impl Writing {
    /// Waits for the outcome.
    pub(super) async fn outcome(&mut self) -> Result<Written, (Outcome, String)> {
        (&mut self.task).await.unwrap_or_else(|e| Err((Outcome::NotReady, format!("the write ended early: {e}"))))
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
