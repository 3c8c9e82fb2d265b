//! The responses to `http-01` challenges (RFC 8555, section 8.3), for `/.well-known/acme-challenge/TOKEN`.
//!
//! [`super::Acme`] fills the store while an order is in progress; the proxy reads it for this path only.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// The path under which an authority fetches the response to a challenge, over plain HTTP (RFC 8555, section 8.3).
const FOLDER: &str = "/.well-known/acme-challenge/";

/// The challenges of the orders in progress: key authorizations by token. Clones share them.
#[derive(Clone, Default)]
pub struct ChallengeStore(Arc<Mutex<HashMap<String, String>>>);

impl ChallengeStore {
    /// The token in the path of a challenge request. None for a path with characters that a token cannot have (RFC 8555,
    /// section 8.3), such as one with `..`: that is an ordinary request.
    pub fn token(path: &str) -> Option<&str> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        path.strip_prefix(FOLDER).filter(|token| !token.is_empty() && token.bytes().all(is_token))
    }

    /// The key authorization of `token`; none if no order in progress has this token.
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
