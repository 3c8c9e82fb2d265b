//! The header that a peer receives, byte for byte.

use crate::support::{ConfigFile, Origin, Switchover, one_pool};

/// Sends a request; returns the header lines that the peer received.
fn received(blue: &Origin, switchover: &Switchover, headers: &str) -> Vec<(String, String)> {
    let before = blue.heads().len();
    let mut client = switchover.client();
    client.send(format!("GET /x?a=%2F&b HTTP/1.1\r\nHost: Shop.Test:1234\r\n{headers}\r\n")).unwrap();
    assert_eq!(client.read_response().unwrap().status, 200);
    let head = blue.heads()[before].clone();
    assert!(head.starts_with("GET /x?a=%2F&b HTTP/1.1\r\n"), "{head}");
    head.trim_end()
        .split("\r\n")
        .skip(1)
        .map(|line| line.split_once(": ").unwrap())
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

fn value<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
}

fn started(top: &str) -> (Origin, ConfigFile, Switchover) {
    one_pool(|config| config.top(top))
}

const CLAIMS: &str = "X-Forwarded-For: 10.9.8.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-Port: 1\r\n\
     X-Real-IP: 10.9.8.7\r\nForwarded: for=10.9.8.7\r\n";

#[test]
fn forwarding_headers_describe_an_untrusted_client() {
    let (blue, _config, switchover) = started("");
    let port = switchover.address.port().to_string();
    for claims in ["", CLAIMS] {
        let headers = received(&blue, &switchover, claims);
        for (name, expected) in [
            ("Host", vec!["Shop.Test:1234"]),
            ("X-Real-IP", vec!["127.0.0.1"]),
            ("X-Forwarded-For", vec!["127.0.0.1"]),
            ("X-Forwarded-Proto", vec!["http"]),
            ("X-Forwarded-Host", vec!["Shop.Test:1234"]),
            ("X-Forwarded-Port", vec![port.as_str()]),
            ("Forwarded", vec![]),
        ] {
            assert_eq!(value(&headers, name), expected, "{name} of {headers:?}");
        }
    }
}

#[test]
fn forwarding_headers_of_a_trusted_proxy_are_kept() {
    let (blue, _config, switchover) = started("trusted_proxies: [127.0.0.0/8]\n");
    let headers = received(&blue, &switchover, CLAIMS);
    for (name, expected) in [
        ("X-Real-IP", vec!["10.9.8.7"]),
        ("X-Forwarded-For", vec!["10.9.8.7, 127.0.0.1"]),
        ("X-Forwarded-Proto", vec!["https"]),
        ("X-Forwarded-Host", vec!["evil.test"]),
        ("X-Forwarded-Port", vec!["1"]),
    ] {
        assert_eq!(value(&headers, name), expected, "{name} of {headers:?}");
    }
}

#[test]
fn names_keep_their_case_and_values_their_order() {
    let (blue, _config, switchover) = started("");
    let headers = received(&blue, &switchover, "aCCept: */*\r\nX-Two: 1\r\nx-other: é\r\nX-TWO: 2\r\n");
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["aCCept", "X-Two", "X-TWO", "x-other"] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    assert_eq!(value(&headers, "x-two"), ["1", "2"]);
    assert_eq!(names[0], "Host");
}

#[test]
fn connection_headers_are_not_forwarded() {
    let (blue, _config, switchover) = started("");
    let headers = received(
        &blue,
        &switchover,
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nTE: gzip\r\n",
    );
    for name in ["X-Hop", "Keep-Alive", "Proxy-Connection", "TE"] {
        assert!(value(&headers, name).is_empty(), "{name} of {headers:?}");
    }
}

#[test]
fn connection_cannot_name_a_forwarding_header_away() {
    let (blue, _config, switchover) = started("");
    // Pingora rejects three of them; the others are set after Pingora has removed the fields that `Connection` names.
    for (name, status) in [
        ("X-Forwarded-For", 400),
        ("X-Forwarded-Proto", 400),
        ("X-Forwarded-Host", 400),
        ("X-Forwarded-Port", 200),
        ("X-Real-IP", 200),
        ("X-Request-Id", 200),
    ] {
        let before = blue.heads().len();
        let mut client = switchover.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, {name}\r\n\r\n")).unwrap();
        assert_eq!(client.read_response().unwrap().status, status, "{name}");
        let heads = &blue.heads()[before..];
        if status == 200 {
            assert!(heads[0].to_lowercase().contains(&format!("\r\n{}: ", name.to_lowercase())), "{name}: {heads:?}");
        } else {
            assert!(heads.is_empty(), "{name}: {heads:?}");
        }
    }
}

#[test]
fn a_request_id_is_kept_or_made() {
    let (blue, _config, switchover) = started("");
    assert_eq!(value(&received(&blue, &switchover, "X-Request-Id: mine-1\r\n"), "X-Request-Id"), ["mine-1"]);
    let (a, b) = (received(&blue, &switchover, ""), received(&blue, &switchover, ""));
    assert_ne!(value(&a, "X-Request-Id"), value(&b, "X-Request-Id"));
    assert_eq!(value(&a, "X-Request-Id")[0].len(), 32);
}
