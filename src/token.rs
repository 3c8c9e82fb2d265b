//! The token of `admin.token_file`, which the admin API and previews require.
//!
//! The admin API reads the file for each request, `check` and the commands read it once. Requests never wait for a disk, so for
//! previews a task keeps the token in memory.

use std::{fs, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use log::{error, warn};
use subtle::ConstantTimeEq;

/// Shorter tokens could be guessed.
const SHORTEST: usize = 16;

/// Time between two reads of the file, as for certificates.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The token in memory; without one, no token is accepted.
pub struct Token(ArcSwapOption<String>);

impl Token {
    /// Reads the file once.
    pub fn new(file: Option<&Path>) -> Self {
        let token = file.and_then(|file| named(file).ok());
        Self(ArcSwapOption::new(token.map(Arc::new)))
    }

    /// Whether a client has sent the token.
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.load().as_ref().is_some_and(|token| is_equal(given, token))
    }

    /// Reads the file once a second. While it cannot be used, no token is accepted. Never returns.
    pub async fn watch(&self, file: Arc<Path>) {
        let mut last = None;
        loop {
            let read = {
                let file = Arc::clone(&file);
                tokio::task::spawn_blocking(move || named(&file)).await
            };
            match &read {
                Ok(Err(reason)) if last.as_ref() != Some(reason) => warn!("no preview by token is possible reason={reason}"),
                Err(e) => error!("the token could not be read again error={e}"),
                Ok(_) => {}
            }
            last = read.as_ref().ok().and_then(|read| read.as_ref().err().cloned());
            self.0.store(read.ok().and_then(Result::ok).map(Arc::new));
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Compares in constant time, so that the time of a response does not reveal how much of a token is right.
pub fn is_equal(given: &[u8], token: &str) -> bool {
    given.ct_eq(token.as_bytes()).into()
}

/// Reads the token, without surrounding space.
///
/// # Errors
/// When the file cannot be read or its token is too short; the message names `admin.token_file`.
pub fn named(file: &Path) -> Result<String, String> {
    read(file).map_err(|why| format!("admin.token_file: {why}"))
}

/// As [`named`], for callers that name the key themselves.
///
/// # Errors
/// As [`named`].
pub fn read(file: &Path) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let token = text.trim();
    if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let file = file.display();
        return Err(format!(
            "{file} has to hold one token of {SHORTEST} characters or more; create one with: openssl rand -hex 32"
        ));
    }
    Ok(token.to_owned())
}
