//! The keys of `canary`, part of a service: a share of the clients for a pool that is not active. See `service`.

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    format::{As, Maybe},
    promotion::Percentage,
    value::{CookieName, HeaderField, Reference, Share},
};

/// A share of the clients, and requests that choose, for a pool that is not active.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// The pool that gets them, while it is ready. It is not safe to stop meanwhile. If it is the active pool, `canary` has no effect.
    #[serde(default, with = "As::<Reference>")]
    #[schemars(!default, example = &"green")]
    pub pool: String,
    /// The share of the clients. `0%`: only the requests that `header` or `cookie` sends there.
    #[serde(default = "none", with = "As::<Share>")]
    pub share: Percentage,
    /// What keeps a client on its pool.
    #[serde(default)]
    pub stick: Stick,
    /// A header, by its name: requests with the value `always` go to the pool, and those with `never` do not, whatever the share.
    #[serde(default, with = "As::<Maybe<HeaderField>>", skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderName>,
    /// A cookie with the same values, by its name. The header comes first.
    #[serde(default, with = "As::<Maybe<CookieName>>", skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
}

/// What keeps a client on its pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stick {
    /// The cookie `switchover_side`, which the first response sets.
    #[default]
    Cookie,
    /// The client's address, as peers get it in `X-Real-IP`.
    ClientAddress,
}

impl Canary {
    /// Whether it sends any request to its pool, given the active one.
    pub fn has_effect(&self, active: &str) -> bool {
        self.pool != active && (self.share.per_mille > 0 || self.header.is_some() || self.cookie.is_some())
    }
}

fn none() -> Percentage {
    Percentage { per_mille: 0 }
}
