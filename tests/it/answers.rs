//! Responses: interim responses, responses that break off, and switchover's own.

use std::{fs, process::Command};

use serde_json::Value;

use crate::support::{
    ConfigFile, Origin, Response, Switchover, eventually,
    origin::{Act, ok},
};

fn logged(service: &str, listener: &str) -> (Origin, ConfigFile, Switchover) {
    let blue = Origin::start("blue");
    let config = ConfigFile::new(&[("blue", &[blue.address()])])
        .service(&format!("health_check: {{interval: 60s}}\nhosts: [shop.test]\n{service}"))
        .listener(listener)
        .top("access_log: {format: json, file: access.log}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    (blue, config, switchover)
}

/// The line of the access log with this target.
fn line(config: &ConfigFile, target: &str) -> Value {
    eventually(&format!("a line of {target}"), || {
        let text = fs::read_to_string(config.folder().join("access.log")).unwrap_or_default();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["target"] == target).ok_or(text)
    })
}

fn of_peer(name: &str, first: &str, blue: &Origin, last: &str) -> String {
    format!("switchover_{name}{{{first}peer=\"{}\",pool=\"blue\",service=\"shop\"{last}}}", blue.address())
}

/// The final response, after any interim ones.
fn last_answer(client: &mut crate::support::Client) -> Response {
    loop {
        match client.read_response() {
            Ok(interim) if interim.status < 200 => {}
            other => return other.unwrap(),
        }
    }
}

#[test]
fn an_interim_response_is_not_an_answer() {
    let (blue, config, switchover) = logged("timeouts: {response: 300ms}\n", "");
    blue.on("/lost", Act::Close);
    blue.on("/late", Act::Say(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n".to_vec()));
    // The peer requests the body with 100, and closes the connection after reading it.
    let mut client = switchover.client();
    client.send("PUT /lost HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 100);
    client.send("hello").unwrap();
    assert_eq!(last_answer(&mut client).status, 502);
    assert_eq!(blue.bodies(), [b"hello", b"hello"], "a second try");
    let lost = line(&config, "/lost");
    assert_eq!((&lost["status"], &lost["ended"]), (&502.into(), &"closed".into()), "{lost}");
    // The peer sends 103, and no response before the timeout.
    let mut client = switchover.client();
    client.send("GET /late HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    assert_eq!(last_answer(&mut client).status, 504);
    let late = line(&config, "/late");
    assert_eq!((&late["status"], &late["ended"]), (&504.into(), &"response_timeout".into()), "{late}");
    assert!(!switchover.metrics().contains("code=\"10"), "{}", switchover.metrics());
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let (blue, config, switchover) = logged("", "");
    let whole = ok(&"x".repeat(100));
    blue.on("/half", Act::SayAndClose(whole[..whole.len() - 90].to_vec()));
    blue.on("/big", Act::Say(ok(&"x".repeat(40_000_000))));
    let counted = |by: &str| switchover.metric(&of_peer("broken_responses_total", &format!("by=\"{by}\","), &blue, ""));
    assert_eq!((counted("peer"), counted("client")), (Some(0.0), Some(0.0)));

    // The peer closes the connection: the client gets the part that it sent.
    let mut client = switchover.client();
    client.send("GET /half HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 200);
    assert_eq!(client.read_exactly(10).unwrap(), b"xxxxxxxxxx");
    assert!(client.read_exactly(1).is_err());
    let half = line(&config, "/half");
    assert_eq!((&half["status"], &half["ended"], &half["bytes_sent"]), (&200.into(), &"closed".into(), &10.into()), "{half}");
    assert_eq!(half["peer"], blue.address().to_string());
    assert_eq!(counted("peer"), Some(1.0));

    // The client disconnects.
    let mut client = switchover.client();
    client.send("GET /big HTTP/1.1\r\nHost: shop.test\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 200);
    drop(client);
    let big = line(&config, "/big");
    assert_eq!((&big["status"], &big["ended"]), (&200.into(), &"client_gone".into()), "{big}");
    assert_eq!(counted("client"), Some(1.0));

    // Both were requests of this peer.
    let requests = of_peer("http_requests_total", "code=\"200\",method=\"GET\",", &blue, "");
    assert_eq!(switchover.metric(&requests), Some(2.0), "{}", switchover.metrics());
}

#[test]
fn answers_of_its_own_to_head_over_http_2_have_no_body() {
    let (_blue, _config, switchover) = logged("", "");
    let output = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "--http2-prior-knowledge", "-I", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("http://{}/", switchover.address))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "404");
}

#[test]
fn answers_of_its_own_are_requests_of_their_connection() {
    let (_blue, _config, switchover) = logged("", "    limits: {requests_per_connection: 3}\n");
    let mut client = switchover.client();
    let answers: Vec<(u16, bool)> = (0..3)
        .map(|_| {
            client.send("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").unwrap();
            let answer = client.read_response().unwrap();
            (answer.status, answer.closes())
        })
        .collect();
    assert_eq!(answers, [(404, false), (404, false), (404, true)]);
    assert!(client.read_exactly(1).is_err(), "it is closed");
}
