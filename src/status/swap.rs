//! A swap in the status: its phases, its outcome, and the observation of its new pool.

use serde::{Deserialize, Serialize};

/// One swap, from the edit to its outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// The previous active pool; none at the start of the process.
    pub from: Option<String>,
    /// The new active pool; the same as `from` if only its peers or settings change.
    pub to: String,
    /// Its current phase.
    pub phase: Phase,
    /// Its outcome; none while it is in progress.
    pub outcome: Option<Outcome>,
    /// What it waits for, or why it failed.
    pub reason: Option<String>,
    /// When switchover accepted the edit, RFC 3339.
    pub started_at: String,
    /// Its age, or its total duration once it has ended.
    pub seconds: f64,
    /// Duration of the proof; none before the promotion.
    pub prove_seconds: Option<f64>,
    /// Duration of the drain; none before its end.
    pub drain_seconds: Option<f64>,
    /// Time limit of the proof: `promotion.ready_timeout`, or the timeout of the command.
    #[serde(default)]
    pub timeout_seconds: f64,
    /// The rest of `timeout_seconds` during the proof; 0 afterwards.
    #[serde(default)]
    pub deadline_seconds: f64,
    /// Peers of `to` proven so far.
    pub proven: usize,
    /// Peers of `to` to be proven.
    pub to_prove: usize,
    /// Requests that run on the draining peers, or that ran when the drain timed out.
    pub in_flight: usize,
    /// The observation of the new pool; none if it is not observed.
    #[serde(default)]
    pub observation: Option<Observation>,
}

/// The observation of a new pool after its promotion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Its age, or its duration once it has ended.
    pub seconds: f64,
    /// The rest of `promotion.observe`; 0 once it has ended.
    pub left_seconds: f64,
    /// Requests of the new pool since its promotion.
    pub requests: u64,
    /// How many of them failed because of the new pool.
    pub failed: u64,
}

/// The phase of a swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The new pool is being proven; the old pool serves.
    #[default]
    Proving,
    /// The new pool is ready and gets requests of switchover itself; the old pool serves.
    WarmingUp,
    /// The new pool is ready and the check of the user is running; the old pool serves.
    Checking,
    /// The new pool serves and is observed; the old pool drains and is kept.
    Observing,
    /// The new pool has failed while it was observed: the old pool serves again, and the new pool drains.
    TakingBack,
    /// The new pool serves; the old pool drains.
    Draining,
    /// The swap has ended.
    Done,
}

/// The outcome of a swap; also the label of `swaps_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new pool serves; no request runs on the old pool.
    Drained,
    /// The new pool serves; requests still ran on the old pool after `drain.timeout`.
    DrainTimedOut,
    /// The old pool serves again: the new pool failed while it was observed.
    TakenBack,
    /// The old pool serves: the new pool was not ready within `promotion.ready_timeout`, or the file could not be written.
    NotReady,
    /// The old pool serves: the check before the promotion failed.
    Refused,
    /// A newer edit replaced it.
    Superseded,
    /// It was cancelled by a command; the old pool serves.
    Cancelled,
}

/// `1 request still runs`, `3 requests still run`.
pub fn still_running(requests: usize) -> String {
    if requests == 1 { "1 request still runs".to_owned() } else { format!("{requests} requests still run") }
}

impl Swap {
    /// Whether the new pool was promoted and serves.
    pub fn promoted(&self) -> bool {
        matches!(self.phase, Phase::Observing | Phase::Draining)
            || matches!(self.outcome, Some(Outcome::Drained | Outcome::DrainTimedOut))
    }

    /// Whether the new pool was taken back.
    pub fn taken_back(&self) -> bool {
        self.phase == Phase::TakingBack || self.outcome == Some(Outcome::TakenBack)
    }
}

impl Phase {
    /// Whether the new pool does not serve yet, and may still fail.
    pub fn is_before_promotion(self) -> bool {
        matches!(self, Self::Proving | Self::WarmingUp | Self::Checking)
    }
}

impl Outcome {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::DrainTimedOut => "drain_timed_out",
            Self::TakenBack => "taken_back",
            Self::NotReady => "not_ready",
            Self::Refused => "refused",
            Self::Superseded => "superseded",
            Self::Cancelled => "cancelled",
        }
    }
}
