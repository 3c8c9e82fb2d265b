//! The limits of a listener: clients that exceed them, and clients that send or read nothing.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Authority, Client, ConfigFile, Load, Origin, Protocol, Switchover, eventually, hyper_client::Silent, load::mixed, one_pool,
    origin::Act, origin::ok,
};

fn limited(limits: &str) -> (Origin, ConfigFile, Switchover) {
    one_pool(|config| config.listener(&format!("limits: {limits}")))
}

fn status_of(switchover: &Switchover, request: &str) -> u16 {
    let mut client = switchover.client();
    client.send(request).unwrap();
    client.read_response().unwrap().status
}

#[test]
fn each_limit_of_size_is_answered_with_its_status_and_counted() {
    let (blue, _config, switchover) =
        limited("{header_bytes: 2000, header_count: 10, request_line_bytes: 100, body_bytes: 1000}");
    let head = |first: &str, rest: &str| format!("{first} HTTP/1.1\r\nHost: a\r\n{rest}\r\n");
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: y\r\n")).collect::<String>();
    for (request, status, reason) in [
        (head("GET /", &fields(9)), 200, ""),
        (head("GET /", &fields(10)), 431, "header_count"),
        (head("GET /", &format!("X: {}\r\n", "y".repeat(1900))), 200, ""),
        (head("GET /", &format!("X: {}\r\n", "y".repeat(2000))), 431, "header_bytes"),
        (head(&format!("GET /{}", "a".repeat(80)), ""), 200, ""),
        (head(&format!("GET /{}", "a".repeat(100)), ""), 414, "request_line_bytes"),
        (head("POST /", "Content-Length: 1000\r\n") + &"b".repeat(1000), 200, ""),
        (head("POST /", "Content-Length: 1001\r\n") + &"b".repeat(1001), 413, "body_bytes"),
        (head("POST /", "Content-Length: 100000000000\r\n"), 413, "body_bytes"),
        (head("POST /", "Transfer-Encoding: chunked\r\n") + &format!("3e8\r\n{}\r\n0\r\n\r\n", "b".repeat(1000)), 200, ""),
        (
            head("POST /", "Transfer-Encoding: chunked\r\n") + &format!("3e8\r\n{}\r\n1\r\nb\r\n0\r\n\r\n", "b".repeat(1000)),
            413,
            "body_bytes",
        ),
        (head("POST /", "Transfer-Encoding: chunked\r\n") + "ffffffff\r\n", 413, "body_bytes"),
    ] {
        let before = if reason.is_empty() { 0.0 } else { switchover.rejected(reason) };
        let seen = blue.heads().len();
        assert_eq!(status_of(&switchover, &request), status, "{}", request.get(..60).unwrap_or(&request));
        if !reason.is_empty() {
            switchover.await_rejected(reason, before as usize + 1);
            assert_eq!(blue.heads().len(), seen, "no whole request has reached the peer");
        }
    }
}

#[test]
fn a_client_that_sends_nothing_is_disconnected() {
    let (_blue, _config, switchover) = limited("{header_timeout: 300ms}");
    let began = Instant::now();
    assert!(switchover.client().is_closed());
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    switchover.await_rejected("idle_timeout", 1);
}

/// Sends the first bytes, then `piece` repeatedly with pauses, until the connection is closed. Returns the status of the response
/// and the duration.
fn drip(switchover: &Switchover, begin: &str, piece: &'static str) -> (u16, Duration) {
    let began = Instant::now();
    let mut slow = switchover.client();
    slow.send(begin).unwrap();
    let mut stream = slow.stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        while stream.write_all(piece.as_bytes()).is_ok() {
            thread::sleep(Duration::from_millis(30)); // The client that is tested.
        }
    });
    let status = slow.read_response().unwrap().status;
    let took = began.elapsed();
    drop(slow);
    drip.join().unwrap();
    (status, took)
}

#[test]
fn a_header_that_drips_is_answered_with_408() {
    let (blue, _config, switchover) = limited("{header_timeout: 300ms}");
    let (status, took) = drip(&switchover, "GET / HTTP/1.1\r\nHost: a\r\nX: ", "y");
    assert_eq!(status, 408);
    assert!(took >= Duration::from_millis(300), "{took:?}");
    switchover.await_rejected("header_timeout", 1);
    assert_eq!(blue.heads(), Vec::<String>::new());
}

#[test]
fn a_body_that_drips_is_answered_with_408() {
    let (blue, _config, switchover) = limited("{stall_timeout: 400ms, min_rate: 1000}");
    for (encoding, piece) in [("Content-Length: 100000", "b"), ("Transfer-Encoding: chunked", "1\r\nb\r\n")] {
        let (status, took) = drip(&switchover, &format!("POST / HTTP/1.1\r\nHost: a\r\n{encoding}\r\n\r\n"), piece);
        assert_eq!(status, 408, "{encoding}");
        assert!(took >= Duration::from_millis(400), "{encoding}: {took:?}");
    }
    switchover.await_rejected("slow_body", 2);
    assert_eq!(blue.heads(), Vec::<String>::new(), "neither was a whole request");
}

#[test]
fn a_kept_connection_that_is_not_used_again_is_closed() {
    let (_blue, _config, switchover) = limited("{idle_timeout: 600ms}");
    let began = Instant::now();
    let mut kept = switchover.client();
    assert_eq!(kept.get("/").unwrap().status, 200);
    assert!(kept.is_closed());
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    switchover.await_rejected("idle_timeout", 1);
}

#[test]
fn a_client_that_does_not_read_is_disconnected_and_a_quick_one_is_not() {
    let (blue, _config, switchover) = limited("{stall_timeout: 500ms, min_rate: 1000}");
    let big = vec![b'x'; 40_000_000];
    blue.on("/big", Act::Say(ok(std::str::from_utf8(&big).unwrap())));
    let mut lazy = switchover.client();
    lazy.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_rejected("slow_reader", 1);
    switchover.await_in_flight("blue", 0);
    assert_eq!(switchover.get("/big").body.len(), big.len());
    // A stream without data for longer than stall_timeout is not a stall.
    let pieces =
        vec![b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), b"1\r\na\r\n".to_vec(), b"0\r\n\r\n".to_vec()];
    blue.on("/quiet", Act::Drip(Duration::from_millis(900), pieces));
    assert_eq!(switchover.get("/quiet").text(), "a");
}

/// The kernel's send buffer holds megabytes, and accepts more only after a third of it is free.
#[test]
fn a_client_that_reads_faster_than_min_rate_gets_the_whole_answer() {
    let (blue, _config, switchover) = limited("{stall_timeout: 2s, min_rate: 30000}");
    let big = "x".repeat(20_000_000);
    blue.on("/big", Act::Say(ok(&big)));
    let mut slow = switchover.client();
    slow.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(slow.read_head().unwrap().status, 200);
    // 300 kB/s, for five times the stall_timeout.
    for _ in 0..100 {
        slow.read_exactly(30_000).unwrap();
        thread::sleep(Duration::from_millis(100)); // The client that is tested.
    }
    assert_eq!(slow.read_exactly(big.len() - 3_000_000).unwrap().len(), big.len() - 3_000_000);
    assert_eq!(switchover.rejected("slow_reader"), 0.0);
}

/// Before the handshake, the client could not read a response.
#[test]
fn a_full_listener_of_tls_says_nothing_without_tls() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    authority.sign(config.folder(), "shop", &["shop.test"], 2040);
    let config =
        config.listener("    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n    limits: {connections: 1}\n");
    let switchover = Switchover::start(&config);
    // At the start switchover connects to its own listener.
    eventually("nothing is connected", || match switchover.metric("switchover_downstream_connections") {
        Some(0.0) => Ok(()),
        other => Err(other),
    });
    let first = switchover.client();
    eventually("it is there", || match switchover.metric("switchover_downstream_connections") {
        Some(1.0) => Ok(()),
        other => Err(other),
    });
    let mut second = switchover.client();
    assert!(second.is_closed_within(Duration::from_secs(20)));
    switchover.await_rejected("connections", 1);
    drop(first);
}

#[test]
fn connections_and_requests_on_them_are_bounded() {
    let (_blue, _config, switchover) = limited("{connections: 5, requests_per_connection: 3}");
    let mut client = switchover.client();
    let closes: Vec<bool> = (0..3).map(|_| client.get("/").unwrap().closes()).collect();
    assert_eq!(closes, [false, false, true]);
    assert!(client.is_closed());
    eventually("it is closed", || match switchover.metric("switchover_downstream_connections") {
        Some(0.0) => Ok(()),
        other => Err(other),
    });
    let mut open: Vec<Client> = (0..5).map(|_| switchover.client()).collect();
    open.iter_mut().for_each(|client| assert_eq!(client.get("/").unwrap().status, 200));
    let mut sixth = switchover.client();
    assert_eq!(sixth.read_response().unwrap().status, 503);
    switchover.await_rejected("connections", 1);
    drop((open, sixth));
    eventually("the next client is let in", || match switchover.client().get("/").map(|answer| answer.status) {
        Ok(200) => Ok(()),
        other => Err(other),
    });
}

#[test]
fn connections_of_one_client_are_bounded_and_those_of_others_are_not() {
    let (_blue, _config, switchover) = limited("{connections_per_client: 3}");
    let mut open: Vec<Client> = (0..3).map(|_| switchover.client()).collect();
    open.iter_mut().for_each(|client| assert_eq!(client.get("/").unwrap().status, 200));
    assert_eq!(switchover.client().read_response().unwrap().status, 429);
    switchover.await_rejected("connections_per_client", 1);
    let elsewhere = from_elsewhere([127, 0, 0, 9], switchover.address);
    let mut client = Client::over(elsewhere);
    assert_eq!(client.get("/").unwrap().status, 200);
}

/// A connection from another address of loopback.
pub fn from_elsewhere(from: [u8; 4], to: SocketAddr) -> std::net::TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let stream = socket.connect(to).await.unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
    })
}

/// Long enough for a thousand connections to be open at once on any machine.
const PATIENT: &str = "{header_timeout: 30m, idle_timeout: 30m}";

/// What a client sends before it stops sending: nothing, a part of a header, a part of the HTTP/2 preface, the preface and the
/// settings, or these and a part of a header.
const BEGINNINGS: [&[u8]; 5] = [
    b"",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
    b"PRI * HTTP/2.0\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82",
];

#[test]
fn a_silent_client_is_disconnected_whatever_it_has_begun() {
    let (blue, _config, switchover) = limited("{header_timeout: 500ms, idle_timeout: 500ms}");
    let mut silent = BEGINNINGS.map(|begin| {
        let mut client = switchover.client();
        client.send(begin).unwrap();
        client
    });
    // A response, a GOAWAY or nothing, and then the end of the connection.
    for client in &mut silent {
        client.stream.read_to_end(&mut Vec::new()).unwrap();
    }
    assert_eq!(blue.heads(), Vec::<String>::new());
}

#[test]
fn a_thousand_silent_connections_disturb_no_request() {
    let (_blue, _config, switchover) = limited(PATIENT);
    let load = Load::start(switchover.address, 4, mixed);
    a_thousand_silent(&switchover, || silent_clients(&switchover, 1000, &BEGINNINGS[..3]));
    load.await_sent(100);
    load.stop().assert_no_failures();
}

#[test]
fn a_thousand_silent_connections_of_http_2_disturb_no_request() {
    let (_blue, _config, switchover) = limited(PATIENT);
    let load = Load::start(switchover.address, 4, mixed);
    a_thousand_silent(&switchover, || silent_clients(&switchover, 1000, &BEGINNINGS[3..]));
    load.await_sent(100);
    load.stop().assert_no_failures();
}

#[test]
fn a_thousand_silent_connections_of_tls_disturb_no_request() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let ca = authority.write(config.folder());
    authority.sign(config.folder(), "shop", &["shop.test"], 2040);
    let config =
        config.listener(&format!("tls: {{certificates: [{{certificate: shop.crt, key: shop.key}}]}}\nlimits: {PATIENT}\n"));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let load = Load::start_over(Protocol::Https1, switchover.address, &ca, 2, mixed);
    a_thousand_silent(&switchover, || {
        let half = silent_clients(&switchover, 500, &[b"", b"\x16\x03\x01\x02"]);
        (half, [Protocol::H2, Protocol::Https1].map(|protocol| Silent::start(switchover.address, &ca, protocol, 250)))
    });
    load.await_sent(100);
    load.stop().assert_no_failures();
}

fn silent_clients(switchover: &Switchover, count: usize, beginnings: &[&[u8]]) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| switchover.client()).collect();
    clients.iter_mut().zip(beginnings.iter().cycle()).for_each(|(client, begin)| client.send(begin).unwrap());
    clients
}

/// Idle connections use little memory, which is freed when they close.
fn a_thousand_silent<T>(switchover: &Switchover, connect: impl FnOnce() -> T) {
    let open = || switchover.metric("switchover_downstream_connections").unwrap();
    let idle = switchover.memory();
    let silent = connect();
    eventually("all are there", || if open() >= 1000.0 { Ok(()) } else { Err(open()) });
    let loaded = switchover.memory();
    println!("a thousand silent connections: {:.1} MiB more than {idle:.1}", loaded - idle);
    assert!(loaded - idle < 64.0, "{idle} {loaded}");
    drop(silent);
    eventually("all are closed", || if open() < 20.0 { Ok(()) } else { Err(open()) });
}
