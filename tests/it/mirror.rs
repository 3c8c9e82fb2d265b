//! `mirror`: copies of requests for a pool that is not active.

use std::thread;

use switchover::status::{self, Outcome};

use crate::support::{
    Authority, ConfigFile, HyperPeer, Origin, Switchover, curl, eventually,
    origin::{Act, Gate, ok, status as response},
    two_pools,
};

const ALL: &str = "mirror: {pool: green, share: 100%}";

/// How many copies may run at the same time.
const RUNNING: usize = 32;

/// Copies for green so far, by their result.
fn copies(switchover: &Switchover, result: &str) -> usize {
    let series = format!("switchover_mirrored_total{{pool=\"green\",result=\"{result}\",service=\"shop\"}}");
    switchover.metric(&series).unwrap_or_else(|| panic!("no {series}")) as usize
}

fn await_copies(switchover: &Switchover, result: &str, number: usize) {
    eventually(&format!("{number} copies: {result}"), || match copies(switchover, result) {
        seen if seen == number => Ok(()),
        seen => Err(seen),
    });
}

/// Sends GET requests of a path over one connection; every one has to get this response of blue.
fn send(switchover: &Switchover, number: usize, path: &str) {
    let mut client = switchover.client();
    for _ in 0..number {
        let response = client.get(path).unwrap();
        assert_eq!((response.status, response.text()), (200, "blue".to_owned()));
    }
}

fn mirror_status(switchover: &Switchover) -> status::Mirror {
    switchover.service().mirror.unwrap()
}

#[test]
fn a_copy_is_the_request_with_a_mark() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    let mut client = switchover.client();
    client.send("GET /x?a=%2F&b HTTP/1.1\r\nHost: shop.test\r\nCookie: a=b\r\nX-Switchover-Mirror: forged\r\n\r\n").unwrap();
    assert_eq!(client.read_response().unwrap().text(), "blue");
    await_copies(&switchover, "response", 1);
    let lines = |origin: &Origin| {
        let mut lines: Vec<String> = origin.heads()[0].trim_end().split("\r\n").map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (original, copy) = (lines(&blue), lines(&green));
    assert!(original.contains(&"X-Forwarded-For: 127.0.0.1".to_owned()), "{original:?}");
    let (mark, copy): (Vec<String>, Vec<String>) =
        copy.into_iter().partition(|line| line.to_lowercase().starts_with("x-switchover-mirror"));
    assert_eq!((mark, copy), (vec!["X-Switchover-Mirror: 1".to_owned()], original));
    // No client got a response of green.
    assert!(!switchover.metrics().contains(&format!("method=\"GET\",peer=\"{}\"", green.address())));
}

#[test]
fn about_the_configured_share_is_copied() {
    let (_blue, _green, _config, switchover) = two_pools(|config| config.service("mirror: {pool: green, share: 25%}"));
    // In pieces, so that no copy is dropped because too many are running.
    for _ in 0..60 {
        send(&switchover, 10, "/");
        switchover.await_in_flight("green", 0);
    }
    await_copies(&switchover, "dropped", 0);
    let copied = copies(&switchover, "response");
    // 150 of 600 are expected, with a standard deviation of 10.6; these are six of them.
    assert!((86..=214).contains(&copied), "{copied} of 600");
}

#[test]
fn a_pool_that_hangs_slows_no_request_and_gets_a_bounded_number() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    green.on("/", Act::Hang);
    send(&switchover, 100, "/");
    assert_eq!(copies(&switchover, "dropped"), 100 - RUNNING);
    switchover.await_in_flight("green", RUNNING);
    eventually("each of them was sent", || match green.heads().len() {
        RUNNING => Ok(()),
        other => Err(other),
    });
    green.kill();
    await_copies(&switchover, "failed", RUNNING);
    let mirror = mirror_status(&switchover);
    assert_eq!((mirror.copies.by_class, mirror.failed), ([0, 0, 0, 0, RUNNING as u64], RUNNING as u64));
    assert_eq!((mirror.originals.by_class, mirror.dropped), ([0, RUNNING as u64, 0, 0, 0], 100 - RUNNING as u64));
}

#[test]
fn a_copy_without_a_response_in_time_is_counted_as_504() {
    let service = format!("timeouts: {{connect: 10ms, response: 50ms}}\n{ALL}");
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(&service));
    green.on("/", Act::Hang);
    send(&switchover, 1, "/");
    await_copies(&switchover, "failed", 1);
    switchover.await_in_flight("green", 0);
    assert_eq!(mirror_status(&switchover).copies.by_class, [0, 0, 0, 0, 1]);
}

#[test]
fn only_safe_requests_without_a_body_are_copied() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    blue.on("/ws", Act::Echo);
    let mut client = switchover.client();
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert_eq!(client.request(method, "/unsafe", b"").unwrap().status, 200, "{method}");
        assert_eq!(client.request(method, "/unsafe", b"body").unwrap().status, 200, "{method}");
    }
    for (method, body) in [("GET", "body"), ("OPTIONS", "body")] {
        assert_eq!(client.request(method, "/unsafe", body.as_bytes()).unwrap().status, 200, "{method}");
    }
    let mut chunked = switchover.client();
    chunked.send("GET /unsafe HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n").unwrap();
    assert_eq!(chunked.read_response().unwrap().status, 200);
    let mut socket = switchover.client();
    socket.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(socket.read_head().unwrap().status, 101);
    for method in ["GET", "OPTIONS"] {
        client.send(format!("{method} /safe HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        assert_eq!(client.read_response().unwrap().status, 200, "{method}");
    }
    client.send("HEAD /safe HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(client.read_head().unwrap().status, 200);
    await_copies(&switchover, "response", 3);
    let heads = green.heads();
    assert!(heads.len() == 3 && heads.iter().all(|head| head.contains(" /safe ")), "{heads:?}");
    assert_eq!(copies(&switchover, "failed") + copies(&switchover, "dropped") + copies(&switchover, "not_ready"), 0);
}

#[test]
fn the_status_compares_the_responses_of_both_pools() {
    let (_blue, green, config, switchover) = two_pools(|config| config.service(ALL));
    let answers = [response(200, ""), response(500, ""), response(404, ""), response(302, "")];
    green.on("/", Act::SayInTurn(answers.to_vec()));
    for _ in 0..12 {
        send(&switchover, 1, "/");
        switchover.await_in_flight("green", 0);
    }
    await_copies(&switchover, "response", 12);
    let mirror = mirror_status(&switchover);
    assert_eq!((mirror.share.as_str(), mirror.copies.pool.as_str(), mirror.originals.pool.as_str()), ("100%", "green", "blue"));
    assert_eq!((mirror.copies.by_class, mirror.originals.by_class), ([0, 3, 3, 3, 3], [0, 12, 0, 0, 0]));
    for seconds in
        [mirror.copies.p50_seconds, mirror.copies.p95_seconds, mirror.originals.p50_seconds, mirror.originals.p95_seconds]
    {
        assert!(seconds.is_some_and(|seconds| seconds > 0.0), "{mirror:?}");
    }
    let shown = switchover.cli(&["status"]).stdout;
    let line = "  mirror  100% to green, which would have responded to 3 of 12 with 5xx; blue to 0 of 12; p95 ";
    assert!(shown.contains(line), "{shown}");

    // Another share continues the comparison, another version of the pool begins a new one.
    let text = config.text().replace("share: 100%", "share: 0.1%");
    config.replace_by_rename(&text);
    let mirror = eventually("the share", || match mirror_status(&switchover) {
        mirror if mirror.share == "0.1%" => Ok(mirror),
        mirror => Err(mirror),
    });
    assert_eq!(mirror.copies.total(), 12);
    config.replace_by_rename(&text.replace("      green:\n", "      green:\n        version: 2.0.0\n"));
    eventually("a new comparison", || match mirror_status(&switchover) {
        mirror if mirror.copies.total() == 0 => Ok(()),
        mirror => Err(mirror),
    });
}

#[test]
fn copies_use_their_connection_again_and_a_long_response_is_not_read_to_its_end() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    for _ in 0..20 {
        send(&switchover, 1, "/");
        switchover.await_in_flight("green", 0);
    }
    await_copies(&switchover, "response", 20);
    assert_eq!(green.connections(), 1);
    let long = [
        b"HTTP/1.1 200 OK
Content-Length: 100000000

",
        [b'x'; 1 << 20].as_slice(),
    ];
    green.on("/long", Act::SayHeld(Gate::new(), long.concat(), Vec::new()));
    blue.on("/long", Act::Say(ok("blue")));
    send(&switchover, 1, "/long");
    await_copies(&switchover, "response", 21);
    switchover.await_in_flight("green", 0);
}

/// An idle connection that the peer has closed says nothing about the release.
#[test]
fn a_copy_over_a_connection_that_was_closed_is_sent_again() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    green.on("/", Act::CloseAtSecond);
    for _ in 0..6 {
        send(&switchover, 1, "/");
        switchover.await_in_flight("green", 0);
    }
    await_copies(&switchover, "response", 6);
    assert_eq!(copies(&switchover, "failed"), 0);
}

#[test]
fn a_pool_that_is_not_ready_gets_no_copies() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    green.readiness(503, "");
    switchover.await_pool("green", "it is not ready", |pool| !pool.peers[0].ready);
    send(&switchover, 5, "/");
    assert_eq!(copies(&switchover, "not_ready"), 5);
    assert_eq!(green.heads().len(), 0);
    assert_eq!(mirror_status(&switchover).originals.total(), 0, "nothing to compare them with");
}

#[test]
fn a_swap_to_the_mirrored_pool_ends_the_copies_and_a_swap_back_begins_them() {
    let (blue, green, _config, switchover) = two_pools(|config| config.service(&format!("drain: {{timeout: 1h}}\n{ALL}")));
    let not_safe = |pool: &str| switchover.pool_status(pool).not_safe_because;
    assert_eq!(not_safe("green").as_deref(), Some("green gets mirrored requests"));
    send(&switchover, 5, "/");
    await_copies(&switchover, "response", 5);
    assert_eq!(switchover.cli(&["promote", "green", "--wait", "drained"]).code, 0);
    assert_eq!((not_safe("green").as_deref(), not_safe("blue")), (Some("green serves"), None));
    assert!(switchover.service().mirror.is_none());
    assert!(!switchover.metrics().contains("switchover_mirrored_total{"));
    let before = (blue.heads().len(), green.heads().len());
    for _ in 0..5 {
        assert_eq!(switchover.get("/").text(), "green");
    }
    assert_eq!((blue.heads().len(), green.heads().len()), (before.0, before.1 + 5));

    // It does not wait for drain.timeout: copies do not end by themselves.
    let output = switchover.cli(&["promote", "blue", "--wait", "drained"]);
    assert!(output.code == 3 && output.stderr.contains("green is not safe to stop: green gets mirrored requests"), "{output:?}");
    assert_eq!(switchover.service().last_swap.unwrap().outcome, Some(Outcome::Drained));
    send(&switchover, 3, "/");
    await_copies(&switchover, "response", 3);
    assert_eq!(mirror_status(&switchover).copies.total(), 3, "a new comparison");
    assert_eq!(not_safe("green").as_deref(), Some("green gets mirrored requests"));
}

/// Copies would be requests that never end a drain.
#[test]
fn a_draining_pool_gets_no_copies() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    assert_eq!(switchover.cli(&["promote", "green", "--wait", "drained"]).code, 0);
    let gate = Gate::new();
    green.on("/held", Act::SayHeld(gate.clone(), Vec::new(), ok("green")));
    thread::scope(|scope| {
        let held = scope.spawn(|| switchover.get("/held"));
        switchover.await_in_flight("green", 1);
        assert_eq!(switchover.cli(&["promote", "blue", "--wait", "promoted"]).code, 0);
        switchover.await_draining("green");
        send(&switchover, 20, "/");
        switchover.await_in_flight("green", 1);
        assert!(switchover.service().mirror.is_none());
        assert_eq!(green.heads().len(), 1);
        gate.open();
        assert_eq!(held.join().unwrap().text(), "green");
    });
    switchover.await_outcome(Outcome::Drained);
    // From the view that ends the drain on, so that a script does not stop the pool in between.
    assert_eq!(switchover.pool_status("green").not_safe_because.as_deref(), Some("green gets mirrored requests"));
    send(&switchover, 1, "/");
    await_copies(&switchover, "response", 1);
}

#[test]
fn a_promotion_does_not_wait_for_a_third_pool_that_stays_mirrored() {
    let [blue, green, red] = ["blue", "green", "red"].map(Origin::start);
    let pools = [("blue", &[blue.address()][..]), ("green", &[green.address()]), ("red", &[red.address()])];
    let config = ConfigFile::new(&pools).service(ALL);
    let switchover = Switchover::start(&config);
    switchover.await_ready("red");
    let output = switchover.cli(&["promote", "red", "--wait", "drained"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!switchover.pool_status("green").safe_to_stop);
}

#[test]
fn previews_are_not_copied() {
    let (_blue, green, _config, switchover) =
        two_pools(|config| config.service(&format!("preview: {{from: [127.0.0.0/8]}}\n{ALL}")));
    for pool in ["green", "blue"] {
        let mut client = switchover.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Switchover-Pool: {pool}\r\n\r\n")).unwrap();
        assert_eq!(client.read_response().unwrap().text(), pool);
    }
    send(&switchover, 1, "/");
    await_copies(&switchover, "response", 1);
    assert_eq!(green.heads().len(), 2, "the preview and the last request's copy");
}

/// Requests of both protocols, copied to peers of both protocols.
#[test]
fn copies_speak_the_protocol_of_the_pool() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let ca = authority.write(folder.path());
    authority.sign(folder.path(), "peer", &["peer.test"], 2040);
    let tls = format!("tls: {{ca: \"{}\", server_name: peer.test}}", ca.display());
    for (h2, with_tls, upstream) in [
        (true, false, "{protocol: h2c}".to_owned()),
        (true, true, format!("{{protocol: h2, {tls}}}")),
        (false, true, format!("{{{tls}}}")),
    ] {
        let peer = || HyperPeer::start(h2, with_tls.then_some((folder.path(), "peer")));
        let (blue, green) = (peer(), peer());
        let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])]);
        let config = config.service(&format!("upstream: {upstream}\nhealth_check: {{path: /, interval: 100ms}}\n{ALL}"));
        let switchover = Switchover::start(&config);
        switchover.await_ready("green");
        let url = format!("http://{}/", switchover.address);
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            curl(&url, &["-f", version]).unwrap();
        }
        await_copies(&switchover, "response", 2);
        assert_eq!(mirror_status(&switchover).copies.by_class, [0, 2, 0, 0, 0], "{upstream}");
    }
}

#[test]
fn a_load_with_copies_fails_no_request_while_the_mirrored_pool_misbehaves() {
    let (_blue, green, _config, switchover) = two_pools(|config| config.service(ALL));
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let acts = [Act::Close, Act::Hang, Act::Say(b"nonsense\r\n\r\n".to_vec()), Act::SayAndClose(response(500, ""))];
            for act in acts.iter().cycle().take_while(|_| !stop.load(std::sync::atomic::Ordering::SeqCst)) {
                green.on("/", act.clone());
                send(&switchover, 20, "/");
            }
        });
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| send(&switchover, 200, "/"))).collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    assert!(copies(&switchover, "failed") > 0);
}
