//! Rejects request heads that parsers could interpret differently (request smuggling), and heads that exceed a limit.
//!
//! Called by [`super::client_stream`] with the raw bytes and by [`super::http2`] with the fields that h2 has parsed, before the proxy or a
//! peer sees them. One set of rules applies to both. It rejects rather than repairs (RFC 9112, sections 2.2, 3, 5 and 6). It rewrites only what
//! honest clients send and has one interpretation: a target in absolute form or with unencoded quotes and brackets, and fields
//! that a peer must not get. Pure.

use std::str;

use http::{HeaderValue, Method, header::COOKIE};
use pingora::http::RequestHeader;

use super::{body_limit::BodyLimit, reject::Rejection};
use crate::config::Limits;

/// Room for fields; the largest `header_count` that a configuration may set is smaller.
const FIELDS: usize = 256;

/// A head that was accepted.
#[derive(Debug)]
pub(crate) struct Head {
    /// How the end of the body is found.
    pub body: Body,
    /// The head to forward instead; none if it is forwarded unchanged.
    pub rewritten: Option<Vec<u8>>,
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    Chunked,
}

/// Finds the end of a head while its bytes arrive, in pieces of any size.
#[derive(Default)]
pub(crate) struct Scan {
    /// Number of bytes that were checked.
    looked: usize,
    line: usize,
    lines: usize,
}

impl Scan {
    /// The length of the head with its empty line, once it is complete.
    ///
    /// # Errors
    /// As soon as the head exceeds a limit, or has a line that does not end with CR LF.
    pub(crate) fn end(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Rejection> {
        while let Some(found) = bytes.get(self.looked..).and_then(|rest| memchr::memchr(b'\n', rest)) {
            let feed = self.looked + found;
            let line = bytes.get(self.line..feed).unwrap_or_default();
            let Some(line) = line.strip_suffix(b"\r") else {
                return Err(Rejection::BadRequest("a line that ends with LF alone"));
            };
            self.looked = feed + 1;
            self.line = self.looked;
            if line.is_empty() {
                return if self.looked > limits.header_bytes { Err(Rejection::HeaderBytes) } else { Ok(Some(self.looked)) };
            }
            if self.lines == 0 && line.len() > limits.request_line_bytes {
                return Err(Rejection::RequestLine);
            }
            if self.lines > limits.header_count {
                return Err(Rejection::HeaderCount);
            }
            self.lines += 1;
        }
        self.looked = bytes.len();
        if self.lines == 0 && bytes.len() > limits.request_line_bytes {
            return Err(Rejection::RequestLine);
        }
        if bytes.len() > limits.header_bytes { Err(Rejection::HeaderBytes) } else { Ok(None) }
    }
}

/// Checks a complete HTTP/1 head.
///
/// # Errors
/// The reason to reject it.
pub(crate) fn judge(head: &[u8], limits: &Limits) -> Result<Head, Rejection> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = httparse::ParserConfig::default().parse_request(&mut request, head);
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Rejection::HeaderCount),
        _ => return Err(Rejection::BadRequest("not an HTTP/1 header")),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Rejection::BadRequest("not an HTTP/1 header"));
    };
    let fields = Fields::read(method, request.headers.iter().map(|header| (header.name, header.value)))?;
    let host = match (fields.host, minor) {
        (Some(host), _) => Some(authority(host)?),
        (None, 0) => None,
        (None, _) => return Err(Rejection::BadRequest("no Host")),
    };
    let target = origin_form(method, target, host)?;
    let body = fields.body(minor, limits)?;
    let is_websocket = fields.is_websocket_handshake(method, minor);
    if is_websocket && body != Body::Length(0) {
        return Err(Rejection::BadRequest("an upgrade with a body"));
    }
    // A server has to ignore `Expect` in HTTP/1.0 (RFC 9110, section 10.1.1), and the peer would see it in HTTP/1.1.
    let expects = fields.expect && minor == 0;
    // A server may ignore an upgrade (RFC 9110, section 7.8). Pingora treats every `Upgrade` field as one, so only WebSocket's is
    // kept.
    let ignores_upgrade = fields.upgrades > 0 && !is_websocket;
    let drops = expects || ignores_upgrade || fields.http2_settings || (fields.underscore && !limits.underscores_in_headers);
    let rewritten = (drops || target.is_some()).then(|| {
        let kept = |name: &str| {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            !(is("http2-settings") || expects && is("expect") || ignores_upgrade && is("upgrade"))
                && (limits.underscores_in_headers || !name.contains('_'))
        };
        rewrite(method, target.as_deref().or(request.path).unwrap_or("/"), minor, request.headers, kept)
    });
    Ok(Head { body, rewritten })
}

/// Checks the head of an HTTP/2 request, whose syntax h2 has checked, and brings it into the form of HTTP/1.
///
/// # Errors
/// The reason to reject it.
pub(crate) fn judge_h2(request: &mut RequestHeader, limits: &Limits) -> Result<(), Rejection> {
    let headers = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let fields = Fields::read(request.method.as_str(), headers)?;
    match (request.uri.authority().map(|authority| authority.as_str().as_bytes()), fields.host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Rejection::BadRequest("an :authority and a Host that differ"));
        }
        (Some(host), _) | (None, Some(host)) => {
            authority(host)?;
        }
        (None, None) => return Err(Rejection::BadRequest("no :authority")),
    };
    // HTTP/2 has no `Transfer-Encoding`; without a length, the stream's end is the body's.
    fields.body(1, limits)?;
    let has_underscore = fields.underscore;
    join_cookies(request)?;
    if request.headers.len() > limits.header_count {
        return Err(Rejection::HeaderCount);
    }
    let target = request.raw_path();
    if target.len() > limits.request_line_bytes {
        return Err(Rejection::RequestLine);
    }
    // HTTP/2 counts 32 bytes extra for each field (RFC 9113, section 6.5.2).
    let fields = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    if target.len() + fields.sum::<usize>() > limits.header_bytes {
        return Err(Rejection::HeaderBytes);
    }
    if !target.iter().all(u8::is_ascii_graphic) || target == b"*" && request.method != Method::OPTIONS {
        return Err(Rejection::BadRequest("a target that is not a path"));
    }
    if has_underscore && !limits.underscores_in_headers {
        let named: Vec<_> = request.headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        for name in named {
            request.remove_header(&name);
        }
    }
    Ok(())
}

/// Joins the cookie fields into one: HTTP/2 may split a cookie, HTTP/1 may not (RFC 9113, section 8.2.3).
fn join_cookies(request: &mut RequestHeader) -> Result<(), Rejection> {
    let mut pieces = request.headers.get_all(COOKIE).iter();
    if pieces.nth(1).is_none() {
        return Ok(());
    }
    let pieces: Vec<&[u8]> = request.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&pieces.join(&b"; "[..])).map_err(|_| Rejection::BadRequest("an invalid cookie"))?;
    request.remove_header(&COOKIE);
    request.insert_header(COOKIE, joined).map_err(|_| Rejection::BadRequest("an invalid cookie"))
}

/// The fields that determine the route and the end of a request.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    encoding: Option<&'a [u8]>,
    /// Number of `Upgrade` fields.
    upgrades: usize,
    /// Whether an `Upgrade` field is exactly `websocket`.
    websocket: bool,
    /// Whether `Connection` lists `upgrade`.
    connection_upgrade: bool,
    expect: bool,
    http2_settings: bool,
    underscore: bool,
}

impl<'a> Fields<'a> {
    /// Collects the fields of a request; rejects duplicates, CONNECT, and expectations that cannot be met.
    fn read(method: &str, headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, Rejection> {
        if method == "CONNECT" {
            return Err(Rejection::Method);
        }
        let once = |slot: &mut Option<&'a [u8]>, value, why| match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(Rejection::BadRequest(why)),
        };
        let mut fields = Self::default();
        for (name, value) in headers {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            // By length first: most names are none of these.
            match name.len() {
                4 if is("host") => once(&mut fields.host, value, "two Hosts")?,
                14 if is("content-length") => once(&mut fields.length, value, "two lengths")?,
                17 if is("transfer-encoding") => once(&mut fields.encoding, value, "two transfer encodings")?,
                7 if is("upgrade") => {
                    fields.upgrades += 1;
                    fields.websocket |= value.eq_ignore_ascii_case(b"websocket");
                }
                10 if is("connection") => {
                    let mut tokens = value.split(|byte| *byte == b',');
                    fields.connection_upgrade |= tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
                }
                6 if is("expect") && !value.eq_ignore_ascii_case(b"100-continue") => return Err(Rejection::Expectation),
                6 if is("expect") => fields.expect = true,
                14 if is("http2-settings") => fields.http2_settings = true,
                _ => fields.underscore |= memchr::memchr(b'_', name.as_bytes()).is_some(),
            }
        }
        Ok(fields)
    }

    /// Whether this is an opening handshake (RFC 6455, section 4.2.1). No other upgrade is forwarded.
    fn is_websocket_handshake(&self, method: &str, minor: u8) -> bool {
        self.websocket && self.upgrades == 1 && self.connection_upgrade && minor == 1 && method == "GET"
    }

    /// How the body ends; rejects a declared length over the limit.
    fn body(&self, minor: u8, limits: &Limits) -> Result<Body, Rejection> {
        match (self.encoding, self.length) {
            (None, None) => Ok(Body::Length(0)),
            (None, Some(text)) => {
                let length = decimal(text).ok_or(Rejection::BadRequest("an invalid Content-Length"))?;
                BodyLimit::new(limits.body_bytes).add(length)?;
                Ok(Body::Length(length))
            }
            (Some(_), Some(_)) => Err(Rejection::BadRequest("a length and a transfer encoding")),
            (Some(_), None) if minor == 0 => Err(Rejection::BadRequest("a transfer encoding in HTTP/1.0")),
            (Some(text), None) if text.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
            (Some(_), None) => Err(Rejection::BadRequest("a transfer encoding other than chunked")),
        }
    }
}

/// Parses 1 to 18 digits, which cannot overflow. Rejects a leading zero, which some parsers read as octal.
fn decimal(text: &[u8]) -> Option<u64> {
    let fine =
        (1..=18).contains(&text.len()) && text.iter().all(u8::is_ascii_digit) && (text.len() == 1 || text.first() != Some(&b'0'));
    str::from_utf8(text).ok().filter(|_| fine)?.parse().ok()
}

/// Checks a host with an optional port (RFC 9110, section 7.2): no user, no list, no percent-encoding.
fn authority(text: &[u8]) -> Result<&str, Rejection> {
    const BAD: Rejection = Rejection::BadRequest("an invalid Host");
    let text = str::from_utf8(text).map_err(|_| BAD)?;
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((ip, rest))) => {
            ip.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
            ("[", rest)
        }
        Some(None) => return Err(BAD),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let host_is_fine = host == "[" || !host.is_empty() && host.bytes().all(name);
    let port_is_fine = match port.strip_prefix(':') {
        Some(port) => (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    };
    if host_is_fine && port_is_fine { Ok(text) } else { Err(BAD) }
}

/// Converts a target to origin form (RFC 9112, section 3.2), with special characters encoded; none if it needs no change.
fn origin_form(method: &str, target: &str, host: Option<&str>) -> Result<Option<String>, Rejection> {
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(Rejection::BadRequest("a target with bytes that have to be encoded"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(encoded(target));
    }
    let scheme = |name: &str| target.get(..name.len()).filter(|start| start.eq_ignore_ascii_case(name)).map(str::len);
    let Some(after) = scheme("http://").or_else(|| scheme("https://")) else {
        return Err(Rejection::BadRequest("a target that is not a path"));
    };
    let rest = target.get(after..).unwrap_or_default();
    let (named, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !host.is_some_and(|host| host.eq_ignore_ascii_case(named)) {
        return Err(Rejection::BadRequest("a target and a Host that differ"));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(Some(encoded(&path).unwrap_or(path)))
}

/// Encodes characters that are not allowed in a URI (RFC 3986, section 2.4); none if there are none. Browsers and scripts send
/// them, and applications treat them differently.
fn encoded(target: &str) -> Option<String> {
    let is_bad = |c: char| matches!(c, '"' | '<' | '>' | '`');
    target
        .contains(is_bad)
        .then(|| target.chars().map(|c| if is_bad(c) { format!("%{:02X}", u32::from(c)) } else { c.to_string() }).collect())
}

fn rewrite(method: &str, target: &str, minor: u8, headers: &[httparse::Header<'_>], kept: impl Fn(&str) -> bool) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.{minor}\r\n").into_bytes();
    for header in headers.iter().filter(|header| kept(header.name)) {
        for piece in [header.name.as_bytes(), b": ", header.value, b"\r\n"] {
            head.extend_from_slice(piece);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}
