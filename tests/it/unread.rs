//! Resident memory under clients that ask and do not read.

use std::{
    io::Write,
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use socket2::{Domain, Socket, Type};

use crate::support::{
    Authority, ConfigFile, HyperPeer, Origin, Switchover, curl, eventually,
    hyper_peer::LARGE,
    origin::{Act, ok},
};

const H1_CLIENTS: usize = 64;
const H2_CLIENTS: usize = 6;
/// As many as the default limits allow, and more.
const STREAMS: u32 = 128;
/// Streams of an HTTP/2 connection that are served at a time while its client does not read.
const STALLED_STREAMS: usize = 6;
/// Health checks use less between two looks, in clock ticks; reading responses uses more.
const IDLE_TICKS: u64 = 3;
/// What an HTTP/1 client may hold, in MiB: 256 KiB.
const H1_EACH: f64 = 0.25;
/// What the process keeps besides, however many clients there are, in MiB: pages that the allocator keeps for each thread.
const BASE: f64 = 3.0;

fn large() -> (Origin, Switchover, ConfigFile) {
    let blue = Origin::start("blue");
    blue.on("/x", Act::Say(ok(&"x".repeat(LARGE))));
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    Authority::new().sign(config.folder(), "shop", &["shop.test"], 2040);
    let tls = "  - address: 127.0.0.1:0\n    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n";
    let config = config.listener(tls);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (blue, switchover, config)
}

/// A connection whose kernel takes little for it.
fn narrow(switchover: &Switchover) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&switchover.address.into()).unwrap();
    socket.into()
}

/// The memory once everything that can be read on has been: every request was `asked`, memory has not grown, and the process is idle
/// but for its health checks.
fn settled(switchover: &Switchover, asked: impl Fn() -> bool) -> f64 {
    let mut last = None;
    eventually("the process is idle", || {
        std::thread::sleep(std::time::Duration::from_millis(300)); // Between two looks at what is measured.
        let now = (switchover.memory(), switchover.cpu_ticks());
        match last.replace(now) {
            Some((memory, ticks)) if asked() && now.0 - memory < 1.0 && now.1 - ticks <= IDLE_TICKS => Ok(now.0),
            before => Err((before, now)),
        }
    })
}

#[test]
fn a_client_of_http_1_that_does_not_read_holds_256_kib_at_most() {
    let (blue, switchover, _config) = large();
    let before = switchover.memory();
    let clients: Vec<_> = (0..H1_CLIENTS)
        .map(|_| {
            let mut client = narrow(&switchover);
            client.write_all(b"GET /x HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
            client
        })
        .collect();
    let after = settled(&switchover, || blue.heads().len() >= H1_CLIENTS);
    let each = (after - before - BASE).max(0.0) / H1_CLIENTS as f64;
    println!("HTTP/1: {before:.1} MiB before, {after:.1} MiB with {H1_CLIENTS} clients, {each:.2} MiB each");
    assert!(each < H1_EACH, "{each}");
    drop(clients);
}

#[test]
fn a_client_of_http_2_that_does_not_read_holds_4_mib_at_most() {
    for widest in [true, false] {
        let (blue, switchover, _config) = large();
        let before = switchover.memory();
        let clients: Vec<_> = (0..H2_CLIENTS)
            .map(|_| {
                let mut client = narrow(&switchover);
                client.write_all(&requests("/x", STREAMS, widest)).unwrap();
                client
            })
            .collect();
        let after = settled(&switchover, || blue.heads().len() >= H2_CLIENTS * STALLED_STREAMS);
        let each = (after - before - BASE).max(0.0) / H2_CLIENTS as f64;
        println!("HTTP/2: {before:.1} MiB before, {after:.1} MiB with {H2_CLIENTS} clients, {each:.2} MiB each");
        assert!(each < 4.0, "{each}, windows as wide as can be: {widest}");
        drop(clients);
    }
}

/// The same over TLS: a client that is stopped reads nothing.
#[test]
fn a_client_of_tls_that_does_not_read_holds_no_more() {
    let (blue, switchover, _config) = large();
    let before = switchover.memory();
    let port = switchover.log().lines().filter_map(|line| line.split_once("] listening on ")).next_back().unwrap().1.to_owned();
    let clients: Vec<Stopped> = (0..32)
        .map(|_| {
            let curl = Command::new("curl")
                .args(["-sk", "--http1.1", "--limit-rate", "1", "--noproxy", "*", "-H", "Host: shop.test"])
                .arg(format!("https://{port}/x"))
                .stdout(Stdio::null())
                .spawn();
            Stopped(curl.unwrap())
        })
        .collect();
    let after = settled(&switchover, || blue.heads().len() >= clients.len());
    let each = (after - before - BASE).max(0.0) / clients.len() as f64;
    println!("TLS: {before:.1} MiB before, {after:.1} MiB with {} clients, {each:.2} MiB each", clients.len());
    assert!(each < 0.5, "{each}");
}

/// Another process, ended with the test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Many requests of one connection; with windows as wide as can be, or with those of the protocol, which nothing widens.
fn requests(path: &str, streams: u32, widest: bool) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    if widest {
        bytes.extend(frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        bytes.extend(frame(8, 0, 0, &(0x7fff_ffff - 65_535_u32).to_be_bytes()));
    } else {
        bytes.extend(frame(4, 0, 0, &[]));
    }
    for n in 0..streams {
        // GET, http, and the path as a literal without indexing (RFC 7541, section 6.2.2).
        let mut fields = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        fields.extend(path.as_bytes());
        fields.extend([0x01, 9]);
        fields.extend(b"shop.test");
        bytes.extend(frame(1, 5, 2 * n + 1, &fields));
    }
    bytes
}

/// A switchover in front of a peer that speaks HTTP/2, over which requests share a connection.
fn large_over_h2c() -> (HyperPeer, Switchover, ConfigFile) {
    let peer = HyperPeer::start(true, None);
    let service = "    upstream: {protocol: h2c}\n    health_check: {interval: 100ms, path: /}\n";
    let config = ConfigFile::new(&[("blue", &[peer.address])]).service(service);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (peer, switchover, config)
}

#[test]
fn a_client_that_does_not_read_from_an_h2_peer_holds_4_mib_at_most() {
    let (_peer, switchover, _config) = large_over_h2c();
    // Requests share a connection that is there; before, each would open one of its own.
    assert_eq!(switchover.get("/").status, 200);
    let before = switchover.memory();
    let clients: Vec<_> = (0..H2_CLIENTS)
        .map(|_| {
            let mut client = narrow(&switchover);
            client.write_all(&requests("/large", STREAMS, true)).unwrap();
            client
        })
        .collect();
    let asked = || switchover.pool_status("blue").in_flight >= H2_CLIENTS * STALLED_STREAMS;
    let after = settled(&switchover, asked);
    let each = (after - before - BASE).max(0.0) / H2_CLIENTS as f64;
    println!("HTTP/2 to HTTP/2: {before:.1} MiB before, {after:.1} MiB with {H2_CLIENTS} clients, {each:.2} MiB each");
    assert!(each < 4.0, "{each}");
    drop(clients);
}

/// Pingora gives a stream and the connection to an HTTP/2 peer the same window, so a few unread responses would fill the connection's.
#[test]
fn clients_that_do_not_read_hold_up_no_other_request_to_an_h2_peer() {
    let (_peer, switchover, _config) = large_over_h2c();
    // Requests share a connection that is there; before, each would open one of its own.
    assert_eq!(switchover.get("/").status, 200);
    let before = switchover.memory();
    let clients: Vec<_> = (0..48)
        .map(|_| {
            let mut client = narrow(&switchover);
            client.write_all(b"GET /large HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
            client
        })
        .collect();
    let after = settled(&switchover, || switchover.pool_status("blue").in_flight >= clients.len());
    println!("HTTP/1 to HTTP/2: {before:.1} MiB before, {after:.1} MiB with {} clients", clients.len());
    for _ in 0..10 {
        let response = switchover.get("/large");
        assert_eq!((response.status, response.body.len()), (200, LARGE));
    }
    drop(clients);
}

/// The number of responses that clients do not read is bounded for the whole process; requests above it get 503 and Retry-After.
#[test]
fn further_requests_are_refused_while_too_many_responses_are_not_read() {
    let blue = Origin::start("blue");
    blue.on("/x", Act::Say(ok(&"x".repeat(LARGE))));
    let config =
        ConfigFile::new(&[("blue", &[blue.address()])]).listener("    limits: {unread_responses: 3, stall_timeout: 30m}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let mut client = narrow(&switchover);
            client.write_all(b"GET /x HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
            client
        })
        .collect();
    let answer = eventually("no more requests are let in", || {
        let answer = switchover.get("/");
        if answer.status == 503 { Ok(answer) } else { Err(answer) }
    });
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.text().contains("too many responses wait to be read"), "{}", answer.text());
    let over_h2 =
        curl(&format!("http://{}/", switchover.address), &["--http2-prior-knowledge", "-i", "-H", "Host: shop.test"]).unwrap();
    assert!(over_h2.starts_with("HTTP/2 503") && over_h2.contains("\r\nretry-after: 1\r\n"), "{over_h2}");
    let series = "switchover_rejected_requests_total{listener=\"127.0.0.1:0\",reason=\"unread_responses\"}";
    assert!(switchover.metric(series).unwrap() >= 1.0);
    drop(clients);
    eventually("others are served again", || match switchover.get("/").status {
        200 => Ok(()),
        other => Err(other),
    });
}
