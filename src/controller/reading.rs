//! The read of the files that a reload or a promotion needs: the configuration, its error pages, and the CA files of its peers.
//!
//! Files can be on a slow disk or on a network file system that hangs. Therefore a blocking thread reads them, while the
//! controller continues to probe, promote and drain. Commands are executed one at a time, in their order, so the next commands
//! wait; none of them waits for longer than [`LIMIT`] for one read or write.

use std::{
    future::pending,
    path::Path,
    time::{Duration, Instant},
};

use tokio::task::{JoinHandle, spawn_blocking};

use super::{Command, CommandError, Promotion, apply::Wanted, promotion::Edit, service::Source};
use crate::{
    certificate,
    config::{self, Config, Problem},
    hooks::read_secret,
};

/// How long a command waits for one read or write. The files are small, so a disk that takes longer is stuck.
const LIMIT: Duration = Duration::from_secs(10);

/// The valid configuration in the file.
pub(super) struct Read {
    pub config: Config,
    /// The service of a promotion, or why it cannot be promoted.
    pub promoted: Option<Result<Wanted, CommandError>>,
}

/// The outcome of a read. The error rejects the file.
pub(super) type Outcome = Result<Read, CommandError>;

/// A read on a blocking thread.
pub(super) type Reading = JoinHandle<Outcome>;

/// The command that is being executed.
pub(super) struct Waiting {
    pub command: Command,
    /// When it is answered with an error.
    pub deadline: Instant,
    /// The read; none while a write has to end first.
    pub reading: Option<Reading>,
}

impl Waiting {
    /// `writing` is the begin of the write that has to end first.
    pub(super) fn new(command: Command, writing: Option<Instant>) -> Self {
        Self { command, deadline: writing.unwrap_or_else(Instant::now) + LIMIT, reading: None }
    }

    /// Begins to read the files. `known` is the last accepted configuration.
    pub(super) fn begin(&mut self, path: &Path, known: &Config) {
        let promotion = match &self.command {
            Command::Promote { promotion, .. } => Some(promotion.clone()),
            Command::Reload { .. } | Command::Cancel { .. } => None,
        };
        let (path, known) = (path.to_path_buf(), known.clone());
        self.deadline = Instant::now() + LIMIT;
        self.reading = Some(spawn_blocking(move || read(&path, &known, promotion)));
    }
}

/// Waits for the outcome of the read; forever if there is none.
pub(super) async fn outcome(waiting: &mut Option<Waiting>) -> Outcome {
    match waiting.as_mut().and_then(|waiting| waiting.reading.as_mut()) {
        Some(reading) => reading.await.unwrap_or_else(|e| {
            Err(CommandError::Invalid(vec![Problem::new("", format!("the read of the file ended early: {e}"))]))
        }),
        None => pending().await,
    }
}

/// Waits for the end of a read whose command was answered at its deadline; forever if there is none.
pub(super) async fn ended(stuck: &mut Option<Reading>) {
    match stuck {
        // The outcome is out of date: another command may have been executed since.
        Some(reading) => drop(reading.await),
        None => pending().await,
    }
}

/// The problem of a file that is read or written for too long; `what` is `reading` or `writing`.
pub(super) fn too_slow(path: &Path, what: &str) -> Problem {
    let limit = LIMIT.as_secs();
    let message = format!("{what} has not ended after {limit} s; check the disk or network file system that holds the file");
    Problem { file: path.display().to_string(), ..Problem::new("", message) }
}

fn read(path: &Path, known: &Config, promotion: Option<Promotion>) -> Outcome {
    let (text, config) = config::load(path).map_err(|e| CommandError::Invalid(e.problems))?;
    check(path, known, &text, &config)?;
    let promoted = promotion.map(|promotion| prepare(path, &text, &config, promotion));
    Ok(Read { config, promoted })
}

/// Rejects a valid configuration that changes static values or has unusable CA files or an unusable secret.
pub(super) fn check(path: &Path, known: &Config, text: &str, config: &Config) -> Result<(), CommandError> {
    let problems = config::diff::static_changes(known, config);
    if !problems.is_empty() {
        return Err(CommandError::StaticChanged(placed(path, text, problems)));
    }
    let changed = |name: &String, service: &config::Service| {
        known.services.get(name).is_none_or(|known| known.upstream != service.upstream)
    };
    let unreadable = |(name, service): (&String, &config::Service)| {
        let ca = service.upstream.tls.as_ref()?.ca.as_ref()?;
        let reason = certificate::authorities(&config::folder(path).join(ca)).err()?;
        Some(Problem::new(&format!("services.{name}.upstream.tls.ca"), reason))
    };
    let services = config.services.iter().filter(|(name, service)| changed(name, service));
    let mut problems: Vec<Problem> = services.filter_map(unreadable).collect();
    if let Some(file) = config.notify.as_ref().filter(|_| config.notify != known.notify).and_then(|to| to.secret_file.as_ref())
        && let Err(reason) = read_secret(&config::folder(path).join(file))
    {
        problems.push(Problem::new("notify.secret_file", reason));
    }
    if problems.is_empty() { Ok(()) } else { Err(CommandError::Invalid(placed(path, text, problems))) }
}

/// Prepares the promotion: the wanted service, and the edit that the file needs.
fn prepare(path: &Path, text: &str, config: &Config, promotion: Promotion) -> Result<Wanted, CommandError> {
    let Promotion { service, pool, version, timeout } = promotion;
    let Some(known) = config.services.get(&service) else {
        return Err(CommandError::UnknownService(service, config.services.keys().cloned().collect()));
    };
    let Some(of_pool) = known.pools.get(&pool) else {
        return Err(CommandError::UnknownPool(pool, known.pools.keys().cloned().collect()));
    };
    let mut wanted = known.clone();
    let mut edit = None;
    if known.active != pool || (version.is_some() && version != of_pool.version) {
        let needed = Edit { service: service.clone(), pool, version, base: known.clone() };
        let invalid = |text: &str, problems| CommandError::Invalid(placed(path, text, problems));
        let after = needed.applied_to(text).map_err(|problems| invalid(text, problems))?;
        let after = config::parse_in(config::folder(path), &after).map_err(|problems| invalid(&after, problems))?;
        wanted = after.services.get(&service).unwrap_or(known).clone();
        config::write::check_writable(path).map_err(|e| CommandError::NotWritable(e.to_string()))?;
        edit = Some(Box::new(needed));
    }
    Ok(Wanted { service, config: wanted, source: Source::Promotion { edit, timeout } })
}

/// Adds the file, line and column to problems.
fn placed(path: &Path, text: &str, mut problems: Vec<Problem>) -> Vec<Problem> {
    config::place(path, text, &mut problems);
    problems
}
