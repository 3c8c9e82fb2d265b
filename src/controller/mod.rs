//! The only writer: every edit, signal and API call arrives here as a [`Command`], and only this module stores snapshots.
//!
//! One task compares the file with the running configuration, proves, promotes and drains (docs/architecture.md has the picture). After each step it publishes a [`View`], then sends the replies. Requests never wait for it. It imports neither the
//! proxy, nor the admin API, nor the watcher, and never waits for a disk: see `reading`, `promotion` and `memory`.

mod apply;
mod command;
mod drain;
mod drift;
mod gate;
mod history;
mod judge;
mod memory;
mod observation;
mod peers;
mod promotion;
mod proof;
mod reading;
mod safety;
mod service;
mod start;
mod swap;
mod view;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use log::info;
use pingora::connectors::http::Connector;
use tokio::sync::{Notify, mpsc, watch};

pub use self::{
    command::{Accepted, Command, CommandError, Commands, Promotion, Reply, Target, Trigger},
    view::View,
};
use self::{
    memory::Memory,
    peers::Deps,
    promotion::{Writing, Written},
    reading::{Reading, Waiting},
    service::{Due, Service},
    view::{LastReload, ServiceView},
};
use crate::{
    config::{self, Config, Tracing},
    hooks::Notifier,
    metrics::Metrics,
    route::RouteTable,
    snapshot::{Snapshot, SnapshotCell},
    status::{Outcome, ReloadResult},
};

/// How many commands may be queued.
const QUEUE: usize = 64;

/// The only writer.
pub struct Controller {
    path: PathBuf,
    /// The last accepted configuration of the file.
    config: Config,
    /// What serves: the same, but for services whose new configuration is still being proven.
    running: Arc<Config>,
    services: BTreeMap<String, Service>,
    snapshot: Arc<SnapshotCell>,
    generation: u64,
    deps: Arc<Deps>,
    commands: mpsc::Receiver<Command>,
    last_reload: LastReload,
    /// The services that the last change of the file or the last promotion concerns, as they were before it.
    last_change: BTreeMap<String, ServiceView>,
    /// The edit that is being written to the file. The waiting command is executed afterwards.
    writing: Option<Writing>,
    /// The command that waits for the file; the next ones stay queued in their order.
    waiting: Option<Waiting>,
    /// A read that outlasted the deadline of its command. No other read begins until it ends.
    stuck: Option<Reading>,
    memory: Option<Memory>,
    /// Whether the process has been ready once.
    was_ready: bool,
    views: watch::Sender<Arc<View>>,
    written: watch::Sender<String>,
    /// Replies to send once the view is published.
    answers: Vec<Box<dyn FnOnce() + Send>>,
}

/// The interface of a running controller.
pub struct Handles {
    /// Channel for commands.
    pub commands: Commands,
    /// The published state.
    pub view: watch::Receiver<Arc<View>>,
    /// The text that it started with, then each text that it wrote to the file.
    pub written: watch::Receiver<String>,
}

impl Controller {
    /// Starts with a valid configuration. Call it within a Tokio runtime, on which the probes run.
    pub fn new(
        path: PathBuf,
        text: String,
        config: Config,
        snapshot: Arc<SnapshotCell>,
        metrics: Arc<Metrics>,
    ) -> (Self, Handles) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let folder = config::folder(&path).to_path_buf();
        let connector = Arc::new(Connector::new(None));
        let notifier = Notifier::start(folder.clone(), Arc::clone(&connector), Arc::clone(&metrics));
        let (changed, failed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let deps = Deps { metrics, connector, notifier, folder, changed, failed };
        let state_dir = config.state_dir.as_ref().map(|state_dir| deps.folder.join(state_dir));
        let last_reload = LastReload { result: ReloadResult::Applied, at: SystemTime::now(), problems: Vec::new() };
        let running = Arc::new(config.clone());
        let view = View {
            generation: 0,
            not_ready: Some("starting".to_owned()),
            file: path.display().to_string(),
            last_reload: last_reload.clone(),
            state_dir: None,
            services: Vec::new(),
            config: Arc::clone(&running),
        };
        let (views, view) = watch::channel(Arc::new(view));
        let (written, texts) = watch::channel(text);
        let mut controller = Self {
            path,
            config: config.clone(),
            running,
            services: BTreeMap::new(),
            snapshot,
            generation: 0,
            memory: state_dir.map(|state_dir| Memory::open(state_dir, Arc::clone(&deps.changed))),
            deps: Arc::new(deps),
            commands,
            last_reload,
            last_change: BTreeMap::new(),
            writing: None,
            waiting: None,
            stuck: None,
            was_ready: false,
            views,
            written,
            answers: Vec::new(),
        };
        // The start is a change from an empty configuration.
        controller.apply(config, None);
        controller.remember_served_last();
        controller.reloaded(ReloadResult::Applied, Vec::new());
        controller.show();
        (controller, Handles { commands: sender, view, written: texts })
    }

    fn remember_served_last(&mut self) {
        let Some(memory) = &self.memory else { return };
        for (name, service) in &mut self.services {
            if let Some(pool) = memory.last.get(name) {
                service.remember(pool);
            }
        }
    }

    /// Runs until the last sender of commands is dropped.
    pub async fn run(mut self) {
        let (changed, failed) = (Arc::clone(&self.deps.changed), Arc::clone(&self.deps.failed));
        loop {
            let waiting = self.waiting.iter().map(|waiting| waiting.deadline);
            let deadline = self.services.values().filter_map(Service::next_deadline).chain(waiting).min();
            let time_alone = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = self.commands.recv(), if self.waiting.is_none() => match command {
                    Some(command) => self.wait(command),
                    None => return,
                },
                (service, outcome) = written(&mut self.writing) => self.wrote(&service, outcome),
                outcome = reading::outcome(&mut self.waiting) => self.execute(outcome),
                () = reading::ended(&mut self.stuck), if self.waiting.is_none() => self.read_again(),
                () = changed.notified() => {}
                // Thousands of requests may fail in a second; the view is published only if that changes something.
                () = failed.notified() => if !self.observe() { continue },
                () = time_alone => {}
            }
            self.proceed();
            self.advance();
            self.show();
        }
    }

    /// Judges the observed pools. Returns whether that changes anything.
    fn observe(&mut self) -> bool {
        let now = Instant::now();
        let mut changed = false;
        for service in self.services.values_mut() {
            changed |= service.observe(now);
        }
        changed
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, outcome: Result<T, CommandError>) {
        self.answers.push(Box::new(move || {
            if reply.send(outcome).is_err() {
                info!("the sender of a command disconnected; the command was executed");
            }
        }));
    }

    /// Advances every service: writes the file for a proven promotion, and publishes the services that may serve.
    fn advance(&mut self) {
        let now = Instant::now();
        let mut due = self.due(now);
        let publish: Vec<String> = due.iter().filter(|(_, due)| *due == Due::Publish).map(|(name, _)| name.clone()).collect();
        if self.renew_standby() || !publish.is_empty() {
            self.publish(&publish, now);
            due = self.due(now);
            // A drain without requests has ended already.
            if self.renew_standby() {
                self.publish(&[], now);
            }
        }
        for (name, _) in due.iter().filter(|(_, due)| *due == Due::Write) {
            // A write during a read would be undone by the older text that was read.
            if self.writing.is_none() && self.waiting.is_none() {
                let edit = self.services.get_mut(name).and_then(|service| service.begin_write(&self.path.display().to_string()));
                self.writing = edit.map(|edit| edit.write(&self.path, &self.config));
            }
        }
    }

    fn due(&mut self, now: Instant) -> Vec<(String, Due)> {
        self.services.iter_mut().map(|(name, service)| (name.clone(), service.advance(now))).collect()
    }

    /// Makes the outdated standby pools again, of every service. Returns whether a snapshot has to be stored.
    fn renew_standby(&mut self) -> bool {
        let renewed = self.services.values_mut().map(Service::renew_standby);
        renewed.fold(false, |any, renewed| any | renewed)
    }

    /// Handles the end of a write. If it failed, nothing is promoted.
    fn wrote(&mut self, name: &str, outcome: Result<Written, (Outcome, String)>) {
        self.writing = None;
        let now = Instant::now();
        let Some(service) = self.services.get_mut(name) else { return };
        match outcome {
            Ok(written) => {
                let before = service.view();
                service.written();
                self.take_in_written(written);
                self.last_change.entry(name.to_owned()).or_insert(before);
            }
            Err((outcome, reason)) => {
                service.not_written(outcome, reason, now);
            }
        }
    }

    /// Stores a new snapshot: the only step that requests see. New peers open before the store, so that a request that loads the
    /// new snapshot finds them open. Old peers close after it, so that a request that finds them closed can load a newer
    /// snapshot.
    fn publish(&mut self, names: &[String], now: Instant) {
        let services = self.services.iter_mut().filter(|(name, _)| names.contains(name));
        let opened: Vec<_> = services.filter_map(|(name, service)| Some((name.clone(), service.open(now)?))).collect();
        self.generation += 1;
        let wanted = |name: &String| self.config.services.contains_key(name);
        let routes = self.services.iter().filter(|(name, _)| wanted(name)).filter_map(|(_, service)| service.published());
        let routes =
            routes.map(|(config, snapshot)| (config.hosts.as_slice(), config.path_prefix.as_str(), Arc::clone(snapshot)));
        self.snapshot.store(Arc::new(Snapshot {
            generation: self.generation,
            routes: RouteTable::new(routes),
            trusted_proxies: self.config.trusted_proxies.clone(),
            tracing: self.config.tracing == Tracing::Propagate,
        }));
        let services = self.services.iter().filter(|(name, _)| wanted(name));
        let services = services.filter_map(|(name, service)| Some((name.clone(), service.published()?.0.clone()))).collect();
        self.running = Arc::new(Config { services, ..self.config.clone() });
        for (name, publication) in opened {
            if let Some(service) = self.services.get_mut(&name) {
                service.close(publication, self.generation, now);
            }
        }
        for (name, service) in &mut self.services {
            if !self.config.services.contains_key(name) && service.published().is_some() {
                service.remove(now);
            }
        }
    }

    /// Publishes the view, then notifies the waiters, which read it.
    fn show(&mut self) {
        self.services.values_mut().for_each(Service::update_drift);
        let names: Vec<String> =
            self.services.iter().filter(|(_, service)| service.is_gone()).map(|(name, _)| name.clone()).collect();
        let mut gone: Vec<Service> = names.iter().filter_map(|name| self.services.remove(name)).collect();
        let not_ready = self.not_ready();
        self.was_ready |= not_ready.is_none();
        if let Some(memory) = &self.memory {
            let mut pools = memory.last.clone();
            pools.retain(|name, _| self.config.services.contains_key(name));
            pools.extend(self.services.iter().filter_map(|(name, service)| Some((name.clone(), service.proven()?.to_owned()))));
            memory.remember(pools);
        }
        self.views.send_replace(Arc::new(View {
            generation: self.generation,
            not_ready,
            file: self.path.display().to_string(),
            last_reload: self.last_reload.clone(),
            state_dir: self.memory.as_ref().map(Memory::status),
            services: self.services.values().map(Service::view).collect(),
            config: Arc::clone(&self.running),
        }));
        self.services.values_mut().chain(&mut gone).for_each(Service::announce);
        self.answers.drain(..).for_each(|answer| answer());
    }

    /// Why the process is not ready; none once it has been ready. Each service may delay readiness until its proof ends, and all
    /// of them together delay it while no service has a pool to serve.
    fn not_ready(&self) -> Option<String> {
        let services = || self.services.values();
        let waits = services().any(Service::is_starting) || services().all(|service| service.serves().is_none());
        let reasons: Vec<String> = services().filter_map(Service::not_ready).collect();
        (!self.was_ready && waits && !reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// Waits for the end of the write; forever if there is none.
async fn written(writing: &mut Option<Writing>) -> (String, Result<Written, (Outcome, String)>) {
    match writing {
        Some(writing) => (writing.service.clone(), writing.outcome().await),
        None => std::future::pending().await,
    }
}
