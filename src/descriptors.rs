//! File descriptors: how many the process may have, and how many of them are for clients.
//!
//! The composition root raises the limit before it binds; [`crate::clients`] accepts no more connections than fit.

use log::{info, warn};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Of the process itself: listeners, the admin API, probes, files, the runtime.
const OWN: usize = 128;
/// Unused connections to peers that may be kept besides those in use; at most a quarter of all descriptors.
const KEPT: usize = 1024;
/// A connection from a client, and the one to a peer that it needs.
const PER_CONNECTION: usize = 2;

/// Raises the soft limit to the hard one, and warns if it does not fit the connections that `config` allows. Returns how many
/// connections from clients fit.
pub fn raise(config: &Config) -> usize {
    let limit = match raised() {
        Ok(limit) => limit,
        Err(e) => {
            warn!("cannot read or raise the limit of file descriptors error={e}");
            return config.connections();
        }
    };
    let (fit, wanted) = (fitting(limit), config.connections());
    if fit < wanted {
        warn!(
            "the limit of file descriptors is too low for limits.connections: further clients will wait to be accepted \
             limit={limit} connections={wanted} fit={fit} needed={}; raise it (LimitNOFILE=, ulimits, ulimit -n), or lower \
             limits.connections",
            needed(wanted)
        );
    }
    fit
}

/// The limit of descriptors that `connections` connections from clients need.
pub const fn needed(connections: usize) -> usize {
    OWN + KEPT + PER_CONNECTION * connections
}

/// How many connections from clients fit into `limit` descriptors; at least one.
fn fitting(limit: usize) -> usize {
    let own = OWN.min(limit / 4) + KEPT.min(limit / 4);
    (limit.saturating_sub(own) / PER_CONNECTION).max(1)
}

fn raised() -> nix::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        info!("raised the limit of file descriptors from={soft} to={hard}");
    }
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_fits() {
        assert_eq!(fitting(needed(10_000)), 10_000);
        assert!(fitting(1024) < 512 && fitting(0) == 1 && fitting(usize::MAX) > 1_000_000);
    }
}
