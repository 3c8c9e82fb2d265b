//! HTTP/1.1 of common clients and applications.

use std::{
    io::{ErrorKind, Write},
    net::Shutdown,
    thread,
};

use crate::support::{App, Client, ConfigFile, Origin, Switchover, eventually, one_pool, origin::Act};

#[test]
fn one_connection_carries_many_requests() {
    let (blue, _config, switchover) = one_pool(|config| config);
    let mut client = switchover.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").unwrap().text(), "blue");
        assert_eq!(client.request("POST", "/", b"x").unwrap().text(), "blue");
    }
    assert_eq!(blue.connections(), 1, "the connection to the peer is kept as well");
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert!(client.read_response().unwrap().closes());
    assert!(client.is_closed());
}

#[test]
fn chunked_bodies_go_both_ways() {
    let (blue, _config, switchover) = one_pool(|config| config);
    blue.on("/", Act::Say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n".to_vec()));
    let mut client = switchover.client();
    for _ in 0..3 {
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
            .unwrap();
        assert_eq!(client.read_response().unwrap().body, b"abcde");
    }
    let sent: String = String::from_utf8(blue.bodies()[0].clone()).unwrap();
    let content: String = sent.split("\r\n").skip(1).step_by(2).collect();
    assert_eq!(content, "hello world", "{sent:?}");
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let (blue, _config, switchover) = one_pool(|config| config);
    let mut client = switchover.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 100);
    client.send("hello").unwrap();
    assert_eq!(client.read_response().unwrap().text(), "blue");
    assert_eq!(blue.bodies(), [b"hello"]);
}

#[test]
fn head_has_the_length_and_no_body() {
    let (blue, _config, switchover) = one_pool(|config| config);
    blue.on("/", Act::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n".to_vec()));
    let mut client = switchover.client();
    for _ in 0..3 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let head = client.read_head().unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
    }
    // An application sends a body nevertheless; it is not read as the next response.
    client.send("HEAD /named HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let head = client.read_head().unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("4")));
    assert_eq!(client.get("/named").unwrap().text(), "blue");
}

#[test]
fn an_error_answers_head_without_a_body_and_keeps_to_its_length() {
    let (_blue, _config, switchover) = one_pool(|config| config.service("hosts: [shop.test]"));
    let mut client = switchover.client();
    client.send("HEAD / HTTP/1.1\r\nHost: elsewhere\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 404);
    assert_eq!(client.get("/").unwrap().text(), "blue", "nothing is left on the connection");
}

#[test]
fn large_bodies_stream_in_bounded_memory() {
    let app = App::start("blue", "1", "0s");
    let config = ConfigFile::new(&[("blue", &[app.address])]);
    let switchover = Switchover::start(&config);
    const SIZE: usize = 100 * 1024 * 1024;
    let down = Client::connect(switchover.address).unwrap();
    let download = thread::spawn(move || {
        let mut client = down;
        client.send(format!("GET /bytes?n={SIZE} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        assert_eq!(client.read_head().unwrap().header("content-length"), Some(SIZE.to_string().as_str()));
        let mut left = SIZE;
        let mut bytes = vec![0; 256 * 1024];
        left -= client.read_exactly(1).unwrap().len();
        // The limit includes the bytes that were read together with the head.
        while left > 0 {
            match client.read_exactly(left.min(16 * 1024)) {
                Ok(piece) => left -= piece.len(),
                Err(e) => panic!("{left} bytes missing: {e}"),
            }
        }
        bytes.clear();
    });
    let mut up = switchover.client();
    up.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")).unwrap();
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..SIZE / piece.len() {
        up.stream.write_all(&piece).unwrap();
    }
    assert_eq!(up.read_response().unwrap().text(), format!("blue 1 received {SIZE} bytes\n"));
    download.join().unwrap();
    let memory = switchover.memory();
    assert!(memory < 60.0, "{memory} MiB");
}

#[test]
fn a_client_that_disconnects_ends_its_request() {
    let (blue, _config, switchover) = one_pool(|config| config);
    blue.on("/slow", Act::Hang);
    let mut client = switchover.client();
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_in_flight("blue", 1);
    drop(client);
    switchover.await_in_flight("blue", 0);
    let series = format!(
        "switchover_http_requests_total{{code=\"499\",method=\"GET\",peer=\"{}\",pool=\"blue\",service=\"shop\"}}",
        blue.address()
    );
    eventually("it is counted", || if switchover.metric(&series) == Some(1.0) { Ok(()) } else { Err(switchover.metrics()) });
}

#[test]
fn round_robin_follows_the_weights() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut config = ConfigFile::new(&[("blue", &[a.address(), b.address()])]).service("balance: round_robin");
    config.set_peers("blue", &[&format!("{{address: \"{}\", weight: 3}}", a.address()), &format!("\"{}\"", b.address())]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    (0..80).for_each(|_| assert_eq!(client.get("/").unwrap().status, 200));
    assert_eq!((a.heads().len(), b.heads().len()), (60, 20));
}

#[test]
fn bytes_that_are_not_http_are_refused_and_it_serves_on() {
    let (blue, _config, switchover) = one_pool(|config| config);
    for (bytes, status) in [
        (b"GET\r\n\r\n".as_slice(), Some(400)),
        (b"GET / HTTP/9.9\r\n\r\n", Some(400)),
        (&[b'A'; 100_000], Some(414)),
        // The beginning of a line without an end.
        (b"\x16\x03\x01\x02\x00\x01\x00", None),
        (b"\0\0\0\0", None),
    ] {
        let mut client = switchover.client();
        // The request is rejected before it is read to its end, so writing it may fail.
        client.send(bytes).unwrap_or_default();
        client.stream.shutdown(Shutdown::Write).unwrap_or_default();
        match (client.read_response(), status) {
            (Ok(answer), Some(status)) => {
                assert_eq!(answer.status, status, "{answer:?}");
                assert!(client.is_closed());
            }
            (Err(e), None) => assert_eq!(e.kind(), ErrorKind::UnexpectedEof, "{e}"),
            (other, _) => panic!("{status:?}: {other:?}"),
        }
    }
    assert_eq!(switchover.get("/").text(), "blue");
    assert_eq!(blue.heads().len(), 1);
    assert!(!switchover.log().contains("panicked"), "{}", switchover.log());
}
