//! As in [`super::framing`], for requests that come by HTTP/2: frames are written by hand, since no client would.

use std::io::{Read, Write};

use crate::support::{Client, ConfigFile, Origin, Switchover};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// An answer, which is not 200, or the end of the stream or of its connection; and no peer has it.
    Refused,
    /// The end of the stream, once the body is seen not to be what was said; a peer has a part of it, and no whole request.
    Cut,
    /// An answer of 200, and a peer has exactly one request, whose head has this in it.
    Sent(&'static str),
}
use Becomes::{Cut, Refused, Sent};

type Fields = &'static [(&'static str, &'static str)];

const GET: Fields = &[(":method", "GET"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/")];
const POST: Fields = &[(":method", "POST"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/")];

/// Fields of their own, and whether they are all of it (or behind those of GET); with a body, those of POST.
struct Case(&'static str, Fields, Whole, Option<&'static str>, Becomes);
#[derive(PartialEq)]
enum Whole {
    Yes,
    No,
}
use Whole::{No, Yes};

macro_rules! with {
    ($method:expr, $scheme:expr, $authority:expr, $path:expr) => {
        &[(":method", $method), (":scheme", $scheme), (":authority", $authority), (":path", $path)]
    };
}

const REQUESTS: &[Case] = &[
    Case("an ordinary one", &[], No, None, Sent("GET / HTTP/1.1\r\n")),
    // What belongs to a connection.
    Case("Transfer-Encoding", &[("transfer-encoding", "chunked")], No, Some("x"), Refused),
    Case("Connection", &[("connection", "close")], No, None, Refused),
    Case("Keep-Alive", &[("keep-alive", "5")], No, None, Refused),
    Case("Proxy-Connection", &[("proxy-connection", "x")], No, None, Refused),
    Case("Upgrade", &[("upgrade", "websocket")], No, None, Refused),
    Case("TE other than trailers", &[("te", "gzip")], No, None, Refused),
    Case("TE: trailers", &[("te", "trailers")], No, None, Sent("GET / HTTP/1.1\r\n")),
    // Targets.
    Case("a target without a slash", with!("GET", "http", "shop.test", "x"), Yes, None, Refused),
    Case("no target", with!("GET", "http", "shop.test", ""), Yes, None, Refused),
    Case("a star for GET", with!("GET", "http", "shop.test", "*"), Yes, None, Refused),
    Case("a star for OPTIONS", with!("OPTIONS", "http", "shop.test", "*"), Yes, None, Sent("OPTIONS * HTTP/1.1\r\n")),
    Case("absolute form", with!("GET", "http", "shop.test", "http://other.test/"), Yes, None, Refused),
    Case("a space in the target", with!("GET", "http", "shop.test", "/a b"), Yes, None, Refused),
    Case("a line end in the target", with!("GET", "http", "shop.test", "/ HTTP/1.1\r\nX: y"), Yes, None, Refused),
    Case("other letters in the target", with!("GET", "http", "shop.test", "/\u{e9}"), Yes, None, Refused),
    Case("a delete in the target", with!("GET", "http", "shop.test", "/\x7f"), Yes, None, Refused),
    Case("a fragment, which goes no further", with!("GET", "http", "shop.test", "/a#b"), Yes, None, Sent("GET /a HTTP/1.1\r\n")),
    // Methods.
    Case("a line end in the method", with!("GET / HTTP/1.1\r\nX: y", "http", "shop.test", "/"), Yes, None, Refused),
    Case("a space in the method", with!("G T", "http", "shop.test", "/"), Yes, None, Refused),
    Case("CONNECT", &[(":method", "CONNECT"), (":authority", "shop.test:443")], Yes, None, Refused),
    Case(
        "CONNECT for a WebSocket",
        &[(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/")],
        Yes,
        None,
        Refused,
    ),
    // Whom it is for.
    Case("a user", with!("GET", "http", "user@shop.test", "/"), Yes, None, Refused),
    Case("a space in the authority", with!("GET", "http", "shop test", "/"), Yes, None, Refused),
    Case("a list of authorities", with!("GET", "http", "shop.test,other.test", "/"), Yes, None, Refused),
    Case("an empty authority", with!("GET", "http", "", "/"), Yes, None, Refused),
    Case("neither authority nor Host", &[(":method", "GET"), (":scheme", "http"), (":path", "/")], Yes, None, Refused),
    Case(
        "a Host alone",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "shop.test")],
        Yes,
        None,
        Sent("Host: shop.test\r\n"),
    ),
    Case("an authority and its Host", &[("host", "shop.test")], No, None, Sent("Host: shop.test\r\n")),
    Case("an authority and another Host", &[("host", "other.test")], No, None, Refused),
    Case("two Hosts", &[("host", "shop.test"), ("host", "shop.test")], No, None, Refused),
    // Pseudo-header fields.
    Case("two targets", &[(":path", "/other")], No, None, Refused),
    Case("a pseudo-header field behind others", &[("x", "y"), (":path", "/other")], No, None, Refused),
    Case("one that nobody knows", &[(":other", "x")], No, None, Refused),
    Case("one of answers", &[(":status", "200")], No, None, Refused),
    // Fields.
    Case("capitals", &[("X-Upper", "y")], No, None, Refused),
    Case("a space in a name", &[("x y", "z")], No, None, Refused),
    Case("a colon in a name", &[("x:y", "z")], No, None, Refused),
    Case("a line end in a value", &[("x", "a\r\nInjected: b")], No, None, Refused),
    Case("a line feed in a value", &[("x", "a\nInjected: b")], No, None, Refused),
    Case("a null in a value", &[("x", "a\0b")], No, None, Refused),
    Case("HTTP2-Settings", &[("http2-settings", "AAA")], No, None, Sent("GET / HTTP/1.1\r\nHost")),
    Case("underscores", &[("content_length", "5")], No, None, Sent("GET / HTTP/1.1\r\nHost")),
    Case("cookies", &[("cookie", "a=1"), ("cookie", "b=2")], No, None, Sent("cookie: a=1; b=2\r\n")),
    Case("another expectation", &[("expect", "a-miracle")], No, None, Refused),
    // Bodies.
    Case("a body without a length", &[], No, Some("hello"), Sent("Transfer-Encoding: chunked\r\n")),
    Case("a body with its length", &[("content-length", "5")], No, Some("hello"), Sent("Content-Length: 5\r\n")),
    Case("a body that is longer", &[("content-length", "4")], No, Some("hello"), Cut),
    Case("a body that is shorter", &[("content-length", "50")], No, Some("hello"), Cut),
    Case("a length without a body", &[("content-length", "5")], No, None, Refused),
    Case("two lengths", &[("content-length", "5"), ("content-length", "5")], No, Some("hello"), Refused),
    Case("a list of lengths", &[("content-length", "5, 5")], No, Some("hello"), Refused),
    Case("a length with a sign", &[("content-length", "+5")], No, Some("hello"), Refused),
];

/// A frame of the first stream, or of none (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Fields as literals that nobody keeps (RFC 7541, section 6.2.2), each string shorter than 127 bytes.
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let string = |text: &str| {
        // One byte each, so that bytes above 127 are what they are.
        let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        [&[u8::try_from(bytes.len()).unwrap()], bytes.as_slice()].concat()
    };
    list.iter().flat_map(|(name, value)| [vec![0], string(name), string(value)].concat()).collect()
}

/// Whether the answer is 200; none, if there is none.
fn answer(client: &mut Client) -> Option<bool> {
    loop {
        let mut head = [0; 9];
        client.stream.read_exact(&mut head).ok()?;
        let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        client.stream.read_exact(&mut payload).ok()?;
        match head[3] {
            // HEADERS; 200 is the eighth of the fields that everybody knows (RFC 7541, appendix A).
            1 => return Some(payload.first() == Some(&0x88)),
            // RST_STREAM, GOAWAY.
            3 | 7 => return None,
            _ => {}
        }
    }
}

#[test]
fn no_request_of_http_2_reaches_a_peer_that_could_be_read_in_two_ways() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    for Case(name, more, whole, body, becomes) in REQUESTS {
        let seen = (blue.heads().len(), blue.bodies().len());
        let usual = if body.is_some() { POST } else { GET };
        let list = if *whole == Yes { more.to_vec() } else { [usual, more].concat() };
        let mut client = switchover.client();
        let ends = if body.is_some() { 0 } else { 1 };
        let mut bytes =
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 4 | ends, 1, &fields(&list))].concat();
        bytes.extend(body.iter().flat_map(|body| frame(0, 1, 1, body.as_bytes())));
        client.stream.write_all(&bytes).unwrap();
        let answer = answer(&mut client);
        let heads = blue.heads();
        match becomes {
            Refused => {
                assert_ne!(answer, Some(true), "{name}");
                assert_eq!(heads.len(), seen.0, "{name} has reached the peer: {:?}", heads.last());
            }
            Cut => {
                assert_eq!(answer, None, "{name}");
                assert_eq!(blue.bodies().len(), seen.1, "{name}");
            }
            Sent(with) => {
                assert_eq!((answer, heads.len()), (Some(true), seen.0 + 1), "{name}");
                assert!(heads.last().unwrap().contains(with), "{name}: no {with:?} in {:?}", heads.last());
            }
        }
    }
    assert_eq!(switchover.get("/").text(), "blue", "it serves on");
}
