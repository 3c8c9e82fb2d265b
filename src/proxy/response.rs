//! Whether a peer's response header means one thing to everybody who reads it.
//!
//! Called for each response before the client gets a byte of it. Pingora has parsed it; what it lets pass and another reader could
//! take otherwise is looked at here.

use http::{
    HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};
use pingora::http::ResponseHeader;

/// Whether the end of its body can be found in one way only. Takes out what the peer has named as its connection's own.
pub(super) fn is_unambiguous(response: &mut ResponseHeader) -> bool {
    let mut lengths = response.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits || lengths.next().is_some() || response.headers.contains_key(TRANSFER_ENCODING) {
            return false;
        }
    }
    let mut encodings = response.headers.get_all(TRANSFER_ENCODING).iter();
    if encodings.next().is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || encodings.next().is_some()
    {
        return false;
    }
    !response.headers.contains_key(CONNECTION) || without_named(response)
}

/// Removes the fields that `Connection` names (RFC 9110, section 7.6.1); false, if it names one that a response cannot do without.
fn without_named(response: &mut ResponseHeader) -> bool {
    let values = response.headers.get_all(CONNECTION).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    let tokens = values.flat_map(|value| value.split(',')).map(str::trim);
    let usual = |token: &str| ["", "close", "keep-alive", "upgrade"].iter().any(|usual| token.eq_ignore_ascii_case(usual));
    // Empty, and so without an allocation, for almost everybody.
    let named: Vec<HeaderName> = tokens.filter(|token| !usual(token)).filter_map(|token| token.parse().ok()).collect();
    for name in &named {
        if [CONTENT_LENGTH, TRANSFER_ENCODING, HOST].contains(name) {
            return false;
        }
        response.remove_header(name);
    }
    true
}
