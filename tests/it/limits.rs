//! What a client may ask of a listener, and what becomes of one that asks for more, or for nothing at all.

use std::{
    io::Write,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Authority, Client, ConfigFile, Load, Origin, Protocol, Switchover, eventually, hyper_client::Silent, load::mixed,
    origin::Act, origin::ok,
};

fn limited(limits: &str) -> (Origin, ConfigFile, Switchover) {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])]).listener(&format!("    limits: {limits}\n"));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (blue, config, switchover)
}

fn rejected(switchover: &Switchover, reason: &str) -> f64 {
    let series = format!("switchover_rejected_requests_total{{listener=\"127.0.0.1:0\",reason=\"{reason}\"}}");
    switchover.metric(&series).unwrap_or_else(|| panic!("no {series}"))
}

fn await_rejected(switchover: &Switchover, reason: &str, times: f64) {
    eventually(reason, || match rejected(switchover, reason) {
        seen if seen >= times => Ok(()),
        seen => Err(seen),
    });
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
        let before = if reason.is_empty() { 0.0 } else { rejected(&switchover, reason) };
        let seen = blue.heads().len();
        assert_eq!(status_of(&switchover, &request), status, "{}", request.get(..60).unwrap_or(&request));
        if !reason.is_empty() {
            await_rejected(&switchover, reason, before + 1.0);
            assert_eq!(blue.heads().len(), seen, "no whole request has reached the peer");
        }
    }
}

#[test]
fn a_client_that_does_not_go_on_is_let_go() {
    let (blue, _config, switchover) =
        limited("{header_timeout: 300ms, idle_timeout: 600ms, stall_timeout: 400ms, min_rate: 1000}");
    let began = Instant::now();
    // Nothing at all.
    let mut silent = switchover.client();
    assert!(silent.is_closed_within(Duration::from_secs(5)));
    assert!((300..1500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());

    // A header that drips: no single byte is late.
    let mut slow = switchover.client();
    let began = Instant::now();
    let mut stream = slow.stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        for byte in "GET / HTTP/1.1\r\nHost: a\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy".bytes() {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(30)); // The client that is tested.
        }
    });
    assert_eq!(slow.read_response().unwrap().status, 408);
    assert!((300..1500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    drop(slow);
    drip.join().unwrap();
    await_rejected(&switchover, "header_timeout", 1.0);

    // A body that drips, of known length and in chunks.
    for (encoding, piece) in [("Content-Length: 100000", "b"), ("Transfer-Encoding: chunked", "1\r\nb\r\n")] {
        let mut slow = switchover.client();
        slow.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{encoding}\r\n\r\n")).unwrap();
        let began = Instant::now();
        let mut stream = slow.stream.try_clone().unwrap();
        let drip = thread::spawn(move || {
            while stream.write_all(piece.as_bytes()).is_ok() {
                thread::sleep(Duration::from_millis(40)); // The client that is tested.
            }
        });
        assert_eq!(slow.read_response().unwrap().status, 408, "{encoding}");
        assert!((400..2500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        drop(slow);
        drip.join().unwrap();
    }
    await_rejected(&switchover, "slow_body", 2.0);
    assert_eq!(blue.heads(), Vec::<String>::new(), "none of them was a whole request");

    // Kept, and not used again.
    let mut kept = switchover.client();
    assert_eq!(kept.get("/").unwrap().status, 200);
    let began = Instant::now();
    assert!(kept.is_closed_within(Duration::from_secs(5)));
    assert!((500..2000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    await_rejected(&switchover, "idle_timeout", 2.0);
}

#[test]
fn a_client_that_does_not_read_is_let_go_and_a_quick_one_is_not() {
    let (blue, _config, switchover) = limited("{stall_timeout: 500ms, min_rate: 1000}");
    let big = vec![b'x'; 40_000_000];
    blue.on("/big", Act::Say(ok(std::str::from_utf8(&big).unwrap())));
    let mut lazy = switchover.client();
    lazy.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    await_rejected(&switchover, "slow_reader", 1.0);
    switchover.await_shop("it is counted out", |shop| shop["pools"][0]["in_flight"] == 0);
    assert_eq!(switchover.get("/big").body.len(), big.len());
    // A stream that is quiet for longer than a stall may be is not one.
    let pieces =
        vec![b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), b"1\r\na\r\n".to_vec(), b"0\r\n\r\n".to_vec()];
    blue.on("/quiet", Act::Drip(Duration::from_millis(900), pieces));
    assert_eq!(switchover.get("/quiet").text(), "a");
}

#[test]
fn connections_and_requests_on_them_are_bounded() {
    let (_blue, _config, switchover) = limited("{connections: 5, requests_per_connection: 3}");
    let mut client = switchover.client();
    let closes: Vec<bool> = (0..3).map(|_| client.get("/").unwrap().closes()).collect();
    assert_eq!(closes, [false, false, true]);
    assert!(client.is_closed_within(Duration::from_secs(5)));
    eventually("it is closed", || match switchover.metric("switchover_downstream_connections") {
        Some(0.0) => Ok(()),
        other => Err(other),
    });
    let mut open: Vec<Client> = (0..5).map(|_| switchover.client()).collect();
    open.iter_mut().for_each(|client| assert_eq!(client.get("/").unwrap().status, 200));
    let mut sixth = switchover.client();
    assert_eq!(sixth.read_response().unwrap().status, 503);
    await_rejected(&switchover, "connections", 1.0);
    drop((open, sixth));
    eventually("others may come", || match switchover.client().get("/").map(|answer| answer.status) {
        Ok(200) => Ok(()),
        other => Err(other),
    });
}

#[test]
fn connections_of_one_client_are_bounded_and_others_may_come() {
    let (_blue, _config, switchover) = limited("{connections_per_client: 3}");
    let mut open: Vec<Client> = (0..3).map(|_| switchover.client()).collect();
    open.iter_mut().for_each(|client| assert_eq!(client.get("/").unwrap().status, 200));
    assert_eq!(switchover.client().read_response().unwrap().status, 429);
    await_rejected(&switchover, "connections_per_client", 1.0);
    let elsewhere = from_elsewhere([127, 0, 0, 9], switchover.address);
    let mut client = Client::over(elsewhere);
    assert_eq!(client.get("/").unwrap().status, 200);
}

/// A connection from another address of loopback.
fn from_elsewhere(from: [u8; 4], to: SocketAddr) -> std::net::TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let stream = socket.connect(to).await.unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
    })
}

/// Connections that say nothing, or begin and do not go on, on each kind of port.
#[test]
fn a_thousand_silent_connections_are_not_noticed_by_those_who_are_served() {
    let (_blue, _config, switchover) = limited("{header_timeout: 2s, idle_timeout: 2s}");
    let load = Load::start(switchover.address, 4, mixed);
    silence(&switchover, || {
        let mut silent: Vec<Client> = (0..1000).map(|_| switchover.client()).collect();
        for (i, client) in silent.iter_mut().enumerate() {
            client.send([&b""[..], b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"PRI * HTTP/2.0\r\n"][i % 3]).unwrap();
        }
        silent
    });
    load.stop().assert_no_failures();
}

#[test]
fn a_thousand_silent_connections_of_http_2_are_not_noticed_by_those_who_are_served() {
    let (_blue, _config, switchover) = limited("{header_timeout: 2s, idle_timeout: 2s}");
    let load = Load::start(switchover.address, 4, mixed);
    silence(&switchover, || {
        let mut silent: Vec<Client> = (0..1000).map(|_| switchover.client()).collect();
        // Some begin a request's header as well, of which more is to come.
        let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82";
        for (i, client) in silent.iter_mut().enumerate() {
            client.send(if i % 2 == 0 { &hello[..33] } else { hello }).unwrap();
        }
        silent
    });
    load.stop().assert_no_failures();
}

#[test]
fn a_thousand_silent_connections_of_tls_are_not_noticed_by_those_who_are_served() {
    let (blue, authority) = (Origin::start("blue"), Authority::new());
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let ca = authority.write(config.folder());
    authority.sign(config.folder(), "shop", &["shop.test"], 2040);
    let tls =
        "    tls: {certificates: [{certificate: shop.crt, key: shop.key}]}\n    limits: {header_timeout: 4s, idle_timeout: 4s}\n";
    let config = config.listener(tls);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let load = Load::start_over(Protocol::Https1, switchover.address, &ca, 2, mixed);
    silence(&switchover, || {
        let mut silent: Vec<Client> = (0..500).map(|_| switchover.client()).collect();
        silent.iter_mut().step_by(2).for_each(|client| client.send(b"\x16\x03\x01\x02").unwrap());
        (silent, [Protocol::H2, Protocol::Https1].map(|protocol| Silent::start(switchover.address, &ca, protocol, 250)))
    });
    load.stop().assert_no_failures();
}

/// They are there, they cost little, and they are gone when their time is up.
fn silence<T>(switchover: &Switchover, connect: impl FnOnce() -> T) {
    let open = || switchover.metric("switchover_downstream_connections").unwrap();
    let idle = switchover.memory();
    let silent = connect();
    eventually("all are there", || if open() >= 1000.0 { Ok(()) } else { Err(open()) });
    let loaded = switchover.memory();
    println!("a thousand silent connections: {:.1} MiB more than {idle:.1}", loaded - idle);
    assert!(loaded - idle < 64.0, "{idle} {loaded}");
    eventually("all are closed", || if open() < 20.0 { Ok(()) } else { Err(open()) });
    drop(silent);
}
