//! The responses to `http-01` challenges (RFC 8555, section 8.3), for `/.well-known/acme-challenge/TOKEN`.
//!
//! Filled by [`super::Acme`] while it waits for an authority, read by the proxy for that path alone.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// The challenges of the orders in progress: key authorizations by token. Clones share them.
#[derive(Clone, Default)]
pub struct ChallengeStore(Arc<Mutex<HashMap<String, String>>>);

impl ChallengeStore {
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
