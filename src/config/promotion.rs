//! The keys of `promotion`, part of a service: what a new pool has to pass. See `service`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    format::As,
    value::{DAY, Span},
};

/// The promotion of another pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Promotion {
    /// Time limit for the new pool to become ready. After that, the promotion fails and the old pool continues to serve.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub ready_timeout: Duration,
}

impl Default for Promotion {
    fn default() -> Self {
        Self { ready_timeout: Duration::from_secs(120) }
    }
}
