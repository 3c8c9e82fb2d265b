//! The PROXY protocol: a load balancer in front forwards bytes, and names the client in front of them.

use crate::support::{ConfigFile, Origin, Switchover, one_pool};

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x20 | command, family], &length, rest].concat()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";

fn start(trusted: &str) -> (Origin, ConfigFile, Switchover) {
    one_pool(|config| {
        config.listener("proxy_protocol: true\nlimits: {header_timeout: 2s}\n").top(&format!("trusted_proxies: [{trusted}]\n"))
    })
}

#[test]
fn the_client_of_a_trusted_balancer_is_the_one_it_names() {
    let (blue, _config, switchover) = start("127.0.0.1");
    let four = [203, 0, 113, 9, 127, 0, 0, 1, 0x1f, 0x90, 0x01, 0xbb];
    let mut six = [0; 36];
    six[..16].copy_from_slice(&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let with_extension = [four.as_slice(), &[0x04, 0x00, 0x03, 1, 2, 3]].concat();
    for (header, client) in [
        (b"PROXY TCP4 203.0.113.9 127.0.0.1 8080 443\r\n".to_vec(), "203.0.113.9"),
        (b"PROXY TCP6 2001:db8::7 ::1 8080 443\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(1, 0x11, &four), "203.0.113.9"),
        (v2(1, 0x11, &with_extension), "203.0.113.9"),
        (v2(1, 0x21, &six), "2001:db8::7"),
        (v2(0, 0x00, &[]), "127.0.0.1"),
        (v2(1, 0x00, &[]), "127.0.0.1"),
    ] {
        for cut in [0, 1, 15, header.len()] {
            let mut client_of = switchover.client();
            let all = [header.as_slice(), GET].concat();
            client_of.send(&all[..cut]).unwrap();
            client_of.send(&all[cut..]).unwrap();
            assert_eq!(client_of.read_response().unwrap().status, 200, "{header:?} cut at {cut}");
            let head = blue.heads().pop().unwrap();
            assert!(head.contains(&format!("X-Real-IP: {client}\r\n")), "{header:?}: {head}");
            // The rest of the connection is its own.
            assert_eq!(client_of.get("/").unwrap().status, 200);
        }
    }
}

#[test]
fn a_trusted_balancer_without_a_valid_header_is_not_served() {
    let (blue, _config, switchover) = start("127.0.0.1");
    for header in [
        GET.to_vec(),
        b"PROXY TCP4 203.0.113.9\r\n".to_vec(),
        b"PROXY TCP4 999.0.113.9 127.0.0.1 8080 443\r\n".to_vec(),
        vec![b'P'; 5000],
        b"PROXY TCP4 203".to_vec(),
        v2(7, 0x11, &[0; 12]),
        v2(1, 0x11, &[0; 2]),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(),
    ] {
        let mut client = switchover.client();
        client.send([header.as_slice(), GET].concat()).ok();
        assert!(client.is_closed(), "{header:?}");
    }
    assert_eq!(blue.heads(), Vec::<String>::new());
    switchover.await_rejected("proxy_protocol", 8);
}

#[test]
fn a_header_of_an_untrusted_client_is_not_believed() {
    let (blue, _config, switchover) = start("192.0.2.0/24");
    assert_eq!(switchover.get("/").status, 200);
    let mut client = switchover.client();
    client.send([b"PROXY TCP4 203.0.113.9 127.0.0.1 8080 443\r\n", GET].concat()).unwrap();
    assert_eq!(client.read_response().unwrap().status, 400);
    assert_eq!(blue.heads().len(), 1);
}
