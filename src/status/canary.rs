//! The status of a canary.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The share of the clients that another pool than the active one gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Name of the pool.
    pub pool: String,
    /// The share: `5%`. At `0%`, the pool gets only requests that choose it by the header or the cookie.
    pub share: String,
    /// Why the pool gets no requests at the moment; none if it gets them.
    pub no_effect_because: Option<String>,
}

impl fmt::Display for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, share, no_effect_because } = self;
        match no_effect_because {
            None => write!(f, "{share} of the clients to {pool}"),
            Some(why) => write!(f, "{share} of the clients to {pool}, without effect: {why}"),
        }
    }
}
