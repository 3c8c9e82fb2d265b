//! What all connections share: the application, the counting and logging of rejections, and the closing of idle connections.
//!
//! [`super::edge`] makes one; [`super::http2`] gets it with each connection.

use std::sync::Arc;

use super::{closing::Closing, rejections::Rejections};

/// Shared by all connections of all listeners.
pub(super) struct Shared<A> {
    /// Answers requests.
    pub(super) app: Arc<A>,
    pub(super) rejections: Arc<Rejections>,
    pub(super) closing: Closing,
}
