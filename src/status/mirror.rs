//! The status of mirrored requests.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The copies of a service's requests for a pool that is not active, since the two pools last changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirror {
    /// The share of requests that is copied: `10%`.
    pub share: String,
    /// The responses of the active pool to the requests that were copied.
    pub originals: Responses,
    /// The responses to the copies. A copy that gets none counts as 502 or 504.
    pub copies: Responses,
    /// Copies without a response.
    pub failed: u64,
    /// Copies that were not sent, because too many were running.
    pub dropped: u64,
    /// Copies that were not sent, because no peer of the pool was ready.
    pub not_ready: u64,
}

/// The responses of one pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Responses {
    /// Name of the pool.
    pub pool: String,
    /// Their number by the first digit of the status, from 1 to 5.
    pub by_class: [u64; 5],
    /// Time to the response header, from the connection: the median. None without a response.
    pub p50_seconds: Option<f64>,
    /// The same for 95 of 100 responses.
    pub p95_seconds: Option<f64>,
}

impl Responses {
    /// Their number.
    pub fn total(&self) -> u64 {
        self.by_class.iter().sum()
    }

    /// The number of those with a 5xx status.
    pub fn server_errors(&self) -> u64 {
        self.by_class[4]
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { share, originals, copies, dropped, not_ready, .. } = self;
        let (errors, total) = (copies.server_errors(), copies.total());
        write!(f, "{share} to {}, which would have responded to {errors} of {total} with 5xx", copies.pool)?;
        write!(f, "; {} to {} of {}", originals.pool, originals.server_errors(), originals.total())?;
        if let (Some(copy), Some(original)) = (copies.p95_seconds, originals.p95_seconds) {
            write!(f, "; p95 {:.0} ms, {} {:.0} ms", copy * 1000.0, originals.pool, original * 1000.0)?;
        }
        for (number, why) in [(dropped, "too many were running"), (not_ready, "no peer was ready")] {
            if *number > 0 {
                write!(f, "; {number} were not copied, because {why}")?;
            }
        }
        Ok(())
    }
}
