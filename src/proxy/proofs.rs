//! What is answered to an authority that asks for `/.well-known/acme-challenge/TOKEN` (RFC 8555, section 8.3).
//!
//! Filled by [`crate::acme`] while an order goes on, read by the proxy for that path alone.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// The proofs of the orders that are going on, by token.
#[derive(Clone, Default)]
pub struct Proofs(Arc<Mutex<HashMap<String, String>>>);

impl Proofs {
    /// Answers `token` with this from now on.
    pub fn show(&self, token: &str, proof: String) {
        self.0.lock().insert(token.to_owned(), proof);
    }

    /// Answers it no more.
    pub fn hide(&self, token: &str) {
        self.0.lock().remove(token);
    }

    pub(super) fn get(&self, token: &str) -> Option<String> {
        self.0.lock().get(token).cloned()
    }
}
