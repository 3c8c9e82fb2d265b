//! Finds the end of a chunked body (RFC 9112, section 7.1), and rejects bodies whose end parsers could find elsewhere.
//!
//! [`crate::clients::client_stream`] passes the bytes as they arrive, in pieces of any size; Pingora gets only accepted bytes. Pure.

use crate::clients::{body_limit::BodyLimit, reject::Rejection};

/// The most bytes in the extensions of one chunk, and in all trailer fields together.
const EXTRA_BYTES: usize = 4096;
/// The most hexadecimal digits in a chunk size; 60 bits, which cannot overflow.
const SIZE_DIGITS: u8 = 15;

/// The state of the parser.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    state: State,
    /// Counts the length of all chunks.
    limit: BodyLimit,
    extra: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the digits of a chunk size.
    Size {
        digits: u8,
        size: u64,
    },
    /// After a `;`.
    Extension {
        size: u64,
    },
    /// Before the LF that ends the size line.
    SizeFeed {
        size: u64,
    },
    Data(u64),
    DataReturn,
    DataFeed,
    /// At the start of a line after the last chunk.
    Trailer,
    InTrailer,
    TrailerFeed,
    LastFeed,
    Done,
}

impl Chunks {
    /// At the start of a body of at most `most` bytes.
    pub(crate) fn new(most: Option<u64>) -> Self {
        Self { state: State::Size { digits: 0, size: 0 }, limit: BodyLimit::new(most), extra: 0 }
    }

    /// Whether the body is complete.
    pub(crate) fn done(&self) -> bool {
        self.state == State::Done
    }

    /// How many of these bytes belong to the body.
    ///
    /// # Errors
    /// When another parser could find another end, or the body is too long.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> Result<usize, Rejection> {
        let mut at = 0;
        while let (Some(rest), false) = (bytes.get(at..), self.done()) {
            if let State::Data(left) = self.state {
                let passed = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                let left = left.saturating_sub(passed as u64);
                self.state = if left == 0 { State::DataReturn } else { State::Data(left) };
                at += passed;
                if left > 0 {
                    break;
                }
                continue;
            }
            let Some(byte) = rest.first() else { break };
            self.state = self.next(*byte)?;
            at += 1;
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8) -> Result<State, Rejection> {
        const BAD: Rejection = Rejection::BadRequest("an invalid chunk");
        let visible = byte == b'\t' || byte == b' ' || byte.is_ascii_graphic() || byte >= 0x80;
        match (self.state, byte) {
            (State::Size { digits, size }, _) if byte.is_ascii_hexdigit() && digits < SIZE_DIGITS => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Ok(State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) })
            }
            (State::Size { digits: 1.., size }, b'\r') | (State::Extension { size }, b'\r') => Ok(State::SizeFeed { size }),
            (State::Size { digits: 1.., size }, b';') => {
                self.extra = 0;
                Ok(State::Extension { size })
            }
            (State::Extension { .. } | State::InTrailer, _) if visible && self.extra < EXTRA_BYTES => {
                self.extra += 1;
                Ok(self.state)
            }
            (State::SizeFeed { size: 0 }, b'\n') => {
                self.extra = 0;
                Ok(State::Trailer)
            }
            (State::SizeFeed { size }, b'\n') => {
                self.limit.add(size)?;
                Ok(State::Data(size))
            }
            (State::DataReturn, b'\r') => Ok(State::DataFeed),
            (State::DataFeed, b'\n') => Ok(State::Size { digits: 0, size: 0 }),
            (State::Trailer, b'\r') => Ok(State::LastFeed),
            // A line that starts with a space would continue the line before it.
            (State::Trailer, _) if byte.is_ascii_graphic() => Ok(State::InTrailer),
            (State::InTrailer, b'\r') => Ok(State::TrailerFeed),
            (State::TrailerFeed, b'\n') => Ok(State::Trailer),
            (State::LastFeed, b'\n') => Ok(State::Done),
            _ => Err(BAD),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(body: &str) -> Result<(usize, bool), Rejection> {
        let mut chunks = Chunks::new(Some(100));
        Ok((chunks.pass(body.as_bytes())?, chunks.done()))
    }

    #[test]
    fn a_body_ends_where_it_ends_however_it_is_cut() {
        let body = "5\r\nhello\r\nA;name=value\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        let with_next = format!("{body}GET / HTTP/1.1\r\n");
        assert_eq!(whole(&with_next), Ok((body.len(), true)));
        for cut in 0..body.len() {
            let mut chunks = Chunks::new(None);
            let (first, second) = with_next.as_bytes().split_at(cut);
            assert_eq!(chunks.pass(first), Ok(cut));
            assert!(!chunks.done());
            assert_eq!(chunks.pass(second), Ok(body.len() - cut));
            assert!(chunks.done());
        }
    }

    #[test]
    fn an_ambiguous_body_is_rejected() {
        for body in [
            "5\nhello\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\r\n",
            "5 \r\nhello\r\n",
            " 5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-5\r\nhello\r\n",
            "\r\n",
            ";x\r\n",
            "5;\x00\r\nhello",
            "5;a\nb\r\nhello",
            "5\rhello",
            "FFFFFFFFFFFFFFFFF\r\n",
            "00000000000000005\r\nhello",
            "0\r\n X: folded\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\n\n",
            "0\n\n",
            "g\r\n",
            "5\r\r\nhello",
            "0\r\n\rX",
        ] {
            assert!(matches!(whole(body), Err(Rejection::BadRequest(_))), "{body:?}: {:?}", whole(body));
        }
        assert_eq!(whole("65\r\n"), Err(Rejection::BodyBytes));
        assert_eq!(whole("32\r\n"), Ok((4, false)));
    }
}
