//! The responses to `http-01` challenges (RFC 8555, section 8.3), for `/.well-known/acme-challenge/TOKEN`.
//!
//! Filled by [`super::Acme`] while it waits for an authority, read by the proxy for that path alone.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// Where authorities look for the response to a challenge, over plain HTTP (RFC 8555, section 8.3).
const FOLDER: &str = "/.well-known/acme-challenge/";

/// The challenges of the orders in progress: key authorizations by token. Clones share them.
#[derive(Clone, Default)]
pub struct ChallengeStore(Arc<Mutex<HashMap<String, String>>>);

impl ChallengeStore {
    /// The token that an authority asks for, in the alphabet of tokens (RFC 8555, section 8.3). A path that only begins like that, such
    /// as one that leads out of the folder again, is a request as any other.
    pub fn token(path: &str) -> Option<&str> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        path.strip_prefix(FOLDER).filter(|token| !token.is_empty() && token.bytes().all(is_token))
    }

    /// The key authorization to answer `token` with; none for a token that no order in progress has.
    pub fn get(&self, token: &str) -> Option<String> {
        self.0.lock().get(token).cloned()
    }

    pub(super) fn insert(&self, token: &str, key_authorization: String) {
        self.0.lock().insert(token.to_owned(), key_authorization);
    }

    pub(super) fn remove(&self, token: &str) {
        self.0.lock().remove(token);
    }
}
