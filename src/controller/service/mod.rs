//! One service as the controller sees it: what runs, what is being proven, what drains.
//!
//! Only the controller's task touches it. It opens and closes peers around the store of a snapshot but never stores one
//! itself: a [`publish::Publication`] is made by [`Service::open`] before the store and consumed by [`Service::close`] after
//! it. Here a wish is taken in and proven; `publish` makes it serve, `end` gives it up or ends its drain, `show` reports.

mod end;
mod publish;
mod show;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use log::info;

use super::{
    drain::Drains,
    drift::Drift,
    history::History,
    peers::{Deps, Peers, asks_differently},
    promotion::Edit,
    proof::{Need, Proof},
    start::{self, Fallback, Start},
    swap::Swap,
};
use crate::{config, metrics::ServiceMetrics, snapshot, status::Outcome};

/// One service.
pub(super) struct Service {
    name: String,
    deps: Arc<Deps>,
    metrics: Arc<ServiceMetrics>,
    /// What requests see; none before the first publication and after the service left the file.
    running: Option<Running>,
    candidate: Option<Candidate>,
    /// What the file says.
    file: Option<config::Service>,
    drift: Drift,
    /// None once it has served.
    start: Option<Start>,
    drains: Drains,
    peers: Peers,
    history: History,
    removed: bool,
}

struct Running {
    config: config::Service,
    snapshot: Arc<snapshot::Service>,
}

/// A configuration that is to run.
struct Candidate {
    config: config::Service,
    swap: Swap,
    /// The change of the file that has to be made first.
    edit: Option<Box<Edit>>,
    /// The change has been made: the candidate runs next, whatever its probes say by now.
    written: bool,
    /// At the start of a service no other pool serves, so it is published unproven.
    published: bool,
}

/// Where a wish comes from.
pub(super) enum Source {
    /// The file says so.
    File,
    /// A command asks for it.
    Promotion {
        /// The change that the file needs; none if it says so already.
        edit: Option<Box<Edit>>,
        /// Instead of `promotion.ready_timeout`.
        timeout: Option<Duration>,
    },
}

/// What became of a wanted configuration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It runs, is being proven, or was refused already.
    Unchanged,
    /// It waits for its proof or for its change of the file, or what was being proven in place of what runs is given up.
    Applied,
    /// It can be published now.
    Publish,
}

/// What a service waits for the controller to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// The candidate is proven, and its change of the file is to be written.
    Write,
    Publish,
}

impl Service {
    /// A service that is not in use yet.
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
            removed: false,
        }
    }

    /// Takes in what is wanted; a newer wish takes the place of one that is still being proven.
    pub(super) fn want(&mut self, wanted: config::Service, source: Source, now: Instant) -> Taken {
        self.removed = false;
        let from_file = matches!(source, Source::File);
        let (edit, timeout) = match source {
            Source::File => (None, None),
            Source::Promotion { edit, timeout } => (edit, timeout),
        };
        self.file = Some(edit.as_ref().map_or(&wanted, |edit| &edit.base).clone());
        if let Some(candidate) = &mut self.candidate {
            if candidate.config == wanted {
                // A file that says so already needs no change any more.
                candidate.edit = edit;
                candidate.swap.deadline = timeout.map_or(candidate.swap.deadline, |timeout| now + timeout);
                return Taken::Unchanged;
            }
            // The file still says what it said when the promotion began, which is no newer wish.
            if from_file && candidate.edit.as_ref().is_some_and(|edit| edit.base == wanted) {
                return Taken::Unchanged;
            }
        }
        if from_file && self.drift.holds(&wanted) {
            return Taken::Unchanged;
        }
        let superseded = self.give_up(Outcome::Superseded, Some("a newer edit took its place".to_owned()), now);
        if edit.is_none() {
            self.drift.forget();
            if self.running.as_ref().is_some_and(|running| running.config == wanted) {
                return if superseded { Taken::Applied } else { Taken::Unchanged };
            }
        }
        let timeout = timeout.unwrap_or(wanted.promotion.ready_timeout);
        self.begin(wanted, edit, timeout, now)
    }

    fn begin(&mut self, wanted: config::Service, edit: Option<Box<Edit>>, timeout: Duration, now: Instant) -> Taken {
        let running = self.running.as_ref();
        // A pool that never served has nothing to lose by other settings.
        let first = running.is_none_or(|running| {
            edit.is_none()
                && running.config.active == wanted.active
                && !running.snapshot.active.slots().iter().any(|slot| slot.peer.health.was_ready())
        });
        let running = running.map(|running| &running.config);
        self.peers.prepare(&wanted, running);
        let proof = match self.need(&wanted, first) {
            Some(need) => self.peers.prove(&wanted, need, self.running.as_ref().map(|running| &running.config)),
            None => Proof::none(),
        };
        let from = self.running.as_ref().filter(|_| !first).map(|running| running.config.active.clone());
        if from.as_ref() != Some(&wanted.active) {
            info!("swap begins service={} from={} to={}", self.name, from.as_deref().unwrap_or("nothing"), wanted.active);
        }
        let publish = first || (proof.is_none() && edit.is_none());
        let swap = Swap::new(from, wanted.active.clone(), proof, timeout, now);
        self.candidate = Some(Candidate { config: wanted, swap, edit, written: false, published: false });
        self.probe_settings();
        if publish { Taken::Publish } else { Taken::Applied }
    }

    /// Which peers of the pool that `wanted` makes active have to pass before it may serve; none if none has to.
    fn need(&self, wanted: &config::Service, first: bool) -> Option<Need> {
        let Some(running) = self.running.as_ref().filter(|_| !first) else { return Some(Need::All) };
        let peers = self.peers.of_active(wanted);
        let differently = asks_differently(&running.config, wanted);
        if running.config.active != wanted.active {
            // A pool that served a moment ago and still has requests need not be proven again.
            let back = !differently && peers.iter().all(|peer| peer.health.is_ready() && self.drains.contains(peer));
            return (!back).then_some(Need::All);
        }
        let slots = running.snapshot.active.slots();
        if !slots.iter().any(|slot| slot.peer.health.was_ready()) {
            return None;
        }
        if differently {
            return Some(Need::Serving);
        }
        // Make before break: the last ready peer does not leave before another one is ready.
        let leaves = slots.iter().any(|slot| !peers.iter().any(|peer| Arc::ptr_eq(peer, &slot.peer)));
        (leaves && !peers.iter().any(|peer| peer.health.is_ready())).then_some(Need::One)
    }

    /// Lets the pool that served before a restart take over if the file's does not become ready. To be called after the first
    /// wish.
    pub(super) fn remember(&mut self, served_last: &str) {
        let Some(Candidate { config, .. }) = &self.candidate else { return };
        if config.active == served_last || !config.pools.contains_key(served_last) {
            return;
        }
        let config = config::Service { active: served_last.to_owned(), ..config.clone() };
        let proof = self.peers.prove(&config, Need::All, None);
        self.start = Some(Start { fallback: Some(Fallback { config, proof }) });
        self.probe_settings();
    }

    /// The service has left the file.
    pub(super) fn remove(&mut self, now: Instant) {
        self.removed = true;
        self.file = None;
        self.give_up(Outcome::Superseded, Some("the service left the file".to_owned()), now);
        let Some(running) = self.running.take() else { return };
        let active = running.config.active;
        let swap = Swap::new(Some(active.clone()), active, Proof::none(), Duration::ZERO, now);
        self.drain_others(swap, true, &[], running.config.drain.timeout, now);
    }

    /// Whether it is gone for good.
    pub(super) fn is_gone(&self) -> bool {
        self.removed && self.drains.is_empty() && self.peers.is_empty()
    }

    /// Moves on what can be moved on, and says what the controller has to do next.
    pub(super) fn advance(&mut self, now: Instant) -> Due {
        self.end_drains(now);
        if self.running.as_ref().is_some_and(|running| start::serves(&running.snapshot.active))
            && self.start.take().is_some_and(|start| start.fallback.is_some())
        {
            self.probe_settings();
        }
        let due = match &self.candidate {
            Some(candidate) if candidate.written => Due::Publish,
            Some(candidate) if candidate.swap.writing.is_some() => Due::Nothing,
            Some(candidate) if candidate.swap.proof.is_done() && candidate.edit.is_some() => Due::Write,
            Some(candidate) if candidate.swap.proof.is_done() => Due::Publish,
            Some(candidate) if now >= candidate.swap.deadline => {
                self.give_up(Outcome::NotReady, None, now);
                Due::Nothing
            }
            _ => Due::Nothing,
        };
        self.forget();
        if due == Due::Nothing && self.falls_back() { Due::Publish } else { due }
    }

    fn falls_back(&self) -> bool {
        let active = self.running.as_ref().map(|running| &running.snapshot.active);
        self.start.as_ref().zip(active).is_some_and(|(start, active)| start.falls_back(active))
    }

    /// The change of the file that a proven candidate needs; `file` is shown until it is made.
    pub(super) fn begin_write(&mut self, file: &str) -> Option<Box<Edit>> {
        let candidate = self.candidate.as_mut()?;
        candidate.swap.writing = Some(Arc::from(file));
        candidate.edit.clone()
    }

    /// The change of the file has been made.
    pub(super) fn written(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            candidate.written = true;
            candidate.edit = None;
            self.file = Some(candidate.config.clone());
        }
    }
}
