//! Peers that speak HTTP/2, TLS, or both.

use std::{fs, path::Path};

use switchover::status::PoolStatus;

use crate::support::{Authority, ConfigFile, Edit, HyperPeer, Switchover, curl, eventually, switchover::command};

fn proxied(peer: &HyperPeer, upstream: &str) -> (ConfigFile, Switchover) {
    let service = format!(
        "    upstream: {upstream}\n    health_check: {{interval: 100ms, path: /}}\n    promotion: {{ready_timeout: 2s}}\n    timeouts: {{connect: 60s}}\n"
    );
    let config = ConfigFile::new(&[("blue", &[peer.address])]).service(&service);
    let switchover = Switchover::start(&config);
    (config, switchover)
}

#[test]
fn peers_are_asked_in_what_they_speak() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let ca = authority.write(folder.path());
    authority.sign(folder.path(), "peer", &["peer.test"], 2040);
    let tls = format!("tls: {{ca: \"{}\", server_name: peer.test}}", ca.display());
    let of = Some((folder.path(), "peer"));
    for (peer, upstream, version) in [
        (HyperPeer::start(true, None), "{protocol: h2c}".to_owned(), "h2"),
        (HyperPeer::start(true, of), format!("{{protocol: h2, {tls}}}"), "h2"),
        (HyperPeer::start(false, of), format!("{{protocol: http1, {tls}}}"), "http1"),
        (HyperPeer::start(false, None), "{protocol: http1}".to_owned(), "http1"),
    ] {
        let (_config, switchover) = proxied(&peer, &upstream);
        switchover.await_ready("blue");
        let mut client = switchover.client();
        for _ in 0..3 {
            assert_eq!(client.get("/").unwrap().text(), format!("{version} 0 []"), "{upstream}");
            assert_eq!(client.request("POST", "/", &[b'x'; 100_000]).unwrap().text(), format!("{version} 100000 []"));
            client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").unwrap();
            assert_eq!(client.read_response().unwrap().text(), format!("{version} 5 []"));
        }
        switchover.await_in_flight("blue", 0);
    }
}

/// Why the last probe of the first peer failed.
fn last_reason(pool: &PoolStatus) -> &str {
    pool.peers[0].last_probe.as_ref().and_then(|probe| probe.reason.as_deref()).unwrap_or_default()
}

#[test]
fn a_peer_whose_certificate_is_not_the_right_one_is_not_ready_until_it_can_be_verified() {
    let (folder, authority, other) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let ca = other.write(folder.path());
    authority.sign(folder.path(), "peer", &["peer.test"], 2040);
    let peer = HyperPeer::start(false, Some((folder.path(), "peer")));
    let (_config, switchover) = proxied(&peer, &format!("{{tls: {{ca: \"{}\", server_name: peer.test}}}}", ca.display()));
    let reason = |what: &str| {
        switchover.await_pool("blue", what, |pool| last_reason(pool).contains(what));
    };
    reason("invalid peer certificate");
    assert_ne!(switchover.get("/").status, 200);
    fs::write(&ca, "nonsense").unwrap();
    reason("holds no certificate in PEM");
    fs::remove_file(&ca).unwrap();
    reason("there is no file");
    // The right one: read without a reload.
    authority.write(folder.path());
    switchover.await_ready("blue");
    assert_eq!(switchover.get("/").text(), "http1 0 []");
    drop(switchover);

    let (_config, switchover) = proxied(&peer, &format!("{{tls: {{ca: \"{}\", server_name: other.test}}}}", ca.display()));
    switchover.await_pool("blue", "another name is refused", |pool| last_reason(pool).contains("certificate"));
}

/// A TCP check makes the handshake that requests will need.
#[test]
fn a_pool_with_a_wrong_certificate_is_not_promoted_by_tcp_checks() {
    let (folder, authority, other) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let ca = authority.write(folder.path());
    authority.sign(folder.path(), "right", &["peer.test"], 2040);
    authority.sign(folder.path(), "named", &["other.test"], 2040);
    other.sign(folder.path(), "signed", &["peer.test"], 2040);
    let peer = |name: &str| HyperPeer::start(true, Some((folder.path(), name)));
    let (blue, green, named, signed) = (peer("right"), peer("right"), peer("named"), peer("signed"));
    let upstream = format!("{{protocol: h2, tls: {{ca: \"{}\", server_name: peer.test}}}}", ca.display());
    let service = format!("    upstream: {upstream}\n    health_check: {{tcp: true, interval: 100ms}}\n");
    let pools =
        [("blue", &[blue.address][..]), ("green", &[green.address]), ("named", &[named.address]), ("signed", &[signed.address])];
    let config = ConfigFile::new(&pools).service(&format!("{service}    promotion: {{ready_timeout: 1s}}\n"));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    for (pool, reason) in [("named", "not valid for name \"peer.test\""), ("signed", "invalid peer certificate")] {
        let output = switchover.cli(&["promote", pool]);
        assert_eq!(output.code, 3, "{output:?}");
        assert!(output.stderr.contains(reason), "{output:?}");
        assert_eq!(switchover.get("/").text(), "h2 0 []");
    }
    let output = switchover.cli(&["promote", "green"]);
    assert_eq!(output.code, 0, "{output:?}");
    // The authority is replaced while the checks run: the next probe sees the new one.
    other.write(folder.path());
    switchover.await_pool("signed", "the new authority is used", |pool| pool.peers[0].ready);
}

/// Pingora panics if it cannot read the system's root certificates, and reads them for each TCP check.
#[test]
fn a_tcp_check_without_root_certificates_says_so_and_succeeds_once_they_are_there() {
    let (blue, green) = (HyperPeer::start(false, None), HyperPeer::start(false, None));
    let config = ConfigFile::new(&[("blue", &[blue.address]), ("green", &[green.address])])
        .service("health_check: {tcp: true, interval: 100ms, timeout: 1m}");
    let roots = Authority::new().write(config.folder());
    let mut run = command(&["run", "--config", config.path.to_str().unwrap()]);
    run.env("SSL_CERT_FILE", &roots).env("RUST_BACKTRACE", "0");
    let switchover = Switchover::spawn(run, &config);
    switchover.await_ready("green");
    let readable = fs::read(&roots).unwrap();
    fs::write(&roots, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    config.set_active("green", Edit::Rename);
    switchover.await_service("the proof of green says what is missing", |service| {
        let reason = service.swap.as_ref().and_then(|swap| swap.reason.as_deref());
        reason.is_some_and(|reason| reason.contains("cannot read this host's root certificates"))
    });
    assert!(switchover.pool_status("green").peers[0].ready, "the running check is not affected");
    fs::write(&roots, readable).unwrap();
    switchover.await_active("green");
}

/// Probes are far apart, so that they cannot bring in what the edit should have brought.
#[test]
fn an_edit_of_the_name_or_the_authority_of_peers_fails_no_request() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let ca = authority.write(folder.path());
    authority.sign(folder.path(), "peer", &["peer.test", "other.test"], 2040);
    let peer = HyperPeer::start(false, Some((folder.path(), "peer")));
    let service = |ca: &Path, name: &str| {
        let upstream = format!("{{tls: {{ca: \"{}\", server_name: {name}}}}}", ca.display());
        format!("    upstream: {upstream}\n    health_check: {{interval: 1h, path: /}}\n    promotion: {{ready_timeout: 1s}}\n")
    };
    let config = ConfigFile::new(&[("blue", &[peer.address])]).service(&service(&ca, "peer.test"));
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let copy = folder.path().join("copy.pem");
    fs::copy(&ca, &copy).unwrap();
    let mut client = switchover.client();
    for (ca, name, outcome) in [
        (&ca, "other.test", "drained"),
        (&copy, "other.test", "drained"),
        (&copy, "wrong.test", "not_ready"),
        (&copy, "peer.test", "drained"),
    ] {
        let swaps = |outcome: &str| {
            switchover.metric(&format!("switchover_swaps_total{{result=\"{outcome}\",service=\"shop\"}}")).unwrap()
        };
        let before = swaps(outcome);
        let text = config.text();
        let at = text.find("    upstream:").unwrap();
        let end = text.find("    pools:").unwrap();
        config.replace_by_rename(&format!("{}{}{}", &text[..at], service(ca, name), &text[end..]));
        eventually("the edit is taken or refused", || {
            assert_eq!(client.get("/").unwrap().text(), "http1 0 []");
            if swaps(outcome) > before { Ok(()) } else { Err(switchover.service()) }
        });
        for _ in 0..20 {
            // Also over connections that are made from now on.
            assert_eq!(switchover.get("/").text(), "http1 0 []");
        }
    }
}

/// What curl prints when it asks by HTTP/2.
fn by_h2(switchover: &Switchover, path: &str, args: &[&str]) -> String {
    let args = [&["--http2-prior-knowledge"], args].concat();
    curl(&format!("http://{}{path}", switchover.address), &args).unwrap()
}

#[test]
fn from_h2_to_http1_cookies_are_one_line_and_bodies_end_once() {
    let peer = HyperPeer::start(false, None);
    let (_config, switchover) = proxied(&peer, "{}");
    switchover.await_ready("blue");
    let ask = |args: &[&str]| by_h2(&switchover, "/", args);
    assert_eq!(ask(&["-H", "Cookie: a=1", "-H", "Cookie: b=2"]), "http1 0 [\"a=1; b=2\"]");
    assert_eq!(ask(&["-d", "hello"]), "http1 5 []");
    // Without a length the end is an empty frame, which must not become a second end.
    for _ in 0..5 {
        assert_eq!(ask(&["-H", "Content-Length:", "-d", "hello"]), "http1 5 []");
        assert_eq!(ask(&[]), "http1 0 []");
    }
}

#[test]
fn a_late_peer_of_http_2_is_answered_for_and_counted_whatever_the_client_speaks() {
    let peer = HyperPeer::start(true, None);
    let service = "    upstream: {protocol: h2c}\n    health_check: {interval: 100ms, path: /}\n    timeouts: {response: 1s}\n";
    let config =
        ConfigFile::new(&[("blue", &[peer.address])]).service(service).top("access_log: {format: json, file: access.log}\n");
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let mut client = switchover.client();
    assert_eq!(client.get("/late").unwrap().status, 504);
    let answer = by_h2(&switchover, "/late", &["-i"]);
    assert!(answer.starts_with("HTTP/2 504") && answer.ends_with("504 the application did not answer in time\n"), "{answer}");
    let grpc = ["-i", "-d", "x", "-H", "Content-Type: application/grpc", "-H", "TE: trailers"];
    let answer = by_h2(&switchover, "/late", &grpc);
    assert!(answer.starts_with("HTTP/2 200") && answer.contains("grpc-status: 14"), "{answer}");
    // The connection to the peer is shared, and goes on.
    assert!(by_h2(&switchover, "/", &grpc).ends_with("h2 1 [] te trailers"));
    let series = format!(
        "switchover_upstream_errors_total{{kind=\"response_timeout\",peer=\"{}\",pool=\"blue\",service=\"shop\"}}",
        peer.address
    );
    assert_eq!(switchover.metric(&series), Some(3.0));
    eventually("each has its line in the log", || {
        let log = fs::read_to_string(config.folder().join("access.log")).unwrap();
        if log.matches("\"ended\":\"response_timeout\"").count() == 3 { Ok(()) } else { Err(log) }
    });
}

/// Pingora would wait for a response without a bound once such a peer does not open its window.
#[test]
fn an_upload_over_http_1_that_an_http_2_peer_does_not_read_ends_at_the_response_timeout() {
    let peer = HyperPeer::start(true, None);
    let service = "    upstream: {protocol: h2c}\n    health_check: {interval: 100ms, path: /}\n    timeouts: {response: 1s}\n";
    let config = ConfigFile::new(&[("blue", &[peer.address])]).service(service);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let series = format!(
        "switchover_upstream_errors_total{{kind=\"response_timeout\",peer=\"{}\",pool=\"blue\",service=\"shop\"}}",
        peer.address
    );
    // More than the peer's window and every buffer on the way.
    let body = config.folder().join("body");
    fs::write(&body, vec![b'x'; 16 * 1024 * 1024]).unwrap();
    let upload = format!("@{}", body.to_str().unwrap());
    let ask = |path: &str, args: &[&str]| {
        let args = [&["--http1.1", "-H", "Expect:", "--data-binary", &upload], args].concat();
        curl(&format!("http://{}{path}", switchover.address), &args)
    };
    for (failed, field) in (1..).zip(["A: b", "Transfer-Encoding: chunked"]) {
        let status = ask("/late", &["-H", field, "-o", "/dev/null", "-w", "%{http_code}"]);
        assert_eq!(status.as_deref(), Ok("504"), "{field}");
        assert_eq!(switchover.metric(&series), Some(f64::from(failed)), "{field}");
    }
    // A peer that reads gets all of it.
    let _config = config.service(&service.replace("response: 1s", "response: 60s"));
    assert_eq!(switchover.cli(&["reload"]).code, 0);
    let answer = ask("/", &[]).unwrap();
    assert_eq!(answer, format!("h2 {} []", 16 * 1024 * 1024));
}

/// Such a body shares the peer's connection, because most peers take it at once. Before, the request never ended, and held up the
/// drain of its peer.
#[test]
fn a_short_upload_over_http_1_that_an_http_2_peer_does_not_read_ends_as_well() {
    let peer = HyperPeer::with_window(4096, true, None);
    let service = "    upstream: {protocol: h2c}\n    health_check: {interval: 100ms, path: /}\n    timeouts: {response: 1s}\n";
    let config = ConfigFile::new(&[("blue", &[peer.address])]).service(service);
    let switchover = Switchover::start(&config);
    switchover.await_ready("blue");
    let url = format!("http://{}/late", switchover.address);
    // The connection, and with it the peer's window, is there before the upload.
    assert_eq!(switchover.get("/").status, 200);
    let body = "x".repeat(16 * 1024);
    let answer = curl(&url, &["--http1.1", "-H", "Expect:", "-d", &body]);
    assert!(answer.as_ref().is_err_and(|e| e.contains("Empty reply")), "{answer:?}");
    switchover.await_in_flight("blue", 0);
    // The peer's connection is still in use.
    assert_eq!(curl(&url.replace("late", ""), &["--http1.1", "-d", "x"]).as_deref(), Ok("h2 1 []"));
}
