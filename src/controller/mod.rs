//! The only writer: every edit, signal and command ends here as a [`Command`], and every snapshot begins here.
//!
//! One task. It reads the file, diffs, prepares, proves, promotes and drains (docs/architecture.md has the picture), publishes
//! a [`View`] after each step and answers who waits. Requests never wait for it, and it knows neither the proxy, nor the admin
//! face, nor the watcher.

mod command;
mod edit;
mod peers;
mod service;
mod swap;
mod view;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use log::{error, info, warn};
use pingora::connectors::http::Connector;
use tokio::sync::{Notify, mpsc, watch};

pub use self::{
    command::{Accepted, Command, Commands, Refusal, Reply, Trigger},
    view::View,
};
use self::{
    edit::{Edit, Refused},
    peers::Means,
    service::{Service, Taken, Why},
    view::LastReload,
};
use crate::{
    config::{self, Config, Problem},
    metrics::Metrics,
    route::RouteTable,
    snapshot::{Snapshot, SnapshotCell},
    status::{Outcome, ReloadResult},
};

/// Commands that may wait for the controller: more only if somebody floods it.
const QUEUE: usize = 64;

/// The only writer.
pub struct Controller {
    path: PathBuf,
    config: Config,
    services: BTreeMap<String, Service>,
    snapshot: Arc<SnapshotCell>,
    generation: u64,
    means: Arc<Means>,
    commands: mpsc::Receiver<Command>,
    last_reload: LastReload,
    settled: bool,
    views: watch::Sender<Arc<View>>,
    written: watch::Sender<String>,
}

/// What others need of a controller.
pub struct Handles {
    /// Where commands go.
    pub commands: Commands,
    /// What it shows.
    pub view: watch::Receiver<Arc<View>>,
    /// The text that it began with, then each that it wrote into the file.
    pub written: watch::Receiver<String>,
}

impl Controller {
    /// Begins with a valid configuration; must be called within a Tokio runtime, which probes will run on.
    pub fn new(
        path: PathBuf,
        text: String,
        config: Config,
        snapshot: Arc<SnapshotCell>,
        metrics: Arc<Metrics>,
    ) -> (Self, Handles) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let means = Means { metrics, connector: Arc::new(Connector::new(None)), folder, changed: Arc::new(Notify::new()) };
        let last_reload = LastReload { result: ReloadResult::Applied, at: SystemTime::now(), problems: Vec::new() };
        let view = View {
            generation: 0,
            settled: false,
            file: path.display().to_string(),
            last_reload: last_reload.clone(),
            services: Vec::new(),
            shutdown_timeout: config.shutdown_timeout,
        };
        let (views, view) = watch::channel(Arc::new(view));
        let (written, texts) = watch::channel(text);
        let mut controller = Self {
            path,
            config: config.clone(),
            services: BTreeMap::new(),
            snapshot,
            generation: 0,
            means: Arc::new(means),
            commands,
            last_reload,
            settled: false,
            views,
            written,
        };
        // A start is a change from nothing.
        controller.apply(config, None);
        controller.reloaded(ReloadResult::Applied, Vec::new());
        controller.show();
        (controller, Handles { commands: sender, view, written: texts })
    }

    /// Runs until nobody can send commands any more.
    pub async fn run(mut self) {
        let changed = Arc::clone(&self.means.changed);
        loop {
            let deadline = self.services.values().filter_map(Service::next_deadline).min();
            let time_alone = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.execute(command),
                    None => return,
                },
                () = changed.notified() => {}
                () = time_alone => {}
            }
            self.advance();
            self.show();
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Reload { trigger, reply } => {
                let outcome = self.reload(trigger);
                if let Some(reply) = reply {
                    answer(reply, outcome);
                }
            }
            Command::Promote { service, pool, reply } => {
                let outcome = self.promote(&service, &pool);
                answer(reply, outcome);
            }
        }
    }

    fn reload(&mut self, trigger: Trigger) -> Result<Accepted, Refusal> {
        let (text, config) = match config::load(&self.path) {
            Ok(loaded) => loaded,
            Err(e) => return Err(self.refuse(Refusal::Invalid(e.problems))),
        };
        self.check_static(&text, &config)?;
        let accepted = self.apply(config, None);
        let silent =
            trigger == Trigger::FileChanged && accepted.result == ReloadResult::Unchanged && self.last_reload.problems.is_empty();
        if !silent {
            info!("configuration read result={} generation={}", accepted.result.label(), self.generation);
            self.reloaded(accepted.result, Vec::new());
        }
        Ok(accepted)
    }

    fn promote(&mut self, service: &str, pool: &str) -> Result<Accepted, Refusal> {
        let (before, config) = config::load(&self.path).map_err(|e| self.refuse(Refusal::Invalid(e.problems)))?;
        self.check_static(&before, &config)?;
        let Some(known) = config.services.get(service) else {
            return Err(Refusal::UnknownService(service.to_owned(), config.services.keys().cloned().collect()));
        };
        if !known.pools.contains_key(pool) {
            return Err(Refusal::UnknownPool(pool.to_owned(), known.pools.keys().cloned().collect()));
        }
        let mut edit = None;
        let mut wanted = config.clone();
        if known.active != pool {
            let invalid = |text: &str, mut problems: Vec<Problem>| {
                config::place(&self.path, text, &mut problems);
                Refusal::Invalid(problems)
            };
            let after = config::edit::set_active(&before, service, pool).map_err(|problems| invalid(&before, problems))?;
            let folder = self.path.parent().unwrap_or(Path::new(""));
            wanted = config::parse_in(folder, &after).map_err(|problems| invalid(&after, problems))?;
            config::edit::check_writable(&self.path).map_err(|e| Refusal::NotWritable(e.to_string()))?;
            let base = known.clone();
            edit = Some(Box::new(Edit { path: self.path.clone(), service: service.to_owned(), pool: pool.to_owned(), base }));
        }
        Ok(self.apply(wanted, Some((service, edit))))
    }

    fn check_static(&mut self, text: &str, config: &Config) -> Result<(), Refusal> {
        let mut problems = config::diff::static_changes(&self.config, config);
        config::place(&self.path, text, &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(self.refuse(Refusal::StaticChanged(problems))) }
    }

    /// Takes in a valid configuration: what needs no proof is published at once, in one store. `promoted` is the service that
    /// a promotion is about, with the change of the file that it needs.
    fn apply(&mut self, config: Config, mut promoted: Option<(&str, Option<Box<Edit>>)>) -> Accepted {
        let now = Instant::now();
        let mut changed = false;
        let mut ready = Vec::new();
        for (name, wanted) in &config.services {
            let service = self.services.entry(name.clone()).or_insert_with(|| Service::new(name, Arc::clone(&self.means)));
            let why = match promoted.take_if(|(of, _)| of == name) {
                Some((_, edit)) => Why::Promotion(edit),
                None => Why::File,
            };
            let taken = service.want(wanted.clone(), why, now);
            changed |= taken != Taken::Unchanged;
            if taken == Taken::Publish {
                ready.push(name.clone());
            }
        }
        let common = config.trusted_proxies != self.config.trusted_proxies
            || config.tracing != self.config.tracing
            || config.shutdown_timeout != self.config.shutdown_timeout;
        let leaves = |(name, service): (&String, &Service)| !config.services.contains_key(name) && service.published().is_some();
        let common = common || self.services.iter().any(leaves);
        changed |= common;
        self.config = config;
        self.write_edits(&mut ready, now);
        if common || !ready.is_empty() {
            self.publish(&ready, now);
        }
        let names = self.config.services.keys();
        let swaps = names.filter_map(|name| Some((name.clone(), self.services.get(name)?.current_swap()?))).collect();
        let result = if changed { ReloadResult::Applied } else { ReloadResult::Unchanged };
        Accepted { result, generation: self.generation, swaps }
    }

    /// Moves every service on; publishes those that have proven themselves.
    fn advance(&mut self) {
        let now = Instant::now();
        let mut proven: Vec<String> =
            self.services.iter_mut().filter_map(|(name, service)| service.advance(now).then(|| name.clone())).collect();
        self.write_edits(&mut proven, now);
        if !proven.is_empty() {
            self.publish(&proven, now);
            self.services.values_mut().for_each(|service| {
                service.advance(now);
            });
        }
        self.services.retain(|_, service| !service.is_gone());
    }

    /// Writes the changes of the file that go with what is about to be published; what cannot be written is not published.
    fn write_edits(&mut self, ready: &mut Vec<String>, now: Instant) {
        ready.retain(|name| {
            let Some(service) = self.services.get_mut(name) else { return false };
            let Some(edit) = service.take_edit() else { return true };
            let (outcome, reason) = match edit.commit() {
                Ok(text) => {
                    self.written.send_replace(text);
                    return true;
                }
                // The watcher sees what it was changed to.
                Err(Refused::Overtaken) => {
                    (Outcome::Superseded, "the service was changed in the file in the meantime".to_owned())
                }
                Err(Refused::Io(e)) => (Outcome::NotReady, format!("cannot write {}: {e}", self.path.display())),
            };
            error!("nothing is promoted service={name} reason={reason}");
            service.give_up(outcome, Some(reason), now);
            false
        });
    }

    /// The only visible moment. Peers open before it, so that who sees the new snapshot finds them open; peers close after it,
    /// so that who finds them closed finds a newer snapshot.
    fn publish(&mut self, ready: &[String], now: Instant) {
        self.services.iter_mut().filter(|(name, _)| ready.contains(name)).for_each(|(_, service)| service.open());
        self.generation += 1;
        let wanted = |name: &String| self.config.services.contains_key(name);
        let routes = self.services.iter().filter(|(name, _)| wanted(name)).filter_map(|(_, service)| service.published());
        let routes =
            routes.map(|(config, snapshot)| (config.hosts.as_slice(), config.path_prefix.as_str(), Arc::clone(snapshot)));
        self.snapshot.store(Arc::new(Snapshot {
            generation: self.generation,
            routes: RouteTable::new(routes),
            trusted_proxies: self.config.trusted_proxies.clone(),
            tracing: self.config.tracing,
        }));
        for (name, service) in &mut self.services {
            if ready.contains(name) {
                service.close_others(self.generation, now);
            } else if !self.config.services.contains_key(name) && service.published().is_some() {
                service.remove(now);
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Refusal {
        let (result, problems) = match &refusal {
            Refusal::StaticChanged(problems) => (ReloadResult::StaticChanged, problems),
            Refusal::Invalid(problems) => (ReloadResult::Invalid, problems),
            _ => return refusal,
        };
        warn!("configuration refused, the old one serves result={} problems={refusal}", result.label());
        let problems = problems.clone();
        self.reloaded(result, problems);
        refusal
    }

    fn reloaded(&mut self, result: ReloadResult, problems: Vec<Problem>) {
        self.means.metrics.reloaded(result.label(), problems.is_empty());
        self.last_reload = LastReload { result, at: SystemTime::now(), problems };
    }

    fn show(&mut self) {
        self.settled = self.settled || self.services.values().all(Service::is_settled);
        self.views.send_replace(Arc::new(View {
            generation: self.generation,
            settled: self.settled,
            file: self.path.display().to_string(),
            last_reload: self.last_reload.clone(),
            services: self.services.values().map(Service::view).collect(),
            shutdown_timeout: self.config.shutdown_timeout,
        }));
    }
}

/// Whoever asked may have gone in the meantime; what was done stays done.
fn answer(reply: Reply, outcome: Result<Accepted, Refusal>) {
    if reply.send(outcome).is_err() {
        info!("nobody waits any more for the answer to a command");
    }
}
