//! Ambiguous requests and responses, which two parsers could read differently: each is rejected and its connection closed, or is
//! forwarded in an unambiguous form.

use std::time::Duration;

use crate::support::{
    Client, one_pool,
    origin::{Act, ok},
};

/// The expected outcome of a request.
enum Becomes {
    /// It gets this status, its connection is closed, and no peer gets it.
    Refused(u16),
    /// A peer has exactly one request, whose head has these lines, and none that begins like the others; then its body.
    Sent(&'static [&'static str], &'static [&'static str], &'static str),
}
use Becomes::{Refused, Sent};

const BAD: Becomes = Refused(400);
const H: &str = "Host: shop.test\r\n";

/// `{H}` stands for a valid Host.
const REQUESTS: &[(&str, &str, Becomes)] = &[
    // Content-Length.
    ("two lengths that differ", "POST / HTTP/1.1\r\n{H}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", BAD),
    ("two lengths that do not", "POST / HTTP/1.1\r\n{H}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", BAD),
    ("two lengths in other case", "POST / HTTP/1.1\r\n{H}content-length: 5\r\nCONTENT-LENGTH: 5\r\n\r\nhello", BAD),
    ("a list of lengths", "POST / HTTP/1.1\r\n{H}Content-Length: 5, 5\r\n\r\nhello", BAD),
    ("a list of two lengths", "POST / HTTP/1.1\r\n{H}Content-Length: 5,6\r\n\r\nhello", BAD),
    ("a length with a sign", "POST / HTTP/1.1\r\n{H}Content-Length: +5\r\n\r\nhello", BAD),
    ("a negative length", "POST / HTTP/1.1\r\n{H}Content-Length: -5\r\n\r\nhello", BAD),
    ("a hexadecimal length", "POST / HTTP/1.1\r\n{H}Content-Length: 0x5\r\n\r\nhello", BAD),
    ("an octal length", "POST / HTTP/1.1\r\n{H}Content-Length: 010\r\n\r\nhellohello", BAD),
    ("a length with a space in it", "POST / HTTP/1.1\r\n{H}Content-Length: 1 0\r\n\r\nhellohello", BAD),
    ("a length with an underscore", "POST / HTTP/1.1\r\n{H}Content-Length: 1_0\r\n\r\nhellohello", BAD),
    ("an empty length", "POST / HTTP/1.1\r\n{H}Content-Length:\r\n\r\n", BAD),
    ("a length with a point", "POST / HTTP/1.1\r\n{H}Content-Length: 5.0\r\n\r\nhello", BAD),
    ("a length that overflows", "POST / HTTP/1.1\r\n{H}Content-Length: 18446744073709551621\r\n\r\nhello", BAD),
    ("a length in quotes", "POST / HTTP/1.1\r\n{H}Content-Length: \"5\"\r\n\r\nhello", BAD),
    ("a length with a vertical tab", "POST / HTTP/1.1\r\n{H}Content-Length: \x0b5\r\n\r\nhello", BAD),
    ("a length in other digits", "POST / HTTP/1.1\r\n{H}Content-Length: \u{665}\r\n\r\nhello", BAD),
    (
        "spaces around a length",
        "POST / HTTP/1.1\r\n{H}Content-Length: \t 5 \t\r\n\r\nhello",
        Sent(&["Content-Length: 5"], &[], "hello"),
    ),
    (
        "no space before a length",
        "POST / HTTP/1.1\r\n{H}Content-Length:5\r\n\r\nhello",
        Sent(&["Content-Length: 5"], &[], "hello"),
    ),
    ("a length of nothing", "POST / HTTP/1.1\r\n{H}Content-Length: 0\r\n\r\n", Sent(&["Content-Length: 0"], &[], "")),
    ("a GET with a body", "GET / HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello", Sent(&["Content-Length: 5"], &[], "hello")),
    // Transfer-Encoding.
    (
        "a length before an encoding",
        "POST / HTTP/1.1\r\n{H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "a length behind an encoding",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    ("two encodings", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    (
        "two encodings, one unknown",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    ("an unknown encoding", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", BAD),
    ("identity", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: identity\r\n\r\n", BAD),
    ("a list of encodings", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", BAD),
    ("a list that ends otherwise", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", BAD),
    ("chunked twice", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", BAD),
    ("chunked with a comma", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", BAD),
    ("chunked with a parameter", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", BAD),
    ("chunked in quotes", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", BAD),
    ("chunked with a vertical tab", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", BAD),
    ("chunked with a null", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n", BAD),
    ("an empty encoding", "POST / HTTP/1.1\r\n{H}Transfer-Encoding:\r\n\r\n0\r\n\r\n", BAD),
    ("chunked with another letter", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chun\u{212a}ed\r\n\r\n0\r\n\r\n", BAD),
    ("an encoding in HTTP/1.0", "POST / HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    ("a name with a space before its colon", "POST / HTTP/1.1\r\n{H}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", BAD),
    ("a name with a tab before its colon", "POST / HTTP/1.1\r\n{H}Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", BAD),
    ("a space before a name", "POST / HTTP/1.1\r\n{H} Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    ("an encoding on a folded line", "POST / HTTP/1.1\r\n{H}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", BAD),
    (
        "chunked in capitals",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Sent(&["chunked"], &["Content-Length"], "5\r\nhello\r\n0\r\n\r\n"),
    ),
    (
        "an underscore for the hyphen",
        "GET / HTTP/1.1\r\n{H}Transfer_Encoding: chunked\r\n\r\n",
        Sent(&["GET / HTTP/1.1"], &["Transfer_Encoding", "transfer_encoding"], ""),
    ),
    (
        "an underscore in a length",
        "GET / HTTP/1.1\r\n{H}Content_Length: 5\r\nX-A: b\r\n\r\n",
        Sent(&["X-A: b"], &["Content_Length"], ""),
    ),
    // Chunks.
    (
        "chunks",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        Sent(&[], &[], "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    ),
    (
        "a chunk with an extension",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n",
        Sent(&[], &[], "3\r\nabc\r\n0\r\n\r\n"),
    ),
    (
        "a trailer",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: y\r\n\r\n",
        Sent(&[], &["X-T"], "3\r\nabc\r\n0\r\n\r\n"),
    ),
    (
        "a size with zeros",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n0003\r\nabc\r\n000\r\n\r\n",
        Sent(&[], &[], "3\r\nabc\r\n0\r\n\r\n"),
    ),
    (
        "a size in capitals",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        Sent(&[], &[], "A\r\n0123456789\r\n0\r\n\r\n"),
    ),
    ("a chunk line that ends in LF", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", BAD),
    ("chunk data that ends in LF", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n", BAD),
    ("a chunk line that ends in CR", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\rabc\r\n0\r\n\r\n", BAD),
    ("a last chunk with LF", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\n\r\n", BAD),
    ("an end with LF", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\n", BAD),
    ("a size with 0x", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", BAD),
    ("a size with a sign", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", BAD),
    ("a negative size", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", BAD),
    ("a size with an underscore", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n0_3\r\nabc\r\n0\r\n\r\n", BAD),
    ("a size with a space before it", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n", BAD),
    ("a size with a space behind it", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", BAD),
    ("no size", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n", BAD),
    (
        "a size that overflows",
        "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
        BAD,
    ),
    ("a size that is too small", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", BAD),
    ("a size that is too large", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n4\r\nabc\r\n0\r\n\r\n", BAD),
    ("an extension with LF", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n", BAD),
    ("an extension with CR", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3;a\rb\r\nabc\r\n0\r\n\r\n", BAD),
    ("an extension with a null", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3;\x00\r\nabc\r\n0\r\n\r\n", BAD),
    ("a trailer with LF", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\n\r\n", BAD),
    ("a folded trailer", "POST / HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n X: y\r\n\r\n", BAD),
    // Lines.
    ("a request line with LF", "GET / HTTP/1.1\n{H}\r\n", BAD),
    ("a field with LF", "GET / HTTP/1.1\r\nHost: shop.test\nX: y\r\n\r\n", BAD),
    ("an end with LF alone", "GET / HTTP/1.1\r\n{H}\n", BAD),
    ("a field with CR in it", "GET / HTTP/1.1\r\n{H}X: a\rb\r\n\r\n", BAD),
    ("a name with CR in it", "GET / HTTP/1.1\r\n{H}X\rY: a\r\n\r\n", BAD),
    ("two CRs", "GET / HTTP/1.1\r\n{H}X: a\r\r\n\r\n", BAD),
    ("a request line with CR in it", "GET /\r HTTP/1.1\r\n{H}\r\n", BAD),
    ("a folded field", "GET / HTTP/1.1\r\n{H}X: a\r\n b\r\n\r\n", BAD),
    ("a folded field with a tab", "GET / HTTP/1.1\r\n{H}X: a\r\n\tb\r\n\r\n", BAD),
    ("a first field that is folded", "GET / HTTP/1.1\r\n {H}\r\n", BAD),
    ("a null in a value", "GET / HTTP/1.1\r\n{H}X: a\x00b\r\n\r\n", BAD),
    ("an escape in a value", "GET / HTTP/1.1\r\n{H}X: a\x1bb\r\n\r\n", BAD),
    ("a delete in a value", "GET / HTTP/1.1\r\n{H}X: a\x7fb\r\n\r\n", BAD),
    ("a null in a name", "GET / HTTP/1.1\r\n{H}X\x00: a\r\n\r\n", BAD),
    ("no name", "GET / HTTP/1.1\r\n{H}: a\r\n\r\n", BAD),
    ("no colon", "GET / HTTP/1.1\r\n{H}nonsense\r\n\r\n", BAD),
    ("a name with a space", "GET / HTTP/1.1\r\n{H}X Y: a\r\n\r\n", BAD),
    ("a name in brackets", "GET / HTTP/1.1\r\n{H}[X]: a\r\n\r\n", BAD),
    ("a name with other letters", "GET / HTTP/1.1\r\n{H}H\u{f6}st: a\r\n\r\n", BAD),
    ("an empty line before it", "\r\nGET / HTTP/1.1\r\n{H}\r\n", Sent(&["GET / HTTP/1.1"], &[], "")),
    ("a value of Latin-1 bytes", "GET / HTTP/1.1\r\n{H}X: caf\u{e9}\r\n\r\n", Sent(&["X: caf\u{e9}"], &[], "")),
    ("an empty value", "GET / HTTP/1.1\r\n{H}X:\r\n\r\n", Sent(&["X: "], &[], "")),
    // The request line.
    ("two spaces before the target", "GET  / HTTP/1.1\r\n{H}\r\n", BAD),
    ("two spaces behind the target", "GET /  HTTP/1.1\r\n{H}\r\n", BAD),
    ("a tab for a space", "GET\t/ HTTP/1.1\r\n{H}\r\n", BAD),
    ("a space before the method", " GET / HTTP/1.1\r\n{H}\r\n", BAD),
    ("a space in the target", "GET /a b HTTP/1.1\r\n{H}\r\n", BAD),
    ("a null in the target", "GET /\x00 HTTP/1.1\r\n{H}\r\n", BAD),
    ("other letters in the target", "GET /\u{e9} HTTP/1.1\r\n{H}\r\n", BAD),
    ("a fragment", "GET /#a HTTP/1.1\r\n{H}\r\n", BAD),
    (
        "characters that a target must not have",
        "GET /\"a\"?x=<b>`{c}|[d]\\^ HTTP/1.1\r\n{H}\r\n",
        Sent(&["GET /%22a%22?x=%3Cb%3E%60{c}|[d]\\^ HTTP/1.1"], &[], ""),
    ),
    ("no target", "GET HTTP/1.1\r\n{H}\r\n", BAD),
    ("no version", "GET /\r\n{H}\r\n", BAD),
    ("HTTP/0.9", "GET / HTTP/0.9\r\n{H}\r\n", BAD),
    ("HTTP/1.2", "GET / HTTP/1.2\r\n{H}\r\n", BAD),
    ("HTTP/2.0", "GET / HTTP/2.0\r\n{H}\r\n", BAD),
    ("HTTP/1.10", "GET / HTTP/1.10\r\n{H}\r\n", BAD),
    ("http/1.1", "GET / http/1.1\r\n{H}\r\n", BAD),
    ("HTTP/1,1", "GET / HTTP/1,1\r\n{H}\r\n", BAD),
    ("a method that is none", "G\x01T / HTTP/1.1\r\n{H}\r\n", BAD),
    ("a method in brackets", "G[T / HTTP/1.1\r\n{H}\r\n", BAD),
    ("a target without a slash", "GET index.html HTTP/1.1\r\n{H}\r\n", BAD),
    ("a star for GET", "GET * HTTP/1.1\r\n{H}\r\n", BAD),
    ("a star for OPTIONS", "OPTIONS * HTTP/1.1\r\n{H}\r\n", Sent(&["OPTIONS * HTTP/1.1"], &[], "")),
    ("a method of its own", "PURGE / HTTP/1.1\r\n{H}\r\n", Sent(&["PURGE / HTTP/1.1"], &[], "")),
    ("CONNECT", "CONNECT shop.test:443 HTTP/1.1\r\n{H}\r\n", Refused(405)),
    ("CONNECT to a path", "CONNECT / HTTP/1.1\r\n{H}\r\n", Refused(405)),
    // Host and target.
    ("no Host", "GET / HTTP/1.1\r\nX: y\r\n\r\n", BAD),
    ("an empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", BAD),
    ("two Hosts", "GET / HTTP/1.1\r\n{H}Host: other.test\r\n\r\n", BAD),
    ("two Hosts that are alike", "GET / HTTP/1.1\r\n{H}{H}\r\n", BAD),
    ("a list of Hosts", "GET / HTTP/1.1\r\nHost: shop.test, other.test\r\n\r\n", BAD),
    ("a Host with a path", "GET / HTTP/1.1\r\nHost: shop.test/x\r\n\r\n", BAD),
    ("a Host with a user", "GET / HTTP/1.1\r\nHost: user@shop.test\r\n\r\n", BAD),
    ("a Host with a space", "GET / HTTP/1.1\r\nHost: shop test\r\n\r\n", BAD),
    ("a Host with a scheme", "GET / HTTP/1.1\r\nHost: http://shop.test\r\n\r\n", BAD),
    ("a Host with a port that is none", "GET / HTTP/1.1\r\nHost: shop.test:80x\r\n\r\n", BAD),
    ("a Host with an empty port", "GET / HTTP/1.1\r\nHost: shop.test:\r\n\r\n", BAD),
    ("a Host with two ports", "GET / HTTP/1.1\r\nHost: shop.test:80:81\r\n\r\n", BAD),
    ("a Host that is encoded", "GET / HTTP/1.1\r\nHost: shop%2etest\r\n\r\n", BAD),
    ("a Host in half a bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", BAD),
    ("a Host with markup", "GET / HTTP/1.1\r\nHost: <script>\r\n\r\n", BAD),
    ("a Host of other letters", "GET / HTTP/1.1\r\nHost: sh\u{f6}p.test\r\n\r\n", BAD),
    ("an IPv6 Host", "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", Sent(&["Host: [::1]:8080"], &[], "")),
    ("absolute form", "GET http://shop.test/a?b HTTP/1.1\r\n{H}\r\n", Sent(&["GET /a?b HTTP/1.1", "Host: shop.test"], &[], "")),
    ("absolute form without a path", "GET http://SHOP.test HTTP/1.1\r\n{H}\r\n", Sent(&["GET / HTTP/1.1"], &[], "")),
    ("absolute form with a query alone", "GET http://shop.test?q HTTP/1.1\r\n{H}\r\n", Sent(&["GET /?q HTTP/1.1"], &[], "")),
    ("absolute form and another Host", "GET http://other.test/ HTTP/1.1\r\n{H}\r\n", BAD),
    ("absolute form with a user", "GET http://user@shop.test/ HTTP/1.1\r\n{H}\r\n", BAD),
    ("absolute form without a host", "GET http:///a HTTP/1.1\r\n{H}\r\n", BAD),
    ("absolute form of another scheme", "GET file:///etc/passwd HTTP/1.1\r\n{H}\r\n", BAD),
    ("absolute form without a Host", "GET http://shop.test/ HTTP/1.1\r\n\r\n", BAD),
    // HTTP/1.0.
    ("HTTP/1.0 without a Host", "GET / HTTP/1.0\r\n\r\n", Sent(&["GET / HTTP/1.1", "Host: 127.0.0.1:"], &[], "")),
    (
        "HTTP/1.0 with an expectation",
        "POST / HTTP/1.0\r\n{H}Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        Sent(&["POST / HTTP/1.1"], &["Expect"], "hi"),
    ),
    // Upgrades, expectations, hop-by-hop fields.
    (
        "an upgrade with a body",
        "GET / HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello",
        BAD,
    ),
    (
        "an upgrade with chunks",
        "GET / HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "Upgrade: h2c",
        "GET / HTTP/1.1\r\n{H}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        Sent(&["GET / HTTP/1.1"], &["Upgrade", "upgrade", "HTTP2-Settings", "http2-settings"], ""),
    ),
    ("Upgrade: h2c without Connection", "GET / HTTP/1.1\r\n{H}Upgrade: h2c\r\n\r\n", Sent(&["GET / HTTP/1.1"], &["Upgrade"], "")),
    (
        "an upgrade to something else",
        "GET / HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
        Sent(&["GET /"], &["Upgrade"], ""),
    ),
    (
        "an upgrade to WebSocket without Connection",
        "GET / HTTP/1.1\r\n{H}Upgrade: websocket\r\n\r\n",
        Sent(&["GET /"], &["Upgrade", "Connection"], ""),
    ),
    (
        "an upgrade to WebSocket or something else",
        "GET / HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n",
        Sent(&["GET /"], &["Upgrade", "Connection"], ""),
    ),
    (
        "an upgrade to WebSocket by POST",
        "POST / HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
        Sent(&["POST /"], &["Upgrade", "Connection"], "hi"),
    ),
    (
        "a field that Connection names",
        "GET / HTTP/1.1\r\n{H}Connection: close, X-Secret\r\nX-Secret: y\r\n\r\n",
        Sent(&["GET /"], &["X-Secret"], ""),
    ),
    (
        "a length that Connection names, which becomes chunks",
        "POST / HTTP/1.1\r\n{H}Connection: Content-Length\r\nContent-Length: 5\r\n\r\nhello",
        Sent(&["Transfer-Encoding: chunked"], &["Content-Length"], "5\r\nhello\r\n0\r\n\r\n"),
    ),
    (
        "an encoding that Connection names",
        "POST / HTTP/1.1\r\n{H}Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        Sent(&["Transfer-Encoding: chunked"], &["Content-Length"], "5\r\nhello\r\n0\r\n\r\n"),
    ),
    (
        "a forwarding field that Connection names",
        "GET / HTTP/1.1\r\n{H}Connection: X-Real-IP\r\n\r\n",
        Sent(&["X-Real-IP: 127.0.0.1"], &[], ""),
    ),
    (
        "Proxy-Connection, Keep-Alive, TE",
        "GET / HTTP/1.1\r\n{H}Proxy-Connection: close\r\nKeep-Alive: 5\r\nTE: trailers\r\n\r\n",
        Sent(&["GET /"], &["Proxy-Connection", "Keep-Alive", "TE:"], ""),
    ),
    ("another expectation", "POST / HTTP/1.1\r\n{H}Expect: a-miracle\r\nContent-Length: 5\r\n\r\nhello", Refused(417)),
    ("a preface of HTTP/2 that goes on otherwise", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", BAD),
];

#[test]
fn no_request_reaches_a_peer_that_could_be_read_in_two_ways() {
    assert!(REQUESTS.len() >= 100, "{}", REQUESTS.len());
    let (blue, _config, switchover) = one_pool(|config| config);
    let mut refused = 0.0;
    for (name, request, becomes) in REQUESTS {
        let seen = blue.heads().len();
        // Characters up to 255 are sent as one byte each (Latin-1), others as UTF-8.
        let request = request.replace("{H}", H);
        let bytes: Vec<u8> = request.chars().flat_map(latin1).collect();
        let mut client = switchover.client();
        client.send(&bytes).unwrap();
        match becomes {
            Refused(status) => {
                let answer = client.read_response().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(answer.status, *status, "{name}: {}", answer.text());
                assert!(answer.closes() && client.is_closed(), "{name}: the connection is open");
                assert_eq!(blue.heads().len(), seen, "{name} has reached the peer: {:?}", blue.heads().last());
                refused += 1.0;
            }
            Sent(with, without, body) => {
                let answer = client.read_response().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(answer.status, 200, "{name}: {}", answer.text());
                assert_eq!(blue.heads().len(), seen + 1, "{name}");
                let head = blue.heads().pop().unwrap();
                for line in *with {
                    let line: String =
                        line.chars().flat_map(latin1).map(|b| if b < 128 { char::from(b) } else { '\u{fffd}' }).collect();
                    assert!(head.contains(&line), "{name}: no {line:?} in {head:?}");
                }
                for start in *without {
                    assert!(!head.lines().any(|line| line.starts_with(start)), "{name}: {start:?} in {head:?}");
                }
                assert_eq!(String::from_utf8_lossy(blue.bodies().last().unwrap()), *body, "{name}");
            }
        }
    }
    let counted: f64 = switchover
        .metrics()
        .lines()
        .filter(|line| line.starts_with("switchover_rejected_requests_total"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    assert_eq!(counted, refused, "every one is counted");
}

fn latin1(c: char) -> Vec<u8> {
    u8::try_from(u32::from(c)).map_or_else(|_| c.to_string().into_bytes(), |byte| vec![byte])
}

/// A request behind a rejected one is not read, because it may be a part of the rejected one's body.
#[test]
fn what_is_behind_a_refused_request_is_never_served() {
    let (blue, _config, switchover) = one_pool(|config| config);
    for first in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
    ] {
        let mut client = switchover.client();
        client.send(format!("{first}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        assert_eq!(client.read_response().unwrap().status, 400, "{first:?}");
        assert!(client.is_closed(), "{first:?}");
    }
    assert_eq!(blue.heads(), Vec::<String>::new());
}

#[test]
fn pipelined_requests_are_answered_in_order_however_they_are_cut() {
    let (blue, _config, switchover) = one_pool(|config| config);
    blue.on("/slow", Act::SayAfter(Duration::from_millis(20), ok("slow")));
    for path in ["1", "2", "3", "4"] {
        blue.on(&format!("/{path}"), Act::Say(ok(path)));
    }
    let all = "GET /slow HTTP/1.1\r\nHost: a\r\n\r\nPOST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET \
               POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0\r\n\r\r\n0\r\n\r\n\
               GET /3 HTTP/1.1\r\nHost: a\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for cut in (0..all.len()).step_by(7) {
        let mut client: Client = switchover.client();
        client.send(&all[..cut]).unwrap();
        client.send(&all[cut..]).unwrap();
        let answers: Vec<_> = (0..5).map(|_| client.read_response().unwrap().text()).collect();
        assert_eq!(answers, ["slow", "1", "2", "3", "4"], "cut at {cut}");
        assert!(client.is_closed());
    }
}

const HINTS_AND_CHUNKS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
    HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\n of\r\n0\r\n\r\n";

#[test]
fn a_client_of_http_1_0_gets_what_it_can_read() {
    let (blue, _config, switchover) = one_pool(|config| config);
    blue.on("/", Act::Say(HINTS_AND_CHUNKS.to_vec()));
    for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"] {
        let mut client = switchover.client();
        client.send(request).unwrap();
        let answer = client.read_response().unwrap();
        assert_eq!(answer.header("transfer-encoding"), None);
        assert_eq!((answer.status, answer.text()), (200, "hello of".to_owned()), "{request:?}");
    }
}

#[test]
fn no_answer_reaches_a_client_that_could_be_read_in_two_ways() {
    let (blue, _config, switchover) = one_pool(|config| config);
    for (name, answer, status) in [
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 502),
        ("two lengths that are alike", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 502),
        ("a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", 502),
        ("a length that is none", "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello", 502),
        ("chunks in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 502),
        (
            "what is of its own connection",
            "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\nTE: x\r\nContent-Length: 5\r\n\r\nhello",
            200,
        ),
        (
            "a 101 without an upgrade in the request",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            502,
        ),
        ("an encoding that is none", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 502),
        ("a folded field, which becomes one line", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\nhello", 200),
        ("a null", "HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 5\r\n\r\nhello", 502),
        ("no HTTP", "hello\r\n\r\n", 502),
        (
            "a field that Connection names",
            "HTTP/1.1 200 OK\r\nConnection: X-Inner\r\nX-Inner: y\r\nContent-Length: 5\r\n\r\nhello",
            200,
        ),
    ] {
        blue.on("/", Act::Say(answer.as_bytes().to_vec()));
        let got = switchover.get("/");
        assert_eq!(got.status, status, "{name}: {got:?}");
        for hidden in ["x-inner", "keep-alive", "proxy-connection", "upgrade", "te"] {
            assert_eq!(got.header(hidden), None, "{name}");
        }
        if status == 200 {
            assert_eq!(got.text(), "hello");
        }
    }
    for size in [65_536, 2_000_000] {
        let big = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 5\r\n\r\nhello", "x".repeat(size));
        blue.on("/", Act::Say(big.into_bytes()));
        assert_eq!(switchover.get("/").status, 502, "a header of {size} bytes");
    }
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        blue.on("/", Act::Say(format!("HTTP/1.1 204 No Content\r\n{body}").into_bytes()));
        let got = switchover.get("/");
        let said = (got.status, got.header("content-length"), got.header("transfer-encoding"), got.text());
        assert_eq!(said, (204, None, None, String::new()), "{body:?}");
    }
    // A body where none is allowed is not read as the next response.
    blue.on("/", Act::Say(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled".to_vec()));
    blue.on("/next", Act::Say(ok("next")));
    let mut client = switchover.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").unwrap().status, 204);
        assert_eq!(client.get("/next").unwrap().text(), "next");
    }
    assert_eq!(switchover.get("/next").text(), "next", "it serves on");
}
