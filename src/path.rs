//! Normalizes the path of a request as Tomcat does before it selects a handler. Pure.
//!
//! Percent-encodings are decoded, `;parameters` removed, dot segments resolved and double slashes merged. Otherwise `/x/../admin`
//! would be routed to the service of `/`, whose application would then serve `/admin`. [`crate::route`] normalizes what it matches,
//! and [`crate::config`] compares prefixes by it.

use std::borrow::Cow;

/// Normalizes a `path_prefix`. Two prefixes with the same result match the same requests.
pub fn normal_prefix(prefix: &str) -> Cow<'_, [u8]> {
    normal(prefix.as_bytes(), Slashes::Plain)
}

/// Which bytes separate the segments of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Slashes {
    /// `/` only.
    Plain,
    /// `/`, `%2F`, `\` and `%5C`.
    Hidden,
}

/// Whether a path has bytes that only some applications read as a slash.
pub fn has_hidden_slash(path: &[u8]) -> bool {
    memchr::memchr2_iter(b'%', b'\\', path).any(|at| match path.get(at..).unwrap_or_default() {
        [b'\\', ..] => true,
        [b'%', high, low, ..] => matches!(hex(*high, *low), Some(b'/' | b'\\')),
        _ => false,
    })
}

/// Normalizes a path. Almost all paths are normal already and are borrowed, without an allocation.
pub fn normal(path: &[u8], slashes: Slashes) -> Cow<'_, [u8]> {
    let is_plain =
        memchr::memchr3(b'%', b';', b'\\', path).is_none() && !path.windows(2).any(|pair| matches!(pair, [b'/', b'/' | b'.']));
    if is_plain { Cow::Borrowed(path) } else { Cow::Owned(without_dots(&decoded(path, slashes))) }
}

/// Removes parameters and decodes percent-encodings in one pass, so that `%3B` starts no parameter and `%252e` is no dot.
fn decoded(path: &[u8], slashes: Slashes) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    loop {
        let encoded = match rest {
            [b'%', high, low, ..] => hex(*high, *low),
            _ => None,
        };
        rest = match (rest, encoded) {
            ([b';', after @ ..], _) => after.get(memchr::memchr(b'/', after).unwrap_or(after.len())..).unwrap_or_default(),
            ([b'\\', after @ ..], _) if slashes == Slashes::Hidden => {
                decoded.push(b'/');
                after
            }
            ([b'%', high, low, after @ ..], Some(byte)) => {
                match (byte, slashes) {
                    (b'/' | b'\\', Slashes::Plain) => decoded.extend([b'%', *high, *low]),
                    (b'\\', Slashes::Hidden) => decoded.push(b'/'),
                    (byte, _) => decoded.push(byte),
                }
                after
            }
            ([byte, after @ ..], _) => {
                decoded.push(*byte);
                after
            }
            ([], _) => return decoded,
        };
    }
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// Resolves dot segments (RFC 3986, section 5.2.4) and removes empty ones, except for a slash at the end.
fn without_dots(path: &[u8]) -> Vec<u8> {
    let mut segments = Vec::new();
    let mut ends_in_slash = false;
    for segment in path.split(|byte| *byte == b'/') {
        ends_in_slash = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let mut normal = Vec::with_capacity(path.len());
    for segment in segments {
        normal.push(b'/');
        normal.extend_from_slice(segment);
    }
    if ends_in_slash || normal.is_empty() {
        normal.push(b'/');
    }
    normal
}
