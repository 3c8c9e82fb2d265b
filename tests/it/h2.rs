//! HTTP/2 with frames that the test writes itself, because no client library sends them: ambiguous requests, as in
//! [`super::framing`], then floods and slow clients.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Client, ConfigFile, Edit, Origin, Switchover, curl, eventually, one_pool,
    origin::{Act, ok},
};

/// The expected outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// A response other than 200, or the end of the stream or of its connection; no peer gets the request.
    Refused,
    /// The end of the stream, because the body does not match its announced length; a peer gets an incomplete request.
    Cut,
    /// A 200 response; a peer gets exactly one request, whose head contains this text.
    Sent(&'static str),
}
use Becomes::{Cut, Refused, Sent};

type Fields = &'static [(&'static str, &'static str)];

const GET: Fields = &[(":method", "GET"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/")];
const POST: Fields = &[(":method", "POST"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/")];

/// The name, the fields, whether these are all fields (or follow those of GET, or of POST with a body), the body and the outcome.
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
    // Hop-by-hop fields.
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
    // Authority and Host.
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
    Case("an unknown one", &[(":other", "x")], No, None, Refused),
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

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// The index of `:status: 200` in the static table (RFC 7541, appendix A), as an indexed field.
pub const STATUS_200: u8 = 0x88;

const LONG: &str = "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy";

/// A frame; stream 0 is the connection (RFC 9113, section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals that are not indexed (RFC 7541, section 6.2.2), each string shorter than 127 bytes.
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let string = |text: &str| {
        // One byte for each character, so that the test can send bytes above 127.
        let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        [&[u8::try_from(bytes.len()).unwrap()], bytes.as_slice()].concat()
    };
    list.iter().flat_map(|(name, value)| [vec![0], string(name), string(value)].concat()).collect()
}

/// The start of a client's connection.
fn hello() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

/// Reads the next frame: its kind and its payload. None if the connection is closed. Panics at the timeout.
fn read_frame(client: &mut Client) -> Option<(u8, Vec<u8>)> {
    let head = read_exactly(client, 9)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    Some((head[3], read_exactly(client, length)?))
}

fn read_exactly(client: &mut Client, length: usize) -> Option<Vec<u8>> {
    match client.read_exactly(length) {
        Ok(bytes) => Some(bytes),
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => None,
        Err(e) => panic!("neither a frame nor the end of the connection: {e}"),
    }
}

/// The reaction to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    /// A response with this status.
    Head(u16),
    /// The end of the stream.
    Reset,
    /// The end of the connection.
    Closed,
}

const OK: Reply = Reply::Head(200);

fn reply(client: &mut Client) -> Reply {
    loop {
        match read_frame(client) {
            Some((HEADERS, payload)) => return Reply::Head(status(&payload)),
            Some((RST_STREAM, _)) => return Reply::Reset,
            Some((GOAWAY, _)) | None => return Reply::Closed,
            Some(_) => {}
        }
    }
}

/// The status with which the fields of a response begin: an entry of the static table (RFC 7541, appendix A), or a literal with the
/// name of entry 8 and a Huffman-coded value, as h2 writes it on a connection's first response.
fn status(fields: &[u8]) -> u16 {
    match fields {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [0x48, length, value @ ..] if length & 0x80 != 0 => huffman_digits(&value[..usize::from(length & 0x7f)]),
        _ => panic!("not a status: {fields:x?}"),
    }
}

/// A number of three digits: 0 to 2 are coded as their values in 5 bits, 3 to 9 as 0b01_1001 and up in 6 bits (RFC 7541, appendix B).
fn huffman_digits(coded: &[u8]) -> u16 {
    let mut bits = coded.iter().flat_map(|byte| (0..8).rev().map(move |n| u16::from(byte >> n & 1)));
    let mut digit = || {
        let five = bits.by_ref().take(5).fold(0, |all, bit| all << 1 | bit);
        if five <= 2 { five } else { (five << 1 | bits.next().unwrap()) - 0b01_1001 + 3 }
    };
    digit() * 100 + digit() * 10 + digit()
}

#[test]
fn no_request_of_http_2_reaches_a_peer_that_could_be_read_in_two_ways() {
    let (blue, _config, switchover) = one_pool(|config| config);
    let counted = || {
        let metrics = switchover.metrics();
        let rejected = metrics.lines().filter(|line| line.starts_with("switchover_rejected_requests_total{"));
        rejected.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    for Case(name, more, whole, body, becomes) in REQUESTS {
        let rejected = counted();
        let seen = (blue.heads().len(), blue.bodies().len());
        let usual = if body.is_some() { POST } else { GET };
        let list = if *whole == Yes { more.to_vec() } else { [usual, more].concat() };
        let mut client = switchover.client();
        let ends = if body.is_some() { 0 } else { END_STREAM };
        let mut bytes = [hello(), frame(HEADERS, END_HEADERS | ends, 1, &fields(&list))].concat();
        bytes.extend(body.iter().flat_map(|body| frame(DATA, END_STREAM, 1, body.as_bytes())));
        client.stream.write_all(&bytes).unwrap();
        let reply = reply(&mut client);
        let heads = blue.heads();
        match becomes {
            Refused => {
                let refusal = if list.contains(&(":method", "CONNECT")) {
                    405
                } else if list.iter().any(|(name, _)| *name == "expect") {
                    417
                } else {
                    400
                };
                assert!(reply == Reply::Head(refusal) || matches!(reply, Reply::Reset | Reply::Closed), "{name}: {reply:?}");
                assert_eq!(heads.len(), seen.0, "{name} has reached the peer: {:?}", heads.last());
                eventually(&format!("{name} is counted once"), || match counted() - rejected {
                    1.0 => Ok(()),
                    times => Err(times),
                });
            }
            Cut => {
                assert!(matches!(reply, Reply::Reset | Reply::Closed), "{name}: {reply:?}");
                assert_eq!(blue.bodies().len(), seen.1, "{name}");
            }
            Sent(with) => {
                assert_eq!((reply, heads.len()), (OK, seen.0 + 1), "{name}");
                assert!(heads.last().unwrap().contains(with), "{name}: no {with:?} in {:?}", heads.last());
            }
        }
    }
    assert_eq!(switchover.get("/").text(), "blue", "it serves on");
}

#[test]
fn the_pieces_of_a_cookie_are_one_field() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    let many = [GET, &[("cookie", "a=1"); 150]].concat();
    client.send([hello(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&many))].concat()).unwrap();
    assert_eq!(reply(&mut client), OK);
    let head = blue.heads().pop().unwrap();
    assert!(head.contains(&format!("cookie: {}\r\n", ["a=1"; 150].join("; "))), "{head}");
}

#[test]
fn a_body_that_is_sent_twice_is_counted_once() {
    let blue = Origin::start("blue");
    blue.on("/lost", Act::Close);
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).listener("    limits: {body_bytes: 1000}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    assert_eq!(upload(&switchover, "/lost", "PUT", 600), "502");
    assert_eq!(blue.bodies().len(), 2, "a second try");
    assert_eq!(upload(&switchover, "/lost", "PUT", 1001), "413");
}

/// Uploads over HTTP/2 without a length, and returns the status.
fn upload(switchover: &Switchover, path: &str, method: &str, bytes: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("upload");
    fs::write(&file, vec![b'x'; bytes]).unwrap();
    let data = format!("@{}", file.display());
    let status = ["-o", "/dev/null", "-w", "%{http_code}", "-X", method, "--data-binary", &data];
    let args = [["--http2-prior-knowledge", "-H", "Content-Length:"].as_slice(), &status].concat();
    curl(&format!("http://{}{path}", switchover.address), &args).unwrap()
}

#[test]
fn a_peer_of_http_2_that_does_not_take_a_body_is_late() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = silent.local_addr().unwrap();
    let config = ConfigFile::new(&[("blue", &[peer])])
        .service("    health_check: {tcp: true, interval: 60s}\n    upstream: {protocol: h2c}\n    timeouts: {response: 500ms}\n")
        .listener("    limits: {stall_timeout: 1s, min_rate: 1000}\n")
        .top("access_log: {format: json, file: access.log}\n");
    thread::spawn(move || {
        let mut open = Vec::new();
        for stream in silent.incoming().map_while(Result::ok) {
            // The window of a stream starts with 64 KiB and is not increased.
            open.push((&stream).write_all(&frame(SETTINGS, 0, 0, &[])).map(|()| stream));
        }
    });
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    client.send([hello(), frame(HEADERS, END_HEADERS, 1, &fields(POST))].concat()).unwrap();
    // The window of a connection starts with 64 KiB; switchover increases it at once.
    while read_frame(&mut client).is_some_and(|(kind, _)| kind != WINDOW_UPDATE) {}
    client.send(frame(SETTINGS, ACK, 0, &[])).unwrap();
    for _ in 0..12 {
        client.send(frame(DATA, 0, 1, &[0; 16_384])).unwrap();
    }
    assert_eq!(reply(&mut client), Reply::Head(504));
    let log = eventually("it is logged", || {
        let log = fs::read_to_string(config.folder().join("access.log")).unwrap_or_default();
        if log.contains('\n') { Ok(log) } else { Err(log) }
    });
    assert!(log.contains("\"ended\":\"response_timeout\"") && log.contains(&format!("\"peer\":\"{peer}\"")), "{log}");
}

/// A client that increases its window as it reads, faster than `min_rate`.
#[test]
fn a_client_that_reads_slowly_gets_the_whole_answer() {
    let blue = Origin::start("blue");
    const LENGTH: usize = 300_000;
    blue.on("/", Act::Say(ok(&"x".repeat(LENGTH))));
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).listener("    limits: {min_rate: 3000, stall_timeout: 1s}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    client.send([hello(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(GET))].concat()).unwrap();
    let mut read = 0;
    while read < LENGTH {
        let (kind, payload) = read_frame(&mut client).expect("it is not cut");
        if kind == DATA && !payload.is_empty() {
            read += payload.len();
            // 30 kB/s: the 64 KiB that Pingora writes at once take two seconds.
            thread::sleep(Duration::from_micros(payload.len() as u64 * 1_000_000 / 30_000)); // The client that is tested.
            let increment = u32::try_from(payload.len()).unwrap().to_be_bytes();
            let opened = [0, 1].map(|stream| frame(WINDOW_UPDATE, 0, stream, &increment)).concat();
            client.send(opened).unwrap();
        }
    }
}

/// Requests that the client resets at once cost the server more than the client (CVE-2023-44487, rapid reset).
#[test]
fn a_client_that_resets_stream_after_stream_is_disconnected() {
    let (blue, _config, switchover) = one_pool(|config| config);
    let mut client = switchover.client();
    let request = fields(GET);
    let flood = (0..2000).map(|n| n * 2 + 1).flat_map(|stream| {
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, &request), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    });
    let flood: Vec<u8> = hello().into_iter().chain(flood).collect();
    // The connection may be closed before all of it is sent.
    client.stream.write_all(&flood).unwrap_or_default();
    let mut last = None;
    while let Some(frame) = read_frame(&mut client) {
        last = Some(frame);
    }
    let (kind, payload) = last.unwrap();
    assert_eq!((kind, payload[7]), (GOAWAY, 11), "ENHANCE_YOUR_CALM");
    assert!(blue.heads().len() < 100, "{}", blue.heads().len());
    switchover.await_rejected("h2_flood", 1);
    assert_eq!(switchover.get("/").text(), "blue", "it serves on");
}

#[test]
fn requests_that_the_http_2_library_refuses_are_counted_and_logged() {
    let blue = Origin::start("blue");
    blue.on("/hang", Act::Hang);
    let config = ConfigFile::new(&[("blue", &[blue.address()])])
        .listener("limits: {streams_per_connection: 2, header_bytes: 4096}")
        .top("access_log: {format: json, file: access.log}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");

    let mut client = switchover.client();
    let long = [GET, &[("x", LONG); 50]].concat();
    client.send([hello(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&long))].concat()).unwrap();
    assert_eq!(reply(&mut client), Reply::Head(431));
    switchover.await_rejected("header_bytes", 1);

    let mut client = switchover.client();
    let hang = [(":method", "GET"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/hang")];
    let streams = [1, 3, 5].map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields(&hang))).concat();
    client.send([hello(), streams].concat()).unwrap();
    assert_eq!(reply(&mut client), Reply::Reset, "REFUSED_STREAM");
    switchover.await_rejected("streams_per_connection", 1);

    let mut client = switchover.client();
    client.send([hello(), frame(DATA, 0, 1, b"of no stream")].concat()).unwrap();
    assert_eq!(reply(&mut client), Reply::Closed, "PROTOCOL_ERROR");
    switchover.await_rejected("bad_request", 1);

    // Rejected by Pingora before any hook.
    let mut client = switchover.client();
    let hosts = [GET, &[("host", "shop.test"), ("host", "shop.test")]].concat();
    client.send([hello(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&hosts))].concat()).unwrap();
    assert_eq!(reply(&mut client), Reply::Head(400));
    let log = eventually("both have their line", || {
        let log = fs::read_to_string(config.folder().join("access.log")).unwrap();
        if log.matches("\"ended\":\"bad_request\"").count() == 2 { Ok(log) } else { Err(log) }
    });
    let of_a_request = log.lines().find(|line| line.contains("\"header_bytes\"")).unwrap_or_default();
    assert!(of_a_request.contains("\"method\":\"GET\",\"host\":\"shop.test\",\"target\":\"/\""), "{log}");
    for ended in ["header_bytes", "streams_per_connection", "bad_request"] {
        eventually(ended, || {
            let log = fs::read_to_string(config.folder().join("access.log")).unwrap();
            if log.contains(&format!("\"ended\":\"{ended}\"")) { Ok(()) } else { Err(log) }
        });
    }
}

/// A header without an end (CVE-2024-27316) is not buffered.
#[test]
fn a_header_that_goes_on_and_on_ends_its_connection() {
    let (blue, _config, switchover) = one_pool(|config| config);
    let mut client = switchover.client();
    let more = fields(&[("x", LONG)]).repeat(140);
    let mut sent = client.stream.write_all(&[hello(), frame(HEADERS, END_STREAM, 1, &fields(GET))].concat());
    let mut frames = 0;
    while sent.is_ok() && frames < 10_000 {
        sent = client.stream.write_all(&frame(CONTINUATION, 0, 1, &more));
        frames += 1;
    }
    assert!(frames < 10_000, "160 MB of a header were taken");
    switchover.await_rejected("h2_flood", 1);
    assert_eq!(blue.heads(), Vec::<String>::new());
    assert_eq!(switchover.get("/").text(), "blue", "it serves on");
}

/// A fault of the client does not count as a failure of the peer.
const STALL: Duration = Duration::from_millis(700);

#[test]
fn a_body_that_drips_is_cut_and_one_that_its_peer_does_not_take_is_not() {
    let (blue, slow) = (Origin::start("blue"), TcpListener::bind("127.0.0.1:0").unwrap());
    let config = ConfigFile::new(&[("blue", &[blue.address()]), ("green", &[slow.local_addr().unwrap()])])
        .service("health_check: {tcp: true, interval: 100ms}")
        .listener(&format!("limits: {{min_rate: 1000, stall_timeout: {}ms}}", STALL.as_millis()));
    let peer = thread::spawn(move || {
        // Probes connect, and send nothing.
        loop {
            let (mut stream, _) = slow.accept().unwrap();
            let mut begin = [0; 1];
            if stream.read_exact(&mut begin).is_ok() {
                thread::sleep(STALL * 3); // The application that is tested.
                let (mut buffer, mut end) = ([0; 65_536], Vec::new());
                while !end.ends_with(b"0\r\n\r\n") {
                    let read = stream.read(&mut buffer).unwrap();
                    end.extend_from_slice(&buffer[..read]);
                    end.drain(..end.len().saturating_sub(5));
                }
                return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        }
    });
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let post = frame(HEADERS, END_HEADERS, 1, &fields(POST));

    let mut client = switchover.client();
    let began = Instant::now();
    client.send([hello(), post].concat()).unwrap();
    let mut stream = client.stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        while stream.write_all(&frame(DATA, 0, 1, b"b")).is_ok() {
            thread::sleep(Duration::from_millis(40)); // The client that is tested.
        }
    });
    assert_eq!(reply(&mut client), Reply::Head(408));
    assert!(began.elapsed() >= STALL, "{:?}", began.elapsed());
    switchover.await_rejected("slow_body", 1);
    switchover.await_in_flight("blue", 0);
    assert_eq!(blue.heads(), Vec::<String>::new());
    client.stream.shutdown(Shutdown::Both).unwrap();
    drip.join().unwrap();

    // More than all buffers on the way hold.
    config.set_active("green", Edit::Rename);
    switchover.await_active("green");
    let file = config.folder().join("upload");
    fs::write(&file, vec![b'x'; 30_000_000]).unwrap();
    let body = format!("@{}", file.display());
    let args =
        ["--http2-prior-knowledge", "-H", "Content-Length:", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", &body];
    assert_eq!(curl(&format!("http://{}/", switchover.address), &args), Ok("200".to_owned()));
    peer.join().unwrap();
}

/// Of a stream that was reset nothing has to be sent any more. Before, its connection was kept for `idle_timeout`.
#[test]
fn a_stop_does_not_wait_for_a_silent_client_that_reset_a_stream() {
    let blue = Origin::start("blue");
    blue.on("/hang", Act::Hang);
    let config = ConfigFile::new(&[("blue", &[blue.address()])])
        .listener("    limits: {idle_timeout: 30m}\n")
        .top("shutdown_timeout: 30m\n");
    let mut switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    let hang = fields(&[(":method", "GET"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/hang")]);
    client.send([hello(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &hang)].concat()).unwrap();
    switchover.await_in_flight("blue", 1);
    client.send(frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).unwrap();
    switchover.await_in_flight("blue", 0);
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &fields(GET))).unwrap();
    while read_frame(&mut client).is_some_and(|(kind, _)| kind != HEADERS) {}
    switchover.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(switchover.await_exit().0.success());
}

/// After GOAWAY, the h2 library waits for the client's response to a PING. A client without a response is closed like an idle
/// one.
#[test]
fn a_connection_that_was_asked_to_go_ends_in_time() {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])])
        .listener("    limits: {requests_per_connection: 1, idle_timeout: 1s}\n")
        .top("shutdown_timeout: 30m\n");
    let mut switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    // Skips other frames.
    let status = |client: &mut Client| loop {
        if let (HEADERS, payload) = read_frame(client)? {
            return payload.first().copied();
        }
    };
    let mut client = switchover.client();
    client.stream.write_all(&[hello(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(GET))].concat()).unwrap();
    assert_eq!(status(&mut client), Some(STATUS_200));
    // Skips other frames.
    assert!(client.stream.read_to_end(&mut Vec::new()).is_ok(), "it is closed");

    // A running request keeps the connection open: it is not idle while the peer works.
    blue.on("/slow", Act::SayAfter(Duration::from_secs(3), crate::support::origin::ok("slow")));
    let mut client = switchover.client();
    let slow = fields(&[(":method", "GET"), (":scheme", "http"), (":authority", "shop.test"), (":path", "/slow")]);
    client.stream.write_all(&[hello(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &slow)].concat()).unwrap();
    assert_eq!(status(&mut client), Some(STATUS_200));

    // A stopping process does not wait for a silent client.
    let mut silent = switchover.client();
    silent.stream.write_all(&hello()).unwrap();
    assert!(read_frame(&mut silent).is_some());
    switchover.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(switchover.await_exit().0.success());
}
