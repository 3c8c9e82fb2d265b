//! The types of the admin API's responses and request bodies, shared by the server and the command line.
//!
//! They are plain values: the controller fills them, the admin API serializes them, and the commands print them. Field names are
//! stable, because scripts read them.

mod canary;
mod mirror;
mod peer;
mod swap;

pub use self::{
    canary::Canary,
    mirror::{Mirror, Responses},
    peer::{PeerStatus, Probe},
    swap::{Observation, Outcome, Phase, Swap, still_running},
};

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Problem;

/// The response of `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Number of the current snapshot, counted from 1.
    pub generation: u64,
    /// Version of the running program.
    pub version: String,
    /// Addresses of the listeners, with their real ports.
    pub listeners: Vec<String>,
    /// The configuration file and its last reload.
    pub config: ConfigStatus,
    /// Sorted by name.
    pub services: Vec<ServiceStatus>,
}

/// The configuration file and its last reload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Its absolute path.
    pub file: String,
    /// The last reload.
    pub last_reload: Reload,
    /// The folder of `state_dir`; none if the file has no such key.
    #[serde(default)]
    pub state_dir: Option<StateDir>,
}

/// The folder in which switchover records the pools that served last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDir {
    /// Its path.
    pub path: String,
    /// Why the last write failed; none if it succeeded.
    pub problem: Option<String>,
}

/// One reload of the configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reload {
    /// Its result.
    pub result: ReloadResult,
    /// Its time, RFC 3339.
    pub at: String,
    /// Why it was rejected; empty if it was accepted.
    pub problems: Vec<Problem>,
}

/// The result of a reload; also the label of `config_reloads_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadResult {
    /// The configuration runs, or is being proven.
    Applied,
    /// The configuration already ran.
    Unchanged,
    /// The file cannot be read or is invalid.
    Invalid,
    /// The file changes static values, which need a restart.
    StaticChanged,
}

/// One service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name in the file.
    pub name: String,
    /// The active pool.
    pub active: String,
    /// The pool that served before the restart, according to `state_dir`; none once a pool of the service is ready.
    #[serde(default)]
    pub served_last: Option<String>,
    /// The swap in progress, or the last one; none before the first.
    pub swap: Option<Swap>,
    /// The last swap that ended.
    pub last_swap: Option<Swap>,
    /// The difference between the file and the running service; none if they agree, or while the file's configuration is being
    /// proven.
    #[serde(default)]
    pub drift: Option<Drift>,
    /// The copies of requests; none while no pool gets them.
    #[serde(default)]
    pub mirror: Option<Mirror>,
    /// The canary of the running configuration.
    #[serde(default)]
    pub canary: Option<Canary>,
    /// Sorted by name.
    pub pools: Vec<PoolStatus>,
}

/// The running service differs from the file, because the file's configuration failed or was cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// The pool that the file names.
    pub file: String,
    /// The active pool; the same as `file` if other settings of the service failed.
    pub serves: String,
    /// Why the file's configuration does not run.
    pub reason: String,
    /// When the drift began, RFC 3339.
    pub since: String,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, serves, reason, since } = self;
        if file == serves {
            return write!(
                f,
                "the file has other settings for {file}, which failed at {since}: {reason}; the earlier settings stay in use"
            );
        }
        write!(f, "the file names {file}, which failed at {since}: {reason}; {serves} serves")
    }
}

/// One pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name in the file.
    pub name: String,
    /// Its release, if the file has one.
    pub version: Option<String>,
    /// Its state.
    pub state: PoolState,
    /// Whether its processes can be stopped without a failed request, now and after a swap in progress.
    pub safe_to_stop: bool,
    /// Why it is not safe to stop: `blue serves`, `3 requests still run`, `127.0.0.1:8081 also serves api`.
    #[serde(default)]
    pub not_safe_because: Option<String>,
    /// Running requests and upgraded connections.
    pub in_flight: usize,
    /// Upgraded connections (WebSocket), which `in_flight` includes.
    pub upgraded: usize,
    /// In the order of the file; removed peers that still drain come last.
    pub peers: Vec<PeerStatus>,
}

/// The state of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// It serves.
    Active,
    /// It gets no new requests; its running requests end.
    Draining,
    /// The same, and it serves again if the new pool fails while that is observed.
    Kept,
    /// It is being proven.
    Proving,
    /// It gets a share of the clients, or the requests that choose it.
    Canary,
    /// It is probed, and gets no requests.
    Standby,
}

/// The response of `POST /v1/reload` and `POST …/promote`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// `applied` or `unchanged`.
    pub result: ReloadResult,
    /// Number of the current snapshot.
    pub generation: u64,
    /// The swaps that this command started or joined.
    pub swaps: Vec<ServiceSwap>,
    /// The services of this command whose configuration in the file does not run.
    #[serde(default)]
    pub drift: Vec<ServiceDrift>,
}

/// The drift of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDrift {
    /// Name of the service.
    pub service: String,
    /// The drift.
    #[serde(flatten)]
    pub drift: Drift,
}

/// A swap of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceSwap {
    /// Name of the service.
    pub service: String,
    /// The swap.
    #[serde(flatten)]
    pub swap: Swap,
}

/// The body of `POST …/promote`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promote {
    /// The pool to make active.
    pub pool: String,
    /// Its release, which is written into the file together with `active`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Time limit of the proof, such as `20s`; default: `promotion.ready_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// The response of `POST …/cancel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Name of the service.
    pub service: String,
    /// The pool that was being proven.
    pub cancelled: String,
    /// The active pool.
    pub serves: String,
}

/// The body of every error response.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiError {
    /// Stable, kebab-case: `invalid-config`, `unknown-pool`, `not-ready`.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// The problems of the configuration, if these are the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// How long a command waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// Until the command is accepted.
    #[default]
    None,
    /// Until the new pool serves.
    Promoted,
    /// Until the old pool is safe to stop.
    Drained,
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

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Promoted => "promoted",
            Self::Drained => "drained",
        })
    }
}
