//! The types of previews: requests to a pool that is not active. See `model`.

use http::HeaderName;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    format::{As, List},
    value::{Network, PreviewHeader},
};

/// Requests that choose their pool by a header, from clients that may do so.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Preview {
    /// The header whose value is the name of the pool. Neither it nor `X-Switchover-Token` is forwarded.
    #[serde(with = "As::<PreviewHeader>")]
    pub header: HeaderName,
    /// Networks and addresses of clients that may use it. Others need `X-Switchover-Token` with the token of `admin.token_file`.
    #[serde(with = "List::<Network>")]
    pub from: Vec<IpNet>,
}

impl Default for Preview {
    fn default() -> Self {
        Self { header: HeaderName::from_static("x-switchover-pool"), from: Vec::new() }
    }
}
