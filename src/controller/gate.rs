//! The gate of a promotion: what a proven pool still has to pass before it serves, its warm-up and the check of the user.
//!
//! [`super::service`] creates one when the proof of a candidate is done, and looks at it in each step. It runs on a task of its own,
//! which [`Gate::end`] ends together with the requests or the command that it has running.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use log::info;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

use crate::{
    hooks::Check,
    metrics::Metrics,
    pool::warm_up::WarmUp,
    status::{Outcome, Phase},
};

/// A gate that has begun. Clones share its state.
#[derive(Clone)]
pub(super) struct Gate {
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// The steps of a gate, in this order.
pub(super) struct Steps {
    /// `service=shop pool=green`, for the log.
    pub about: String,
    pub warm_up: Option<WarmUp>,
    pub check: Option<Check>,
}

struct Shared {
    steps: Steps,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Clone)]
enum State {
    WarmingUp,
    Checking(Instant),
    Ended(Instant, Verdict),
}

/// The result of a gate: an error is why the release is refused, and how the swap ends.
pub(super) type Verdict = Result<(), (Outcome, String)>;

impl Gate {
    /// Begins the steps; `changed` wakes the controller at their end.
    pub(super) fn begin(steps: Steps, metrics: Arc<Metrics>, changed: Arc<Notify>) -> Self {
        let now = Instant::now();
        let state = if steps.warm_up.is_some() { State::WarmingUp } else { State::Checking(now) };
        let shared = Arc::new(Shared { steps, began: now, state: Mutex::new(state) });
        let of_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            // A set ends its task when it is dropped, and a panic of that task is an error here.
            let mut steps = JoinSet::new();
            let running = Arc::clone(&of_task);
            steps.spawn(async move { running.run(&metrics).await });
            let verdict = match steps.join_next().await {
                Some(Ok(verdict)) => verdict,
                Some(Err(e)) => Err((Outcome::NotReady, format!("the steps before the promotion ended early: {e}"))),
                None => Ok(()),
            };
            *of_task.state.lock() = State::Ended(Instant::now(), verdict);
            changed.notify_one();
        });
        Self { shared, task: task.abort_handle() }
    }

    /// The result; none while a step is running.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        match &*self.shared.state.lock() {
            State::Ended(_, verdict) => Some(verdict.clone()),
            State::WarmingUp | State::Checking(_) => None,
        }
    }

    /// How long its steps took; none while one is running.
    pub(super) fn took(&self) -> Option<Duration> {
        match &*self.shared.state.lock() {
            State::Ended(at, _) => Some(*at - self.shared.began),
            State::WarmingUp | State::Checking(_) => None,
        }
    }

    /// The running step and its progress.
    pub(super) fn progress(&self) -> Option<(Phase, String)> {
        let Steps { warm_up, check, .. } = &self.shared.steps;
        let state = self.shared.state.lock().clone();
        match state {
            State::WarmingUp => Some((Phase::WarmingUp, warm_up.as_ref()?.to_string())),
            State::Checking(since) => {
                Some((Phase::Checking, format!("{} running for {} s", check.as_ref()?, since.elapsed().as_secs())))
            }
            State::Ended(..) => None,
        }
    }

    /// Ends the running step; a command is killed with its process group.
    pub(super) fn end(&self) {
        self.task.abort();
    }
}

impl Shared {
    async fn run(&self, metrics: &Metrics) -> Verdict {
        let Steps { about, warm_up, check } = &self.steps;
        if let Some(warm_up) = warm_up {
            warm_up.run().await.map_err(|why| (Outcome::NotReady, why))?;
            info!("warmed up {about} requests=\"{warm_up}\"");
        }
        if let Some(check) = check {
            *self.state.lock() = State::Checking(Instant::now());
            let outcome = check.run().await;
            metrics.hooks.with_label_values(&["check", if outcome.is_ok() { "success" } else { "failure" }]).inc();
            outcome.map_err(|why| (Outcome::Refused, why))?;
            info!("the check accepts the release {about}");
        }
        Ok(())
    }
}
