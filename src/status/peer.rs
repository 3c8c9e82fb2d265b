//! The status of one peer.

use serde::{Deserialize, Serialize};

/// One peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// As written in the file.
    pub address: String,
    /// The addresses of its name; empty while it cannot be resolved.
    pub resolved: Vec<String>,
    /// Its share of the requests, relative to the other peers of the pool.
    pub weight: u16,
    /// Whether it is ready, according to its probes.
    pub ready: bool,
    /// Whether it gets no new requests while its running requests end.
    pub draining: bool,
    /// Running requests and upgraded connections.
    pub in_flight: usize,
    /// Upgraded connections, which `in_flight` includes.
    pub upgraded: usize,
    /// The last probe; none before the first one.
    pub last_probe: Option<Probe>,
}

/// The result of one probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// When it ended, RFC 3339.
    pub at: String,
    /// Whether it passed.
    pub ok: bool,
    /// Its duration.
    pub milliseconds: u64,
    /// Why it failed; none if it passed.
    pub reason: Option<String>,
}
