//! The keys of `promotion`, part of a service: what a new pool has to pass. See `service`.

use std::{fmt, time::Duration};

use http::Uri;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    format::{As, List, Maybe},
    value::{Argument, DAY, HOUR, HttpUrl, Number, Percent, ProbePath, Span},
};

/// The promotion of another pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Promotion {
    /// Time limit for the new pool to become ready. After that, the promotion fails and the old pool continues to serve.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub ready_timeout: Duration,
    /// How long the old pool is kept after the promotion, while the new pool is observed: if the new pool fails, the old pool serves
    /// again. `0s`: the new pool is not observed.
    #[serde(with = "As::<Span<0, DAY>>")]
    pub observe: Duration,
    /// When the new pool has failed, although its probes succeed.
    pub take_back: TakeBack,
    /// Requests to each peer of the new pool before the promotion; `{}` is enough. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// A check of your own before the promotion, after the warm-up: exactly one of `url` and `command`. If it fails, the promotion
    /// fails and the old pool continues to serve. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
}

/// When the new pool has failed, although its probes succeed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TakeBack {
    /// The share of its requests that may fail, with a 5xx response or without a response. A share of at most three times that of the
    /// old pool in its last minute is allowed too.
    #[serde(with = "As::<Percent>")]
    pub errors: Percentage,
    /// How many requests have to fail. Also how many requests have to wait for a response if the new pool sends none.
    #[serde(with = "As::<Number<u64, 1, 1_000_000>>")]
    pub at_least: u64,
}

/// Requests to each peer of the new pool before the promotion.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WarmUp {
    /// Paths and queries of the GET requests, in turn.
    #[serde(with = "List::<ProbePath>")]
    #[schemars(extend("minItems" = 1))]
    pub paths: Vec<String>,
    /// Maximum number of requests to each peer. The warm-up ends earlier when response times no longer change.
    #[serde(with = "As::<Number<u32, 1, 100000>>")]
    pub requests: u32,
    /// Number of concurrent requests to each peer.
    #[serde(with = "As::<Number<u32, 1, 1000>>")]
    pub concurrency: u32,
    /// Time limit of the warm-up. After that, the promotion continues, unless no request was successful.
    #[serde(with = "As::<Span<10, HOUR>>")]
    pub within: Duration,
}

/// A check of the user before the promotion.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = url_or_command)]
pub struct Check {
    /// An `http://` or `https://` URL. It gets a POST request with the facts as JSON, and has to respond with 200 to 299.
    #[serde(with = "As::<Maybe<HttpUrl>>", skip_serializing_if = "Option::is_none")]
    pub url: Option<Uri>,
    /// A program and its arguments, without a shell. It gets the facts in its environment, and has to exit with 0. A path with a
    /// `/` is relative to the configuration file's folder; a name without `/` is looked up in `PATH`.
    #[serde(with = "List::<Argument>", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1), example = ["./smoke-test", "--quick"])]
    pub command: Vec<String>,
    /// Time limit of the check. After that, the command is killed and the promotion fails.
    #[serde(with = "As::<Span<10, HOUR>>")]
    pub timeout: Duration,
}

/// One of two keys.
fn url_or_command(schema: &mut Schema) {
    schema.insert("oneOf".to_owned(), json!([{"required": ["url"]}, {"required": ["command"]}]));
}

/// A share, up to 100%.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentage {
    /// Tenths of a percent, at most 1000.
    pub per_mille: u16,
}

impl fmt::Display for Percentage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.per_mille / 10, self.per_mille % 10) {
            (percent, 0) => write!(f, "{percent}%"),
            (percent, tenths) => write!(f, "{percent}.{tenths}%"),
        }
    }
}

impl Default for Promotion {
    fn default() -> Self {
        let observe = Duration::from_secs(10);
        Self { ready_timeout: Duration::from_secs(120), observe, take_back: TakeBack::default(), warm_up: None, check: None }
    }
}

impl Default for TakeBack {
    fn default() -> Self {
        Self { errors: Percentage { per_mille: 100 }, at_least: 20 }
    }
}

impl Default for WarmUp {
    fn default() -> Self {
        Self { paths: vec!["/".to_owned()], requests: 50, concurrency: 4, within: Duration::from_secs(30) }
    }
}

impl Default for Check {
    fn default() -> Self {
        Self { url: None, command: Vec::new(), timeout: Duration::from_secs(30) }
    }
}
