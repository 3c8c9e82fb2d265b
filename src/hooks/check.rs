//! The check before a promotion: a command or a URL of the user that may refuse the release.
//!
//! The controller creates it for one promotion, runs it on a task of its own, and drops that when the swap ends meanwhile.

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::Uri;
use pingora::connectors::http::Connector;
use serde::Serialize;
use tokio::time::timeout;

use super::{command, url};
use crate::config;

/// What a check is about: a JSON object for a URL, variables for a command.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Name of the service.
    pub service: String,
    /// The pool that is about to be promoted.
    pub pool: String,
    /// The active pool.
    pub from: String,
    /// The release of the new pool, if the file has one.
    pub version: Option<String>,
    /// Addresses of the new pool's peers, as in the file.
    pub peers: Vec<String>,
}

/// A check of one promotion.
pub struct Check {
    /// Its command or URL, and its time limit.
    pub config: config::Check,
    /// What it is about.
    pub facts: Facts,
    /// The folder of the configuration file, in which commands run.
    pub folder: PathBuf,
    /// For URLs.
    pub connector: Arc<Connector>,
}

impl Check {
    /// Runs it. Dropping the future ends it: a command is killed.
    ///
    /// # Errors
    /// Why the release is refused, in one line.
    pub async fn run(&self) -> Result<(), String> {
        let config::Check { url, command, timeout: limit } = &self.config;
        let outcome = match url {
            Some(url) => {
                let body = serde_json::to_vec(&self.facts).map(Bytes::from).map_err(|e| e.to_string())?;
                let posted = timeout(*limit, url::post(&self.connector, url, &[], body)).await;
                posted.unwrap_or_else(|_| Err(format!("no response within {}", humantime::format_duration(*limit))))
            }
            None => command::run(command, &self.facts.variables(), &self.folder, *limit).await,
        };
        outcome.map_err(|why| format!("{self}: {why}"))
    }
}

/// `command ./smoke-test`, `url http://ci.internal/`: without arguments and without path and query, which may hold secrets.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config::Check { url, command, .. } = &self.config;
        let server = |url: &Uri| url.scheme_str().zip(url.authority()).map(|(scheme, server)| format!("{scheme}://{server}/"));
        match url.as_ref().and_then(server) {
            Some(server) => write!(f, "url {server}"),
            None => write!(f, "command {}", command.first().map_or("", String::as_str)),
        }
    }
}

impl Facts {
    fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("SWITCHOVER_SERVICE", self.service.clone()),
            ("SWITCHOVER_POOL", self.pool.clone()),
            ("SWITCHOVER_FROM", self.from.clone()),
            ("SWITCHOVER_VERSION", self.version.clone().unwrap_or_default()),
            ("SWITCHOVER_PEERS", self.peers.join(" ")),
        ]
    }
}
