//! The bound on the length of a request body (`body_bytes`).
//!
//! [`super::head`] checks a declared length, [`super::client_stream`] the chunks of a body without one, [`super::http2`] the bytes of a stream.

use super::reject::Rejection;

/// Counts the bytes of one body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimit {
    bytes: u64,
    most: Option<u64>,
}

impl BodyLimit {
    /// At the start of a body of at most `most` bytes.
    pub(super) fn new(most: Option<u64>) -> Self {
        Self { bytes: 0, most }
    }

    /// Counts so many more bytes.
    ///
    /// # Errors
    /// When the body is too long.
    pub(super) fn add(&mut self, bytes: u64) -> Result<(), Rejection> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.most.is_some_and(|most| self.bytes > most) { Err(Rejection::BodyBytes) } else { Ok(()) }
    }
}
