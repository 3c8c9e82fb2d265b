//! The keys of `mirror`, part of a service: copies of requests for a pool that is not active. See `service`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    format::As,
    promotion::Percentage,
    value::{Percent, Reference},
};

/// Copies of requests for a pool that is not active. Its responses are thrown away.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The pool that gets the copies, while it is not active and ready. It is not safe to stop meanwhile.
    #[serde(default, with = "As::<Reference>")]
    #[schemars(!default, example = &"green")]
    pub pool: String,
    /// The share of GET, HEAD and OPTIONS requests without a body that is copied.
    #[serde(default = "a_tenth", with = "As::<Percent>")]
    pub share: Percentage,
}

fn a_tenth() -> Percentage {
    Percentage { per_mille: 100 }
}
