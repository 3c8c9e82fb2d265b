//! Finds rejections by the h2 library and by Pingora in the HTTP/2 frames that are sent to a client.
//!
//! The h2 library rejects floods, streams past the limit and protocol errors by itself, and reports them to the client only. Pingora
//! does the same with a request that has no `:authority`, or two that differ: it answers 400 before any hook.
//! [`super::client_stream`] passes every byte that it sends on an HTTP/2 connection; [`super::http2`] counts the rejections. Nothing here
//! changes or delays a byte.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use super::reject::Rejection;

/// Length, kind, flags and stream (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// The longest beginning that is needed: the last stream and the error code of a GOAWAY.
const MOST: usize = HEAD + 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
/// A flag of DATA and HEADERS.
const END_STREAM: u8 = 1;
/// As a field of the static table (RFC 7541, appendix A).
const STATUS_400: u8 = 0x8c;

/// Follows the frames of one connection.
pub(crate) struct FrameWatcher {
    report: Box<dyn Fn(Rejection) + Send + Sync>,
    /// Responses whose last frame was sent. Pingora's own 400 does not count: [`super::http2`] never sees its request.
    ended: Arc<AtomicU32>,
    /// The beginning of the current frame.
    begin: [u8; MOST],
    have: usize,
    /// How many further bytes of it are not needed.
    skip: usize,
}

impl FrameWatcher {
    /// Calls `report` for each rejection, and counts the responses that have ended in `ended`.
    pub(crate) fn new(report: impl Fn(Rejection) + Send + Sync + 'static, ended: Arc<AtomicU32>) -> Self {
        Self { report: Box::new(report), ended, begin: [0; MOST], have: 0, skip: 0 }
    }

    /// Takes the next bytes that were sent.
    pub(crate) fn written(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let missing = self.needed() - self.have;
            let Some(next) = bytes.get(..missing.min(bytes.len())).filter(|next| !next.is_empty()) else { return };
            if let Some(place) = self.begin.get_mut(self.have..self.have + next.len()) {
                place.copy_from_slice(next);
            }
            self.have += next.len();
            bytes = bytes.get(next.len()..).unwrap_or_default();
            if self.have == self.needed() {
                if let Some(rejection) = self.rejection() {
                    (self.report)(rejection);
                }
                if self.ends_response() {
                    self.ended.fetch_add(1, Relaxed);
                }
                self.skip = self.length() - (self.have - HEAD);
                self.have = 0;
            }
        }
    }

    /// The length of the beginning that is needed, as far as it is known.
    fn needed(&self) -> usize {
        let [_, _, _, kind, ..] = self.begin;
        match kind {
            _ if self.have < HEAD => HEAD,
            RST_STREAM => HEAD + self.length().min(4),
            GOAWAY => HEAD + self.length().min(8),
            HEADERS if HEAD + self.length() <= MOST => HEAD + self.length(),
            _ => HEAD,
        }
    }

    fn length(&self) -> usize {
        let [high, middle, low, ..] = self.begin;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }

    /// Whether the fields are those of Pingora's 400: only the status. Every other response has at least a date.
    fn is_bare_400(&self) -> bool {
        match self.begin.get(HEAD..self.have) {
            Some([STATUS_400]) => true,
            // The first fields of a connection may begin with a new size of their table (RFC 7541, section 6.3).
            Some([0x20..=0x3f, .., STATUS_400]) => true,
            _ => false,
        }
    }

    fn ends_response(&self) -> bool {
        let [_, _, _, kind, flags, ..] = self.begin;
        matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 && !(kind == HEADERS && self.is_bare_400())
    }

    fn rejection(&self) -> Option<Rejection> {
        let [_, _, _, kind, _, _, _, _, _, a0, a1, a2, a3, b0, b1, b2, b3] = self.begin;
        match kind {
            RST_STREAM => rejection_of([a0, a1, a2, a3]),
            GOAWAY => rejection_of([b0, b1, b2, b3]),
            HEADERS if self.is_bare_400() => Some(Rejection::BadRequest("an :authority and a Host that do not name one host")),
            _ => None,
        }
    }
}

/// The rejection that an error code reports (RFC 9113, section 7).
const fn rejection_of(code: [u8; 4]) -> Option<Rejection> {
    match u32::from_be_bytes(code) {
        // NO_ERROR, INTERNAL_ERROR, CANCEL: not the client's fault.
        0 | 2 | 8 => None,
        // REFUSED_STREAM
        7 => Some(Rejection::Streams),
        // ENHANCE_YOUR_CALM
        11 => Some(Rejection::Flood),
        _ => Some(Rejection::BadRequest("an error of HTTP/2")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// The reasons, and how many responses have ended.
    fn found(bytes: &[u8], piece: usize) -> (Vec<&'static str>, u32) {
        let (report, found) = std::sync::mpsc::channel();
        let ended = Arc::default();
        let mut frames = FrameWatcher::new(move |rejection| report.send(rejection.reason()).unwrap(), Arc::clone(&ended));
        bytes.chunks(piece).for_each(|piece| frames.written(piece));
        drop(frames);
        (found.iter().collect(), ended.load(Relaxed))
    }

    #[test]
    fn refusals_are_found_however_the_bytes_are_cut() {
        let bytes = [
            frame(4, 0, 0, &[0; 12]),
            frame(1, 4, 1, b"header"),
            frame(0, 1, 1, &[RST_STREAM; 3000]),
            frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]),
            frame(RST_STREAM, 0, 5, &[0, 0, 0, 8]),
            frame(RST_STREAM, 0, 9, &[0, 0, 0, 1]),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]),
            frame(GOAWAY, 0, 0, b"\0\0\0\x09\0\0\0\x0bsome words"),
            frame(0, 0, 1, b""),
        ]
        .concat();
        for piece in [1, 2, 8, 9, 10, 17, 4096] {
            let reasons = vec!["streams_per_connection", "bad_request", "h2_flood"];
            assert_eq!(found(&bytes, piece), (reasons, 1), "in pieces of {piece}");
        }
        let answers = [
            frame(HEADERS, 5, 1, &[STATUS_400]),
            frame(HEADERS, 5, 3, &[0x3f, 0xe1, 0x1f, STATUS_400]),
            frame(HEADERS, 5, 5, &[0x88]),
            frame(HEADERS, 4, 7, &[STATUS_400, 0x5f, 1, b'a', 0x61, 2, b'b', b'c', b'd']),
            frame(HEADERS, 5, 9, b""),
        ]
        .concat();
        for piece in [1, 9, 10, 4096] {
            assert_eq!(found(&answers, piece), (vec!["bad_request"; 2], 2), "in pieces of {piece}");
        }
        // No library sends these frames; they only must not panic.
        assert_eq!(found(&[frame(RST_STREAM, 0, 1, b""), frame(GOAWAY, 0, 0, b"\x01")].concat(), 1), (vec![], 0));
    }
}
