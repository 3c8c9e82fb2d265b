//! One service of the controller: its running configuration, its candidate, and its drains.
//!
//! Only the controller's task uses it. It opens and closes peers around the store of a snapshot, but never stores one:
//! [`Service::open`] creates a [`publish::Publication`] before the store, [`Service::close`] consumes it afterwards. This file
//! accepts and proves configurations; `gate` holds them until their gate is passed, `publish` publishes them, `snapshot` builds what
//! requests see, `observe` observes new pools, `end` ends candidates and drains, `show` reports.

mod end;
mod gate;
mod observe;
mod publish;
mod show;
mod snapshot;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use log::info;

use self::{observe::Restore, snapshot::Compared};
use super::{
    drain::Drains,
    drift::Drift,
    history::History,
    observation::{Fault, Samples},
    peers::{Deps, Peers, asks_differently},
    promotion::Edit,
    proof::{Need, Proof},
    start::{self, Fallback, Start},
    swap::Swap,
};
use crate::{config, hooks::Kind, metrics::ServiceMetrics, status::Outcome};

/// One service.
pub(super) struct Service {
    name: String,
    deps: Arc<Deps>,
    metrics: Arc<ServiceMetrics>,
    /// The published configuration; none before the first publication and after the service was removed.
    running: Option<Running>,
    candidate: Option<Candidate>,
    /// The configuration of the file.
    file: Option<config::Service>,
    drift: Drift,
    /// Set until the service serves for the first time.
    start: Option<Start>,
    drains: Drains,
    /// The requests of the active pool in the last minute.
    samples: Samples,
    /// Why the observed pool has to be taken back, until that is published.
    taking_back: Option<Fault>,
    restore: Option<Restore>,
    peers: Peers,
    /// Whether the snapshot has other standby pools than it should: a candidate has begun or ended, or the drain of a pool that gets
    /// copies of requests has ended.
    standby_is_outdated: bool,
    /// Set while requests are copied.
    compared: Option<Compared>,
    /// The canary whose pool was taken back; it gets no clients until the canary or the pool is edited.
    withheld: Option<(config::Canary, Option<config::Pool>)>,
    history: History,
    /// Set while the service is not in the file: the `drain.timeout` that it had.
    removed: Option<Duration>,
}

struct Running {
    config: config::Service,
    snapshot: Arc<crate::snapshot::Service>,
}

/// A configuration that is being proven.
struct Candidate {
    config: config::Service,
    swap: Swap,
    /// The edit of the file that has to be written before it is published.
    edit: Option<Box<Edit>>,
    /// Whether the edit is written. From then on the candidate is published, whatever its probes report.
    written: bool,
    /// Whether it is published unproven, because no other pool serves at the start of a service.
    published: bool,
}

/// The source of a wanted configuration.
pub(super) enum Source {
    /// The file.
    File,
    /// A command.
    Promotion {
        /// The edit that the file needs; none if the file already has it.
        edit: Option<Box<Edit>>,
        /// Time limit of the proof, instead of `promotion.ready_timeout`.
        timeout: Option<Duration>,
    },
}

/// The effect of a wanted configuration on a service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It already runs, is being proven, or has failed.
    Unchanged,
    /// It waits for its proof or for the write of its edit, or it already runs and another candidate was dropped.
    Pending,
    /// It can be published at once.
    Publish,
}

/// The next step that the controller has to take for a service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Write the edit of the proven candidate to the file.
    Write,
    Publish,
}

impl Service {
    /// A new service without a configuration.
    pub(super) fn new(name: &str, deps: Arc<Deps>) -> Self {
        Self {
            name: name.to_owned(),
            metrics: Arc::new(deps.metrics.service(name)),
            peers: Peers::new(name, Arc::clone(&deps)),
            history: History::new(name, Arc::clone(&deps.metrics)),
            deps,
            running: None,
            candidate: None,
            file: None,
            drift: Drift::default(),
            start: Some(Start::default()),
            drains: Drains::default(),
            samples: Samples::default(),
            taking_back: None,
            restore: None,
            standby_is_outdated: false,
            compared: None,
            withheld: None,
            removed: None,
        }
    }

    /// Accepts a wanted configuration; it replaces a candidate that is still being proven.
    pub(super) fn apply(&mut self, wanted: config::Service, source: Source, now: Instant) -> Change {
        self.removed = None;
        let from_file = matches!(source, Source::File);
        let (edit, timeout) = match source {
            Source::File => (None, None),
            Source::Promotion { edit, timeout } => (edit, timeout),
        };
        self.file = Some(edit.as_ref().map_or(&wanted, |edit| &edit.base).clone());
        self.forget_restore();
        if let Some(candidate) = &mut self.candidate {
            if candidate.config == wanted {
                // The file already has the edit, so it need not be written.
                candidate.edit = edit;
                candidate.swap.deadline = timeout.map_or(candidate.swap.deadline, |timeout| now + timeout);
                return Change::Unchanged;
            }
            // The file is unchanged since the promotion began, so this is no newer configuration.
            if from_file && candidate.edit.as_ref().is_some_and(|edit| edit.base == wanted) {
                return Change::Unchanged;
            }
        }
        if from_file && self.drift.has_failed(&wanted) {
            return Change::Unchanged;
        }
        let superseded = self.give_up(Outcome::Superseded, Some("a newer edit took its place".to_owned()), now);
        if edit.is_none() {
            self.drift.forget();
            let serves = |running: &Running| from_file || start::serves(&running.snapshot.active);
            if self.running.as_ref().is_some_and(|running| running.config == wanted && serves(running)) {
                return if superseded { Change::Pending } else { Change::Unchanged };
            }
        }
        self.restore = None;
        let timeout = timeout.unwrap_or(wanted.promotion.ready_timeout);
        self.begin(wanted, from_file, edit, timeout, now)
    }

    fn begin(
        &mut self,
        wanted: config::Service,
        from_file: bool,
        edit: Option<Box<Edit>>,
        timeout: Duration,
        now: Instant,
    ) -> Change {
        let running = self.running.as_ref();
        // A pool that never served can take other settings from the file without a proof.
        let first = running.is_none_or(|running| {
            from_file
                && running.config.active == wanted.active
                && !running.snapshot.active.slots().iter().any(|slot| slot.peer.health.was_ready())
        });
        let running = running.map(|running| &running.config);
        self.peers.prepare(&wanted, running);
        let proof = match self.need(&wanted, from_file, first) {
            Some(need) => self.peers.prove(&wanted, need, self.running.as_ref().map(|running| &running.config)),
            None => Proof::none(),
        };
        let from = self.running.as_ref().filter(|_| !first).map(|running| running.config.active.clone());
        if from.as_ref() != Some(&wanted.active) {
            info!("swap begins service={} from={} to={}", self.name, from.as_deref().unwrap_or("nothing"), wanted.active);
        }
        let publish = first || (proof.is_none() && edit.is_none());
        let swap = Swap::new(from, wanted.active.clone(), proof, timeout, now);
        self.notify(Kind::Proving, &swap, Some(&wanted));
        self.candidate = Some(Candidate { config: wanted, swap, edit, written: false, published: false });
        self.standby_is_outdated |= self.changes_standby();
        self.probe_settings();
        if publish { Change::Publish } else { Change::Pending }
    }

    /// Whether the candidate changes more of its pool than that it becomes the active one.
    fn changes_standby(&self) -> bool {
        self.running.as_ref().zip(self.candidate.as_ref()).is_some_and(|(running, candidate)| {
            let active = candidate.config.active.clone();
            active != running.config.active && config::Service { active, ..running.config.clone() } != candidate.config
        })
    }

    /// Which peers have to pass before `wanted` may serve; none if it needs no proof.
    fn need(&self, wanted: &config::Service, from_file: bool, first: bool) -> Option<Need> {
        let Some(running) = self.running.as_ref().filter(|_| !first) else { return Some(Need::All) };
        let peers = self.peers.of_active(wanted);
        let differently = asks_differently(&running.config, wanted);
        if running.config.active != wanted.active {
            // A draining pool served a moment ago and needs no new proof, unless it is another release by now.
            let same = running.config.pools.get(&wanted.active) == wanted.pools.get(&wanted.active);
            let back = same && !differently && peers.iter().all(|peer| peer.health.is_ready() && self.drains.contains(peer));
            return (!back).then_some(Need::All);
        }
        // A promotion succeeds only if the pool serves.
        if !from_file && !start::serves(&running.snapshot.active) {
            return Some(Need::One);
        }
        let slots = running.snapshot.active.slots();
        if !slots.iter().any(|slot| slot.peer.health.was_ready()) {
            return None;
        }
        if differently {
            return Some(Need::Serving);
        }
        // Make before break: the last ready peer is removed only after another peer is ready.
        let leaves = slots.iter().any(|slot| !peers.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer)));
        (leaves && !peers.iter().any(|peer| peer.health.is_ready())).then_some(Need::One)
    }

    /// Records the pool that served before the restart; it is the fallback if the file names another one. Call it after the first
    /// configuration was accepted.
    pub(super) fn remember(&mut self, served_last: &str) {
        let Some(Candidate { config, .. }) = &self.candidate else { return };
        if !config.pools.contains_key(served_last) {
            return;
        }
        if config.active == served_last {
            self.start = Some(Start { served_last: Some(served_last.to_owned()), fallback: None });
            return;
        }
        let config = config::Service { active: served_last.to_owned(), ..config.clone() };
        let proof = self.peers.prove(&config, Need::All, None);
        self.start = Some(Start { served_last: Some(served_last.to_owned()), fallback: Some(Fallback { config, proof }) });
        self.probe_settings();
    }

    /// The service was removed from the file.
    pub(super) fn remove(&mut self, now: Instant) {
        self.removed = Some(self.running.as_ref().map(|running| running.config.drain.timeout).unwrap_or_default());
        self.file = None;
        self.drift = Drift::default();
        self.give_up(Outcome::Superseded, Some("the service left the file".to_owned()), now);
        self.end_comparison();
        let Some(running) = self.running.take() else { return };
        let active = running.config.active;
        let swap = Swap::new(Some(active.clone()), active, Proof::none(), Duration::ZERO, now);
        self.drain_others(swap, true, &[], running.config.drain.timeout, now);
    }

    /// Whether it was removed and nothing of it runs.
    pub(super) fn is_gone(&self) -> bool {
        self.removed.is_some() && self.drains.is_empty() && self.peers.is_empty()
    }

    /// Advances the candidate and the drains. Returns the next step for the controller.
    pub(super) fn advance(&mut self, now: Instant) -> Due {
        self.sample(now);
        self.observe(now);
        if self.taking_back.is_some() {
            return Due::Publish;
        }
        self.end_drains(now);
        if self.running.as_ref().is_some_and(|running| start::serves(&running.snapshot.active))
            && self.start.take().is_some_and(|start| start.fallback.is_some())
        {
            self.probe_settings();
        }
        let due = match &self.candidate {
            Some(candidate) if candidate.written => Due::Publish,
            Some(candidate) if candidate.swap.writing.is_some() => Due::Nothing,
            Some(candidate) if candidate.is_admitted() => {
                if candidate.edit.is_some() {
                    Due::Write
                } else {
                    Due::Publish
                }
            }
            Some(_) => {
                self.advance_candidate(now);
                Due::Nothing
            }
            None => Due::Nothing,
        };
        self.forget();
        match due {
            Due::Nothing if self.falls_back() => Due::Publish,
            Due::Nothing if self.has_to_restore() => Due::Write,
            due => due,
        }
    }

    fn falls_back(&self) -> bool {
        let active = self.running.as_ref().map(|running| &running.snapshot.active);
        self.start.as_ref().zip(active).is_some_and(|(start, active)| start.falls_back(active))
    }

    /// The edit that the proven candidate needs, or the one that sets the file back. The status shows `file` until the first is
    /// written.
    pub(super) fn begin_write(&mut self, file: &str) -> Option<Box<Edit>> {
        if let Some(edit) = self.begin_restore() {
            return Some(edit);
        }
        let candidate = self.candidate.as_mut()?;
        candidate.swap.writing = Some(Arc::from(file));
        candidate.edit.clone()
    }

    /// Records that the edit was written.
    pub(super) fn written(&mut self) {
        if self.end_restore(None) {
            return;
        }
        if let Some(candidate) = &mut self.candidate {
            candidate.written = true;
            candidate.edit = None;
            self.file = Some(candidate.config.clone());
        }
    }

    /// Handles that the edit was not written: nothing is promoted, and a file that was to be set back stays as it is.
    pub(super) fn not_written(&mut self, outcome: Outcome, reason: String, now: Instant) {
        if !self.end_restore(Some(&reason)) {
            self.give_up(outcome, Some(reason), now);
        }
    }
}
