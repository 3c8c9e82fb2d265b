//! The key of a request for `balance: hash`. Called by [`super::context`] for each try; allocates nothing, unless a trusted proxy
//! names the client's address.

use std::net::IpAddr;

use http::{HeaderMap, header};
use ipnet::IpNet;
use pingora::http::RequestHeader;

use super::forwarding;
use crate::{config::HashBy, pool::selection::hash};

/// The hash of a request's key; none if the request does not have it, or it is empty.
pub(super) fn of(by: &HashBy, request: &RequestHeader, client: Option<IpAddr>, trusted_proxies: &[IpNet]) -> Option<u64> {
    if let Some(name) = &by.header {
        return of_text(match request.headers.get(name) {
            Some(value) => value.as_bytes(),
            // HTTP/2 has the host outside of the fields.
            None if *name == header::HOST => request.uri.authority()?.as_str().as_bytes(),
            None => return None,
        });
    }
    if let Some(name) = &by.cookie {
        return of_text(cookie(&request.headers, name.as_bytes())?);
    }
    Some(of_address(request, client?, trusted_proxies))
}

/// The hash of the client's address.
pub(super) fn of_address(request: &RequestHeader, client: IpAddr, trusted_proxies: &[IpNet]) -> u64 {
    match forwarding::client_address(request, client, trusted_proxies).to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

fn of_text(text: &[u8]) -> Option<u64> {
    (!text.is_empty()).then(|| hash(text))
}

/// The first cookie of this name (RFC 6265, section 5.4). HTTP/2 may send them in several fields.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name_in_any_field() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.append_header("Cookie", "ab=1; xa=2;a=3=4; a=5").unwrap();
        request.append_header("Cookie", "b=6; e=").unwrap();
        for (name, value) in [("a", Some("3=4")), ("b", Some("6")), ("ab", Some("1")), ("A", None), ("c", None)] {
            assert_eq!(cookie(&request.headers, name.as_bytes()), value.map(str::as_bytes), "{name}");
        }
        let by = |name: &str| of(&HashBy { cookie: Some(name.to_owned()), ..HashBy::default() }, &request, None, &[]);
        assert_eq!((by("b"), by("e"), by("c")), (Some(hash(b"6")), None, None));
    }

    #[test]
    fn the_host_is_a_header_in_every_version() {
        let by = HashBy { header: Some(header::HOST), ..HashBy::default() };
        let mut http1 = RequestHeader::build("GET", b"/", None).unwrap();
        assert_eq!(of(&by, &http1, None, &[]), None);
        http1.insert_header("Host", "a.test").unwrap();
        let mut http2 = RequestHeader::build("GET", b"/", None).unwrap();
        http2.set_uri("http://a.test/".parse().unwrap());
        assert_eq!((of(&by, &http1, None, &[]), of(&by, &http2, None, &[])), (Some(hash(b"a.test")), Some(hash(b"a.test"))));
    }

    #[test]
    fn the_client_behind_a_trusted_proxy_is_the_one_in_x_real_ip() {
        let trusted: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
        let address = |headers: &[(&'static str, &str)], client: &str| {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            headers.iter().for_each(|(name, value)| drop(request.append_header(*name, *value)));
            forwarding::client_address(&request, client.parse().unwrap(), &trusted).to_string()
        };
        let claims = [("X-Forwarded-For", "198.51.100.7, 203.0.113.9"), ("X-Forwarded-For", "10.0.0.2")];
        assert_eq!(address(&claims, "192.0.2.1"), "192.0.2.1");
        assert_eq!(address(&claims, "10.0.0.1"), "203.0.113.9");
        assert_eq!(address(&[("X-Real-IP", "192.0.2.5"), claims[0]], "10.0.0.1"), "192.0.2.5");
        assert_eq!(address(&[("X-Real-IP", "nonsense")], "10.0.0.1"), "10.0.0.1");
    }
}
