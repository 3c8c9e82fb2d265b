//! Executes commands: applies a reload, a promotion or a cancellation. Never reads a file: see `reading`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use log::{info, warn};

use super::{
    Accepted, Command, CommandError, Controller, Reply, Service, Target, Trigger,
    promotion::Written,
    reading::{self, Read, Waiting},
    service::{Change, Source},
    view::{LastReload, ServiceView},
};
use crate::{
    config::{self, Config, Problem},
    status::{Cancelled, ReloadResult},
};

/// The service of a promotion.
pub(super) struct Wanted {
    pub service: String,
    pub config: config::Service,
    pub source: Source,
}

/// The changes by a valid configuration.
pub(super) struct Changes {
    services: BTreeSet<String>,
    /// Settings outside of services, or removed services.
    common: bool,
}

impl Controller {
    /// Accepts the next command.
    pub(super) fn wait(&mut self, command: Command) {
        self.waiting = Some(Waiting::new(command, self.writing.as_ref().map(|writing| writing.began)));
    }

    /// Begins the waiting command if no write has to end first. Answers it with an error at its deadline.
    pub(super) fn proceed(&mut self) {
        let Some(mut waiting) = self.waiting.take() else { return };
        match waiting.command {
            Command::Cancel { service, reply } if self.writing.is_none() => {
                let outcome = self.cancel(&service);
                self.answer(reply, outcome);
            }
            Command::Reload { .. } | Command::Promote { .. } if self.stuck.is_some() => self.expire(waiting),
            _ if Instant::now() >= waiting.deadline => self.expire(waiting),
            _ => {
                if self.writing.is_none() && waiting.reading.is_none() {
                    waiting.begin(&self.path, &self.config);
                }
                self.waiting = Some(waiting);
            }
        }
    }

    /// Answers a command that has waited for too long. Its read continues, because a blocked thread cannot be stopped.
    fn expire(&mut self, waiting: Waiting) {
        let what = if self.writing.is_some() && self.stuck.is_none() { "writing" } else { "reading" };
        let problem = reading::too_slow(&self.path, what);
        if waiting.reading.is_some() {
            self.stuck = waiting.reading;
        }
        match waiting.command {
            Command::Cancel { reply, .. } => self.answer(reply, Err(CommandError::NothingToCancel(problem.to_string()))),
            Command::Reload { reply, .. } => {
                let error = self.reject(CommandError::Invalid(vec![problem]));
                self.reply(reply, Err(error));
            }
            Command::Promote { reply, .. } => {
                let error = self.reject(CommandError::Invalid(vec![problem]));
                self.answer(reply, Err(error));
            }
        }
    }

    /// Reads the file again after a read that outlasted its deadline: it may have an edit that the commands since did not read.
    pub(super) fn read_again(&mut self) {
        self.stuck = None;
        self.wait(Command::Reload { trigger: Trigger::FileChanged, reply: None });
    }

    /// Executes the waiting command with the file that was read for it.
    pub(super) fn execute(&mut self, outcome: reading::Outcome) {
        let Some(Waiting { command, .. }) = self.waiting.take() else { return };
        let read = outcome.map_err(|e| self.reject(e));
        match command {
            Command::Reload { trigger, reply } => {
                let outcome = read.map(|read| self.reload(read.config, trigger));
                self.reply(reply, outcome);
            }
            Command::Promote { reply, .. } => {
                let outcome = read.and_then(|read| self.promote(read));
                self.answer(reply, outcome);
            }
            // Reads nothing.
            Command::Cancel { .. } => {}
        }
    }

    fn reply(&mut self, reply: Option<Reply<Accepted>>, outcome: Result<Accepted, CommandError>) {
        if let Some(reply) = reply {
            self.answer(reply, outcome);
        }
    }

    pub(super) fn reload(&mut self, config: Config, trigger: Trigger) -> Accepted {
        let changes = self.apply(config, None);
        let result = if changes.any() { ReloadResult::Applied } else { ReloadResult::Unchanged };
        // The watcher also reports edits that change no value.
        let silent = trigger == Trigger::FileChanged && !changes.any() && self.last_reload.problems.is_empty();
        if !silent {
            info!("configuration reloaded result={} generation={}", result.label(), self.generation);
            self.reloaded(result, Vec::new());
        }
        // The services of the last change, even if the watcher applied it before this command. Excludes unrelated swaps and
        // configurations that failed before.
        let targets = self.last_change.iter().filter_map(|(name, before)| {
            let service = self.services.get(name);
            let in_file = self.config.services.contains_key(name);
            let pool = if in_file { Some(service?.follows_file()?.to_owned()) } else { None };
            let swap = service.and_then(Service::current_swap);
            Some(Target { service: name.clone(), pool, swap, before: before.clone() })
        });
        Accepted { result, generation: self.generation, targets: targets.collect() }
    }

    pub(super) fn promote(&mut self, read: Read) -> Result<Accepted, CommandError> {
        let Read { config, promoted } = read;
        let Some(wanted) = promoted.transpose()? else { return Ok(self.reload(config, Trigger::AdminApi)) };
        let (service, pool) = (wanted.service.clone(), wanted.config.active.clone());
        let changes = self.apply(config, Some(wanted));
        if changes.common || changes.services.iter().any(|name| *name != service) {
            // The watcher has not reported them yet.
            self.reloaded(ReloadResult::Applied, Vec::new());
        }
        let result = if changes.services.contains(&service) { ReloadResult::Applied } else { ReloadResult::Unchanged };
        let target = self.services.get(&service).map(|of| {
            // A pool that served before this command still drains.
            Target { service, pool: Some(pool), swap: of.current_swap(), before: of.view() }
        });
        Ok(Accepted { result, generation: self.generation, targets: target.into_iter().collect() })
    }

    pub(super) fn cancel(&mut self, name: &str) -> Result<Cancelled, CommandError> {
        let Some(service) = self.services.get_mut(name) else {
            return Err(CommandError::UnknownService(name.to_owned(), self.services.keys().cloned().collect()));
        };
        service.cancel(Instant::now()).map_err(CommandError::NothingToCancel)
    }

    /// Applies the written file like a reload, because it may have further edits that others saved.
    pub(super) fn take_in_written(&mut self, Written { text, config, usable }: Written) {
        self.written.send_replace(text);
        if let Err(e) = usable {
            self.reject(e);
        } else if self.apply(config, None).any() {
            info!("configuration reloaded result=applied generation={}", self.generation);
            self.reloaded(ReloadResult::Applied, Vec::new());
        }
    }

    /// Accepts a valid configuration. Services that need no proof are published at once, in one store.
    pub(super) fn apply(&mut self, config: Config, mut promoted: Option<Wanted>) -> Changes {
        let now = Instant::now();
        // Before the first event that it causes.
        self.deps.notifier.configure(config.notify.as_ref());
        let mut changed = BTreeMap::new();
        let mut ready = Vec::new();
        for (name, in_file) in &config.services {
            let service = self.services.entry(name.clone()).or_insert_with(|| Service::new(name, Arc::clone(&self.deps)));
            let (wanted, source) = match promoted.take_if(|promoted| promoted.service == *name) {
                Some(promoted) => (promoted.config, promoted.source),
                None => (in_file.clone(), Source::File),
            };
            let before = service.view();
            let change = service.apply(wanted, source, now);
            if change != Change::Unchanged {
                changed.insert(name.clone(), before);
            }
            if change == Change::Publish {
                ready.push(name.clone());
            }
        }
        let leaves =
            |(name, service): &(&String, &Service)| !config.services.contains_key(*name) && service.published().is_some();
        let removed = self.services.iter().filter(leaves).map(|(name, service)| (name.clone(), service.view()));
        let removed: BTreeMap<String, ServiceView> = removed.collect();
        let common = config.trusted_proxies != self.config.trusted_proxies
            || config.tracing != self.config.tracing
            || config.notify != self.config.notify
            || config.shutdown_timeout != self.config.shutdown_timeout
            || !removed.is_empty();
        self.config = config;
        if common || !ready.is_empty() {
            self.publish(&ready, now);
        }
        let services = changed.keys().cloned().collect();
        if common || !changed.is_empty() {
            changed.extend(removed);
            self.last_change = changed;
        }
        Changes { services, common }
    }

    pub(super) fn reject(&mut self, error: CommandError) -> CommandError {
        let (result, problems) = match &error {
            CommandError::StaticChanged(problems) => (ReloadResult::StaticChanged, problems),
            CommandError::Invalid(problems) => (ReloadResult::Invalid, problems),
            _ => return error,
        };
        warn!("configuration rejected; the previous one stays in use result={} problems={error}", result.label());
        let problems = problems.clone();
        self.reloaded(result, problems);
        error
    }

    pub(super) fn reloaded(&mut self, result: ReloadResult, problems: Vec<Problem>) {
        self.deps.metrics.reloaded(result.label(), problems.is_empty());
        self.last_reload = LastReload { result, at: std::time::SystemTime::now(), problems };
    }
}

impl Changes {
    pub(super) fn any(&self) -> bool {
        self.common || !self.services.is_empty()
    }
}
