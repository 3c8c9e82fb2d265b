//! HTTP/1.1 as clients and applications really speak it.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use crate::support::{
    App, Client, ConfigFile, Origin, Switchover, eventually,
    origin::{Act, ok},
};

fn proxied(blue: &Origin) -> (ConfigFile, Switchover) {
    let config = ConfigFile::new(&[("blue", &[blue.address()])]);
    let switchover = Switchover::start(&config);
    (config, switchover)
}

#[test]
fn one_connection_carries_many_requests() {
    let blue = Origin::start("blue");
    let (_config, switchover) = proxied(&blue);
    let mut client = switchover.client();
    let before = blue.connections();
    for _ in 0..50 {
        assert_eq!(client.get("/").unwrap().text(), "blue");
        assert_eq!(client.request("POST", "/", b"x").unwrap().text(), "blue");
    }
    assert!(blue.connections() - before < 10, "connections to the peer are kept as well");
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert!(client.read_response().unwrap().closes());
    assert!(client.is_closed_within(Duration::from_secs(5)));
}

#[test]
fn chunked_bodies_go_both_ways() {
    let blue = Origin::start("blue");
    blue.on("/", Act::Say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n".to_vec()));
    let (_config, switchover) = proxied(&blue);
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
fn a_client_that_asks_before_it_sends_is_answered() {
    let blue = Origin::start("blue");
    let (_config, switchover) = proxied(&blue);
    let mut client = switchover.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 100);
    client.send("hello").unwrap();
    assert_eq!(client.read_response().unwrap().text(), "blue");
    assert_eq!(blue.bodies(), [b"hello"]);
}

#[test]
fn head_has_the_length_and_no_body() {
    let blue = Origin::start("blue");
    blue.on("/", Act::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n".to_vec()));
    let (_config, switchover) = proxied(&blue);
    let mut client = switchover.client();
    for _ in 0..3 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let head = client.read_head().unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
    }
    client.send("HEAD /nowhere HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.read_head().unwrap();
}

#[test]
fn an_error_answers_head_without_a_body_and_keeps_to_its_length() {
    let blue = Origin::start("blue");
    let config =
        ConfigFile::new(&[("blue", &[blue.address()])]).service("    health_check: {interval: 100ms}\n    hosts: [shop.test]\n");
    let switchover = Switchover::start(&config);
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
    const SIZE: usize = 200 * 1024 * 1024;
    let down = Client::connect(switchover.address).unwrap();
    let download = thread::spawn(move || {
        let mut client = down;
        client.send(format!("GET /bytes?n={SIZE} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        assert_eq!(client.read_head().unwrap().header("content-length"), Some(SIZE.to_string().as_str()));
        let mut left = SIZE;
        let mut bytes = vec![0; 256 * 1024];
        left -= client.read_exactly(1).unwrap().len();
        // What the head's reading had in its buffer counts as well; the rest comes from the socket.
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
fn a_client_that_goes_takes_its_request_along() {
    let blue = Origin::start("blue");
    blue.on("/slow", Act::SayAfter(Duration::from_secs(30), ok("too late")));
    let (_config, switchover) = proxied(&blue);
    let mut client = switchover.client();
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    switchover.await_shop("it runs", |shop| shop["pools"][0]["in_flight"] == 1);
    drop(client);
    switchover.await_shop("it is counted out", |shop| shop["pools"][0]["in_flight"] == 0);
    let series = format!(
        "switchover_http_requests_total{{code=\"499\",method=\"GET\",peer=\"{}\",pool=\"blue\",service=\"shop\"}}",
        blue.address()
    );
    eventually("it is counted", || if switchover.metric(&series) == Some(1.0) { Ok(()) } else { Err(switchover.metrics()) });
}

#[test]
fn round_robin_follows_the_weights() {
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut config = ConfigFile::new(&[("blue", &[a.address(), b.address()])])
        .service("    health_check: {interval: 100ms}\n    balance: round_robin\n");
    config.set_peers("blue", &[&format!("{{address: \"{}\", weight: 3}}", a.address()), &format!("\"{}\"", b.address())]);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    (0..80).for_each(|_| assert_eq!(client.get("/").unwrap().status, 200));
    assert_eq!((a.heads().len(), b.heads().len()), (60, 20));
}

#[test]
fn bytes_that_are_not_http_are_refused_and_harm_nobody() {
    let blue = Origin::start("blue");
    let (_config, switchover) = proxied(&blue);
    for (bytes, status) in [
        (b"\x16\x03\x01\x02\x00\x01\x00".as_slice(), "400"),
        (b"GET\r\n\r\n", "400"),
        (b"\0\0\0\0", "400"),
        (b"GET / HTTP/9.9\r\n\r\n", "400"),
        (&[b'A'; 100_000], "414"),
    ] {
        let mut client = switchover.client();
        client.stream.write_all(bytes).ok();
        client.stream.shutdown(std::net::Shutdown::Write).ok();
        let mut answer = Vec::new();
        client.stream.read_to_end(&mut answer).ok();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer:?}");
    }
    assert_eq!(switchover.get("/").text(), "blue");
    assert!(blue.heads().len() == 1);
    assert!(!switchover.log().contains("panicked"), "{}", switchover.log());
}
