//! Whether a peer's response header means one thing to everybody who reads it.
//!
//! Called for each response before the client gets a byte of it. Pingora has parsed it; what it lets pass and another reader could
//! take otherwise is looked at here.

use http::{
    HeaderName, HeaderValue, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};
use pingora::http::ResponseHeader;

/// Bytes of a header's fields; nginx allows 4 KiB, and what is kept for a client that does not read has to end somewhere.
const HEADER_BYTES: usize = 64 * 1024;

/// What a peer says of its own connection, and a client could take for what is said of its own.
const HOP_BY_HOP: [&str; 4] = ["keep-alive", "proxy-connection", "te", "upgrade"];

/// Whether the end of its body can be found in one way only. Takes out what is not for the client.
pub(super) fn is_unambiguous(response: &mut ResponseHeader) -> bool {
    let (mut bytes, mut hop_by_hop) = (0, false);
    for (name, value) in &response.headers {
        bytes += name.as_str().len() + value.len();
        hop_by_hop |= HOP_BY_HOP.contains(&name.as_str());
    }
    if bytes > HEADER_BYTES {
        return false;
    }
    if hop_by_hop {
        let upgrades = [StatusCode::SWITCHING_PROTOCOLS, StatusCode::UPGRADE_REQUIRED].contains(&response.status);
        for name in HOP_BY_HOP.iter().filter(|name| !(upgrades && **name == "upgrade")) {
            response.remove_header(*name);
        }
    }
    if has_no_body(response) {
        response.remove_header(&CONTENT_LENGTH);
        response.remove_header(&TRANSFER_ENCODING);
    }
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
        || response.version == Version::HTTP_10 && response.headers.contains_key(TRANSFER_ENCODING)
    {
        return false;
    }
    !response.headers.contains_key(CONNECTION) || without_named(response)
}

/// By its status alone (RFC 9112, section 6.3); what its header says of a body is then nothing that anybody may go by.
fn has_no_body(response: &ResponseHeader) -> bool {
    response.status.is_informational() || response.status == StatusCode::NO_CONTENT
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
