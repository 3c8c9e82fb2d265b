//! Stores the active pool of each service in a small file, across restarts.
//!
//! The configuration file names the wanted pool. If that pool failed its proof, a restart needs the pool that served instead;
//! this file has no other purpose. The controller passes the active pools; a separate task writes them, so that a slow disk
//! delays nothing.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use log::{info, warn};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
};

use crate::{config::write::replace_own, status::StateDir};

/// The file in `state_dir`; each line has a service and its pool.
const FILE: &str = "served-last";

/// The active pool of each service.
pub(super) type Pools = BTreeMap<String, String>;

/// The stored pools, and the channel to the task that writes them.
pub(super) struct Memory {
    folder: PathBuf,
    pub last: Pools,
    pools: watch::Sender<Pools>,
    problem: watch::Receiver<Option<String>>,
}

impl Memory {
    /// Reads the file, and starts the task that writes changes. `changed` wakes the controller. Never fails: problems are logged
    /// and shown in the status.
    pub(super) fn open(folder: PathBuf, changed: Arc<Notify>) -> Self {
        let file = folder.join(FILE);
        let (last, problem) = match fs::read_to_string(&file) {
            Ok(text) => (parse(&text), None),
            Err(e) if e.kind() == ErrorKind::NotFound => (Pools::new(), None),
            Err(e) => (Pools::new(), Some(e.to_string())),
        };
        let text = format(&last);
        let problem = problem.or_else(|| replace_own(&file, &text).err().map(|e| e.to_string()));
        match &problem {
            None => info!("recording the active pools file={}", file.display()),
            Some(e) => warn!("cannot record the active pools file={} reason={e}", file.display()),
        }
        let (pools, receiver) = watch::channel(last.clone());
        let (problems, problem) = watch::channel(problem);
        tokio::spawn(write(file, receiver, problems, changed));
        Self { folder, last, pools, problem }
    }

    /// Stores the pools that serve now.
    pub(super) fn remember(&self, pools: Pools) {
        self.pools.send_if_modified(|known| {
            let changed = *known != pools;
            *known = pools;
            changed
        });
    }

    pub(super) fn status(&self) -> StateDir {
        StateDir { path: self.folder.display().to_string(), problem: self.problem.borrow().clone() }
    }
}

async fn write(file: PathBuf, mut pools: watch::Receiver<Pools>, problems: watch::Sender<Option<String>>, changed: Arc<Notify>) {
    while pools.changed().await.is_ok() {
        let text = format(&pools.borrow_and_update());
        let path = file.clone();
        let outcome = spawn_blocking(move || replace_own(&path, &text)).await;
        let problem = match outcome {
            Ok(outcome) => outcome.err().map(|e| e.to_string()),
            Err(e) => Some(e.to_string()),
        };
        if problems.send_if_modified(|known| {
            let news = known.is_some() != problem.is_some();
            known.clone_from(&problem);
            news
        }) {
            report(&file, problem.as_deref());
            changed.notify_one();
        }
    }
}

fn report(file: &Path, problem: Option<&str>) {
    match problem {
        None => info!("recording the active pools again file={}", file.display()),
        Some(e) => warn!("cannot record the active pools file={} reason={e}", file.display()),
    }
}

/// Skips invalid lines; without a stored pool a service starts with the pool of the configuration.
fn parse(text: &str) -> Pools {
    let line = |line: &str| line.split_once(' ').map(|(service, pool)| (service.to_owned(), pool.trim().to_owned()));
    text.lines().filter_map(line).collect()
}

fn format(pools: &Pools) -> String {
    pools.iter().map(|(service, pool)| format!("{service} {pool}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nonsense_is_left_out() {
        let pools = Pools::from([("api".to_owned(), "one".to_owned()), ("shop".to_owned(), "blue".to_owned())]);
        assert_eq!(parse(&format(&pools)), pools);
        assert_eq!(parse("shop blue\r\nnonsense\n\n\u{0}"), Pools::from([("shop".to_owned(), "blue".to_owned())]));
    }
}
