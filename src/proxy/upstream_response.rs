//! Rejects peers' response headers that parsers could interpret differently (response splitting and smuggling).
//!
//! Called for each response, before any byte of it is sent to the client. Pingora has parsed the header; this module checks what
//! Pingora accepts and other parsers may read in another way.

use http::{
    HeaderName, HeaderValue, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};
use pingora::http::ResponseHeader;

/// The most bytes in the fields of a response header. Bounds the memory for a client that does not read; nginx allows 4 KiB.
const HEADER_BYTES: usize = 64 * 1024;

/// Fields that describe the connection to the peer, and must not reach the client's connection.
const HOP_BY_HOP: [&str; 4] = ["keep-alive", "proxy-connection", "te", "upgrade"];

/// Whether the end of the body can be found in one way only. Removes hop-by-hop fields.
pub(super) fn is_unambiguous(response: &mut ResponseHeader) -> bool {
    // One pass instead of a lookup per field: this runs for every response.
    let (mut bytes, mut hop_by_hop, mut connection) = (0, false, false);
    let (mut lengths, mut encodings, mut framed_well) = (0, 0, true);
    for (name, value) in &response.headers {
        bytes += name.as_str().len() + value.len();
        if name == CONTENT_LENGTH {
            lengths += 1;
            framed_well &= !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
        } else if name == TRANSFER_ENCODING {
            encodings += 1;
            framed_well &= value.as_bytes().eq_ignore_ascii_case(b"chunked");
        } else if name == CONNECTION {
            connection = true;
        } else {
            hop_by_hop |= HOP_BY_HOP.contains(&name.as_str());
        }
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
    } else if !framed_well || lengths + encodings > 1 || encodings > 0 && response.version == Version::HTTP_10 {
        return false;
    }
    !connection || without_named(response)
}

/// These responses have no body, whatever their headers say (RFC 9112, section 6.3).
fn has_no_body(response: &ResponseHeader) -> bool {
    response.status.is_informational() || response.status == StatusCode::NO_CONTENT
}

/// Removes the fields that `Connection` names (RFC 9110, section 7.6.1). Returns false if it names a field that frames the response.
fn without_named(response: &mut ResponseHeader) -> bool {
    let values = response.headers.get_all(CONNECTION).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    let tokens = values.flat_map(|value| value.split(',')).map(str::trim);
    let standard = |token: &str| ["", "close", "keep-alive", "upgrade"].iter().any(|option| token.eq_ignore_ascii_case(option));
    // Empty for almost all responses, and then without an allocation.
    let named: Vec<HeaderName> = tokens.filter(|token| !standard(token)).filter_map(|token| token.parse().ok()).collect();
    for name in &named {
        if [CONTENT_LENGTH, TRANSFER_ENCODING, HOST].contains(name) {
            return false;
        }
        response.remove_header(name);
    }
    true
}
