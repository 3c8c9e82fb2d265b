//! The limit of file descriptors, and the number of client connections that fit into it.
//!
//! The composition root raises the limit before it binds; [`crate::clients`] accepts no more connections than fit.

use log::{info, warn};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Reserved for the process itself: listeners, the admin API, probes, files, the runtime.
const OWN: usize = 128;
/// Reserved for idle connections to peers; at most a quarter of all descriptors.
const KEPT: usize = 1024;
/// One connection from a client, and one to a peer.
const PER_CONNECTION: usize = 2;

/// Raises the soft limit to the hard limit, and warns if the connections that `config` allows do not fit. Returns the number of
/// client connections that fit.
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
            "the limit of file descriptors is too low for limits.connections: further connections wait in the backlog \
             limit={limit} connections={wanted} fit={fit} needed={}; raise it (LimitNOFILE=, ulimits, ulimit -n), or lower \
             limits.connections",
            needed(wanted)
        );
    }
    fit
}

/// The limit that `connections` client connections need.
pub const fn needed(connections: usize) -> usize {
    OWN + KEPT + PER_CONNECTION * connections
}

/// The number of client connections that fit into `limit` descriptors; at least one.
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
    fn the_needed_limit_fits() {
        assert_eq!(fitting(needed(10_000)), 10_000);
        assert!(fitting(1024) < 512 && fitting(0) == 1 && fitting(usize::MAX) > 1_000_000);
    }
}
