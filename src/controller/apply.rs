//! Executes commands: applies a reload, a promotion or a cancellation.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

use log::{info, warn};

use super::{
    Accepted, CommandError, Controller, Promotion, Service, Target, Trigger,
    promotion::Edit,
    service::{Change, Source},
    view::{LastReload, ServiceView},
};
use crate::{
    config::{self, Config, Problem},
    pool::Upstream,
    status::{Cancelled, ReloadResult},
};

/// The service of a promotion.
pub(super) struct Wanted {
    service: String,
    config: config::Service,
    source: Source,
}

/// The changes by a valid configuration.
pub(super) struct Changes {
    services: BTreeSet<String>,
    /// Settings outside of services, or removed services.
    common: bool,
}

impl Controller {
    pub(super) fn reload(&mut self, trigger: Trigger) -> Result<Accepted, CommandError> {
        let (text, config) = config::load(&self.path).map_err(|e| self.reject(CommandError::Invalid(e.problems)))?;
        self.check(&text, &config)?;
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
        Ok(Accepted { result, generation: self.generation, targets: targets.collect() })
    }

    pub(super) fn promote(&mut self, promotion: Promotion) -> Result<Accepted, CommandError> {
        let Promotion { service, pool, version, timeout } = promotion;
        let (text, config) = config::load(&self.path).map_err(|e| self.reject(CommandError::Invalid(e.problems)))?;
        self.check(&text, &config)?;
        let Some(known) = config.services.get(&service) else {
            return Err(CommandError::UnknownService(service, config.services.keys().cloned().collect()));
        };
        let Some(of_pool) = known.pools.get(&pool) else {
            return Err(CommandError::UnknownPool(pool, known.pools.keys().cloned().collect()));
        };
        let mut wanted = known.clone();
        let mut edit = None;
        if known.active != pool || (version.is_some() && version != of_pool.version) {
            let needed = Edit { service: service.clone(), pool: pool.clone(), version, base: known.clone() };
            let invalid = |text: &str, problems| CommandError::Invalid(self.placed(text, problems));
            let after = needed.applied_to(&text).map_err(|problems| invalid(&text, problems))?;
            let after = config::parse_in(self.folder(), &after).map_err(|problems| invalid(&after, problems))?;
            wanted = after.services.get(&service).unwrap_or(known).clone();
            config::write::check_writable(&self.path).map_err(|e| CommandError::NotWritable(e.to_string()))?;
            edit = Some(Box::new(needed));
        }
        let wanted = Wanted { service: service.clone(), config: wanted, source: Source::Promotion { edit, timeout } };
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
    pub(super) fn take_in_written(&mut self, text: String, config: Config) {
        let accepted = self.check(&text, &config).is_ok();
        self.written.send_replace(text);
        if accepted && self.apply(config, None).any() {
            info!("configuration reloaded result=applied generation={}", self.generation);
            self.reloaded(ReloadResult::Applied, Vec::new());
        }
    }

    /// Rejects a valid configuration that changes static values or has unusable files.
    fn check(&mut self, text: &str, config: &Config) -> Result<(), CommandError> {
        let problems = config::diff::static_changes(&self.config, config);
        if !problems.is_empty() {
            return Err(self.reject(CommandError::StaticChanged(self.placed(text, problems))));
        }
        let changed = |name: &String, service: &config::Service| {
            self.config.services.get(name).is_none_or(|known| known.upstream != service.upstream)
        };
        let unreadable = |(name, service): (&String, &config::Service)| {
            let e = Upstream::new(service.upstream.clone(), self.folder()).refresh().err()?;
            let reason = e.strip_prefix("upstream.tls.ca: ").unwrap_or(&e).to_owned();
            Some(Problem::new(&format!("services.{name}.upstream.tls.ca"), reason))
        };
        let services = config.services.iter().filter(|(name, service)| changed(name, service));
        let problems: Vec<Problem> = services.filter_map(unreadable).collect();
        if problems.is_empty() { Ok(()) } else { Err(self.reject(CommandError::Invalid(self.placed(text, problems)))) }
    }

    /// Accepts a valid configuration. Services that need no proof are published at once, in one store.
    pub(super) fn apply(&mut self, config: Config, mut promoted: Option<Wanted>) -> Changes {
        let now = Instant::now();
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

    fn reject(&mut self, error: CommandError) -> CommandError {
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

    /// Adds the file, line and column to problems.
    fn placed(&self, text: &str, mut problems: Vec<Problem>) -> Vec<Problem> {
        config::place(&self.path, text, &mut problems);
        problems
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

impl Changes {
    pub(super) fn any(&self) -> bool {
        self.common || !self.services.is_empty()
    }
}
