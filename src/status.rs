//! What `/v1/status` says, shared word for word by the server that writes it and the command line that reads it.
//!
//! Plain values only: the controller fills them, the admin API sends them, `switchover status` and `promote` print them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Problem;

/// Everything an operator or a script may rely on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Number of the snapshot that serves, from 1.
    pub generation: u64,
    /// The running program's version.
    pub version: String,
    /// Where clients connect, with the ports really taken.
    pub listeners: Vec<String>,
    /// The configuration file and its last reading.
    pub config: ConfigStatus,
    /// In the order of their names.
    pub services: Vec<ServiceStatus>,
}

/// The configuration file and its last reading.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Path as given.
    pub file: String,
    /// The last reading of the file.
    pub last_reload: Reload,
    /// Where the pools that served last are remembered for a restart; none without `state_dir` in the file.
    #[serde(default)]
    pub state_dir: Option<StateDir>,
}

/// Where the pools that served last are remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDir {
    /// The folder.
    pub path: String,
    /// Why nothing is remembered there; none while the last write went well.
    pub problem: Option<String>,
}

/// One reading of the configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reload {
    /// How it ended.
    pub result: ReloadResult,
    /// When, RFC 3339.
    pub at: String,
    /// Why it was refused; empty when it was not.
    pub problems: Vec<Problem>,
}

/// How a reading of the configuration file ended; also the label of `config_reloads_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadResult {
    /// It runs, or is being proven.
    Applied,
    /// It says what runs already.
    Unchanged,
    /// It could not be read, or something in it is wrong.
    Invalid,
    /// It changes what only a restart can change.
    StaticChanged,
}

/// One service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name in the file.
    pub name: String,
    /// The pool that serves.
    pub active: String,
    /// The swap in progress, or the last one; none before the first.
    pub swap: Option<Swap>,
    /// The last swap that ended.
    pub last_swap: Option<Swap>,
    /// How the file differs from what serves; none when they agree or while the file's wish is being proven.
    #[serde(default)]
    pub drift: Option<Drift>,
    /// In the order of their names.
    pub pools: Vec<PoolStatus>,
}

/// The file and the process disagree about what serves: the file's wish was refused or cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The pool that the file names.
    pub file: String,
    /// The pool that serves; the same as `file` when other settings of the service were refused.
    pub serves: String,
    /// Why the file's wish does not run.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// One swap, from the edit to its outcome.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// The pool that served before; none at the start of the process.
    pub from: Option<String>,
    /// The pool asked for; the same as `from` when only its peers changed.
    pub to: String,
    /// Where it stands.
    pub phase: Phase,
    /// How it ended; none while it goes on.
    pub outcome: Option<Outcome>,
    /// Why it is not further, or why it failed.
    pub reason: Option<String>,
    /// When the edit was taken, RFC 3339.
    pub started_at: String,
    /// Age, or how long it took in all.
    pub seconds: f64,
    /// How long proving took, once promoted.
    pub prove_seconds: Option<f64>,
    /// How long draining took, once ended.
    pub drain_seconds: Option<f64>,
    /// How long a pool may take to be proven: `promotion.ready_timeout`, or what the promotion asked for.
    #[serde(default)]
    pub timeout_seconds: f64,
    /// How much of `timeout_seconds` is left while proving; 0 afterwards.
    #[serde(default)]
    pub deadline_seconds: f64,
    /// Peers of `to` proven so far.
    pub proven: usize,
    /// Peers of `to` to be proven.
    pub to_prove: usize,
    /// Requests still running on the peers that are draining, or left when the drain timed out.
    pub in_flight: usize,
}

/// Where a swap stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The new pool is being probed; the old one serves.
    #[default]
    Proving,
    /// The new pool serves; running requests of the old one end.
    Draining,
    /// Ended.
    Done,
}

/// How a swap ended; also the label of `swaps_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new pool serves and the old one has nothing in flight.
    Drained,
    /// The new pool serves; the old one still had requests running when `drain.timeout` ran out.
    DrainTimedOut,
    /// The new pool was not ready within `promotion.ready_timeout`, or the file could not be written; the old one serves.
    NotReady,
    /// A newer edit took its place.
    Superseded,
    /// It was given up on request; the old pool serves.
    Cancelled,
}

/// One pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name in the file.
    pub name: String,
    /// The release it runs, if the file says.
    pub version: Option<String>,
    /// What it does.
    pub state: PoolState,
    /// Stopping its processes breaks no request, now or after a swap that has begun.
    pub safe_to_stop: bool,
    /// Why it is not safe to stop: `blue serves`, `3 requests still run`, `127.0.0.1:8081 also serves api`.
    #[serde(default)]
    pub not_safe_because: Option<String>,
    /// Requests and upgraded connections running on it.
    pub in_flight: usize,
    /// Of these, upgraded connections (WebSocket).
    pub upgraded: usize,
    /// In the order of the file; peers that left it and still drain come last.
    pub peers: Vec<PeerStatus>,
}

/// What a pool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// It serves.
    Active,
    /// It takes no new request; running ones end.
    Draining,
    /// It is being proven, to serve next.
    Proving,
    /// It is probed and waits.
    Standby,
}

/// One peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// As written in the file.
    pub address: String,
    /// What its name means now; empty while it cannot be resolved.
    pub resolved: Vec<String>,
    /// What its share of requests is.
    pub weight: u16,
    /// What probes say.
    pub ready: bool,
    /// Takes no new request, running ones end.
    pub draining: bool,
    /// Requests and upgraded connections running on it.
    pub in_flight: usize,
    /// Of these, upgraded connections.
    pub upgraded: usize,
    /// None before the first.
    pub last_probe: Option<Probe>,
}

/// The result of one probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// When it ended, RFC 3339.
    pub at: String,
    /// Whether it passed.
    pub ok: bool,
    /// How long it took.
    pub milliseconds: u64,
    /// Why it failed, in words a person can act on.
    pub reason: Option<String>,
}

/// What `POST /v1/reload` and `POST …/promote` answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// `applied` or `unchanged`.
    pub result: ReloadResult,
    /// Number of the snapshot that serves.
    pub generation: u64,
    /// The swaps that this command started or joined.
    pub swaps: Vec<ServiceSwap>,
    /// The services of this command for which the file says something else than what serves.
    #[serde(default)]
    pub drift: Vec<ServiceDrift>,
}

/// A drift and the service it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDrift {
    /// Name of the service.
    pub service: String,
    /// The drift.
    #[serde(flatten)]
    pub drift: Drift,
}

/// A swap and the service it belongs to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceSwap {
    /// Name of the service.
    pub service: String,
    /// The swap.
    #[serde(flatten)]
    pub swap: Swap,
}

/// Body of `POST …/promote`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// The pool to make active.
    pub pool: String,
    /// The release that it runs; written to `pools.*.version` together with `active`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How long it may take to be proven, as `20s`; `promotion.ready_timeout` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// What `POST …/cancel` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Name of the service.
    pub service: String,
    /// The pool that was being proven.
    pub cancelled: String,
    /// The pool that serves.
    pub serves: String,
}

/// The one shape of an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiError {
    /// Stable, kebab-case: `invalid-config`, `unknown-pool`, `not-ready`.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What is wrong with the configuration, if that is it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// How far a caller waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Until the command is taken.
    #[default]
    None,
    /// Until the new pool serves.
    Promoted,
    /// Until the old pool has nothing in flight.
    Drained,
}

/// `1 request still runs`, `3 requests still run`.
pub fn still_running(requests: usize) -> String {
    if requests == 1 { "1 request still runs".to_owned() } else { format!("{requests} requests still run") }
}

impl Swap {
    /// Whether the pool asked for serves.
    pub fn promoted(&self) -> bool {
        self.phase == Phase::Draining || matches!(self.outcome, Some(Outcome::Drained | Outcome::DrainTimedOut))
    }
}

impl ReloadResult {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Invalid => "invalid",
            Self::StaticChanged => "static_changed",
        }
    }
}

impl Outcome {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::DrainTimedOut => "drain_timed_out",
            Self::NotReady => "not_ready",
            Self::Superseded => "superseded",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Promoted => "promoted",
            Self::Drained => "drained",
        })
    }
}
