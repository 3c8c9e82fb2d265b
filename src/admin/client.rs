//! The client of the admin API, for the command line. Shares its types with the server ([`crate::status`]).

use std::{fmt, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use ureq::{Agent, RequestBuilder, http::Response};

use crate::status::{ApiError, Applied, Cancelled, Promote, Status, Wait};

/// Time limit of a read. A command that waits for a swap has none: the server bounds it.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the admin API of a running switchover.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    address: String,
    /// `Bearer TOKEN`.
    authorization: Option<String>,
}

/// Why a call failed.
#[derive(Debug)]
pub enum CallError {
    /// No response, or one that cannot be parsed.
    Unreachable(String),
    /// switchover rejected the call, or the call failed.
    Api(ApiError),
}

impl Client {
    /// Creates a client for the admin API at `address` (`127.0.0.1:9901`), which may require a token.
    pub fn new(address: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).proxy(None).build();
        Self {
            agent: Agent::new_with_config(config),
            address: address.to_owned(),
            authorization: token.map(|token| format!("Bearer {token}")),
        }
    }

    /// The address that it calls.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// When there is no response.
    pub fn status(&self) -> Result<Status, CallError> {
        let url = format!("http://{}/v1/status", self.address);
        let request = self.agent.get(&url).config().timeout_global(Some(READ_TIMEOUT)).build();
        self.read(self.authorized(request).call())
    }

    /// `GET /readyz`: whether switchover serves.
    ///
    /// # Errors
    /// When there is no response, or switchover is not ready, with the reason.
    pub fn ready(&self) -> Result<(), CallError> {
        let url = format!("http://{}/readyz", self.address);
        let request = self.agent.get(&url).config().timeout_global(Some(READ_TIMEOUT)).build();
        let mut answer = request.call().map_err(|e| self.unreachable(&e))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let why = answer.body_mut().read_to_string().unwrap_or_default();
        Err(CallError::Unreachable(format!("{} is not ready: {}", self.address, why.trim())))
    }

    /// Reloads the configuration.
    ///
    /// # Errors
    /// When there is no response, the file is rejected, or a swap fails.
    pub fn reload(&self, wait: Wait) -> Result<Applied, CallError> {
        self.post(&format!("/v1/reload?wait={wait}"), &serde_json::json!({}))
    }

    /// Promotes a pool.
    ///
    /// # Errors
    /// When there is no response, the pool is unknown, or the swap fails.
    pub fn promote(&self, service: &str, promote: &Promote, wait: Wait) -> Result<Applied, CallError> {
        self.post(&format!("/v1/services/{service}/promote?wait={wait}"), promote)
    }

    /// Cancels the swap that is being proven.
    ///
    /// # Errors
    /// When there is no response, or no swap is being proven.
    pub fn cancel(&self, service: &str) -> Result<Cancelled, CallError> {
        self.post(&format!("/v1/services/{service}/cancel"), &serde_json::json!({}))
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CallError> {
        self.read(self.authorized(self.agent.post(format!("http://{}{path}", self.address))).send_json(body))
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        }
    }

    fn unreachable(&self, e: &ureq::Error) -> CallError {
        let address = &self.address;
        CallError::Unreachable(format!(
            "no answer from the admin address {address}: {e}; does switchover run, with this admin.address?"
        ))
    }

    fn read<T: DeserializeOwned>(&self, answer: Result<Response<ureq::Body>, ureq::Error>) -> Result<T, CallError> {
        let mut answer = answer.map_err(|e| self.unreachable(&e))?;
        if answer.status().is_success() {
            return answer.body_mut().read_json().map_err(|e| self.unreachable(&e));
        }
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        match serde_json::from_str(&text) {
            Ok(error) => Err(CallError::Api(error)),
            Err(_) => Err(CallError::Unreachable(format!(
                "{} is not switchover's admin address: it answered {}",
                self.address,
                answer.status()
            ))),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(message) => f.write_str(message),
            Self::Api(error) if error.problems.is_empty() => f.write_str(&error.message),
            Self::Api(error) => {
                let lines: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}
