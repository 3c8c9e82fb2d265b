//! Sets the headers that describe the client to a peer: X-Real-IP, X-Forwarded-For/-Proto/-Host/-Port and X-Request-Id.
//!
//! Called once per try, after Pingora has removed the hop-by-hop fields, so that a client cannot remove these headers by naming
//! them in `Connection`. Forwarding headers of the client are removed, unless `trusted_proxies` lists its address.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use pingora::{Result, http::RequestHeader};

use crate::clients::connection::ClientInfo;

const X_REAL_IP: &str = "X-Real-IP";
const X_FORWARDED_FOR: &str = "X-Forwarded-For";
const X_FORWARDED_PROTO: &str = "X-Forwarded-Proto";
const X_FORWARDED_HOST: &str = "X-Forwarded-Host";
const X_FORWARDED_PORT: &str = "X-Forwarded-Port";
const TRACEPARENT: &str = "traceparent";
pub(super) const X_REQUEST_ID: &str = "X-Request-Id";
/// For look-ups, which then need not parse the name each time.
pub(super) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest request id that is kept, in bytes: a UUID or a full trace id fits.
const REQUEST_ID_LONGEST: usize = 128;

/// A unique 128-bit id in hexadecimal.
pub(super) struct RequestId([u8; 32]);

/// Sets the forwarding headers of `request`.
///
/// # Errors
/// When a value is not a valid header value. Does not happen: the values are addresses and parsed headers.
pub(super) fn set(request: &mut RequestHeader, client: &ClientInfo, trusted_proxies: &[IpNet]) -> Result<()> {
    if trusted_proxies.iter().any(|network| network.contains(&client.address)) {
        return add_to_claims(request, client, trusted_proxies);
    }
    drop_claims(request);
    request.insert_header(X_REAL_IP, client.address_text.clone())?;
    request.insert_header(X_FORWARDED_FOR, client.address_text.clone())?;
    set_missing(request, client, false)
}

/// Keeps the headers of a trusted proxy and appends its address.
fn add_to_claims(request: &mut RequestHeader, client: &ClientInfo, trusted_proxies: &[IpNet]) -> Result<()> {
    let address = client.address.to_string();
    let chain = chain(request, &address);
    if !request.headers.contains_key(X_REAL_IP) {
        let real = real_client(&chain, trusted_proxies).map_or(address, |ip| ip.to_string());
        request.insert_header(X_REAL_IP, real)?;
    }
    request.insert_header(X_FORWARDED_FOR, chain)?;
    set_missing(request, client, true)
}

/// The new value of `X-Forwarded-For`: the addresses in the request, then that of the connection.
fn chain(request: &RequestHeader, client: &str) -> String {
    let forwarded = request.headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    forwarded.chain([client]).collect::<Vec<_>>().join(", ")
}

/// The address that peers get as `X-Real-IP`; `request` is as the client sent it. `client`, if it is no address.
pub(super) fn client_address(request: &RequestHeader, client: IpAddr, trusted_proxies: &[IpNet]) -> IpAddr {
    if !trusted_proxies.iter().any(|network| network.contains(&client)) {
        return client;
    }
    match request.headers.get(X_REAL_IP) {
        Some(real) => real.to_str().ok().and_then(|real| real.parse().ok()),
        None => real_client(&chain(request, &client.to_string()), trusted_proxies),
    }
    .unwrap_or(client)
}

/// Whether a client is in `networks`. If trusted proxies report its address in both headers, both have to be: a proxy that sets only
/// one of them forwards the other one as its client sent it.
pub(super) fn is_from(request: &RequestHeader, client: IpAddr, trusted_proxies: &[IpNet], networks: &[IpNet]) -> bool {
    let is_in = |address: IpAddr| networks.iter().any(|network| network.contains(&address.to_canonical()));
    if networks.is_empty() || !trusted_proxies.iter().any(|network| network.contains(&client)) {
        return is_in(client);
    }
    let real = request.headers.get_all(X_REAL_IP).iter();
    let mut real = real.map(|real| real.to_str().ok().and_then(|real| real.parse().ok()));
    let chain = chain(request, &client.to_string());
    real_client(&chain, trusted_proxies).is_some_and(is_in) && real.all(|real| real.is_some_and(is_in))
}

/// Sets each header; with `claimed`, only if a trusted proxy has not set it.
fn set_missing(request: &mut RequestHeader, client: &ClientInfo, claimed: bool) -> Result<()> {
    let missing = |request: &RequestHeader, name: &str| !(claimed && request.headers.contains_key(name));
    if missing(request, X_FORWARDED_PROTO) {
        request
            .insert_header(X_FORWARDED_PROTO, HeaderValue::from_static(if client.tls.is_some() { "https" } else { "http" }))?;
    }
    if missing(request, X_FORWARDED_HOST)
        && let Some(host) = request.headers.get(http::header::HOST).cloned()
    {
        request.insert_header(X_FORWARDED_HOST, host)?;
    }
    if missing(request, X_FORWARDED_PORT) {
        request.insert_header(X_FORWARDED_PORT, client.local_port.clone())?;
    }
    Ok(())
}

/// Keeps a valid request id of the client, or sets a generated one, which is the same for every try.
pub(super) fn set_request_id(request: &mut RequestHeader, made: &mut Option<RequestId>) -> Result<()> {
    if kept_id(request).is_some() {
        return Ok(());
    }
    request.insert_header(X_REQUEST_ID, made.get_or_insert_with(RequestId::new).0.as_slice())
}

/// Starts a trace if the request is part of none (W3C Trace Context, section 3.2). The new trace is sampled. Existing
/// `traceparent`, `tracestate` and B3 headers pass unchanged.
pub(super) fn set_traceparent(request: &mut RequestHeader, made: &mut Option<HeaderValue>) -> Result<()> {
    if request.headers.contains_key(TRACEPARENT)
        || request.headers.contains_key("b3")
        || request.headers.contains_key("x-b3-traceid")
    {
        return Ok(());
    }
    let make = || {
        let (trace, span) = (RequestId::new(), RequestId::new());
        let text = format!("00-{}-{}-01", trace.as_str(), span.as_str().get(16..).unwrap_or_default());
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
    };
    request.insert_header(TRACEPARENT, made.get_or_insert_with(make).clone())
}

/// The id of a request: a valid one of the client, or the generated one.
pub(super) fn request_id<'a>(request: &'a RequestHeader, made: &'a mut Option<RequestId>) -> &'a str {
    match kept_id(request) {
        Some(id) => id,
        None => made.get_or_insert_with(RequestId::new).as_str(),
    }
}

fn kept_id(request: &RequestHeader) -> Option<&str> {
    let id = request.headers.get(&REQUEST_ID)?.as_bytes();
    let fine = (1..=REQUEST_ID_LONGEST).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(id).ok().filter(|_| fine)
}

/// Removes the forwarding headers of an untrusted client, which could otherwise claim any address. `Forwarded` is among them,
/// because Spring's filter prefers it to the others.
fn drop_claims(request: &mut RequestHeader) {
    let claim = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("x-forwarded-") || name == "x-real-ip" || name == "forwarded"
    };
    // Empty for almost all clients, and then without an allocation.
    let claims: Vec<HeaderName> = request.headers.keys().filter(|name| claim(name)).cloned().collect();
    for name in &claims {
        request.remove_header(name);
    }
}

/// The last address in the chain that is not a trusted proxy. A trusted proxy has seen it; the addresses before it are claims.
fn real_client(forwarded_for: &str, trusted_proxies: &[IpNet]) -> Option<IpAddr> {
    let mut nearest = None;
    for address in forwarded_for.rsplit(',') {
        let Ok(ip) = address.trim().parse::<IpAddr>() else {
            break;
        };
        nearest = Some(ip);
        if !trusted_proxies.iter().any(|network| network.contains(&ip)) {
            break;
        }
    }
    nearest
}

impl RequestId {
    /// The id as header text.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// A random prefix per process, and a hashed counter, so that successive ids differ in all digits.
    fn new() -> Self {
        static START: LazyLock<(RandomState, [u8; 16])> = LazyLock::new(|| {
            let state = RandomState::new();
            let start = hex(state.hash_one(std::process::id()));
            (state, start)
        });
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (state, start) = &*START;
        let mut digits = [0; 32];
        let (first, second) = digits.split_at_mut(16);
        first.copy_from_slice(start);
        second.copy_from_slice(&hex(state.hash_one(COUNT.fetch_add(1, Relaxed))));
        Self(digits)
    }
}

/// Written by hand: this runs for every request, and `format!` takes a tenth of a microsecond.
fn hex(number: u64) -> [u8; 16] {
    let digit = |d: u8| if d < 10 { b'0' + d } else { b'a' + d - 10 };
    let mut digits = [0; 16];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
    }
    digits
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use super::*;

    fn forwarded(headers: &[(&'static str, &str)], client: &str, trusted: &[&str]) -> Vec<(String, String)> {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header("Host", "shop.example.com").unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        set(&mut request, &ClientInfo::new(SocketAddr::new(client.parse().unwrap(), 5), 8080, Arc::default()), &trusted).unwrap();
        let mut all: Vec<_> = request.headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
        all.retain(|(name, _)| name != "host");
        all.sort();
        all
    }

    fn expect(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_an_untrusted_client_claims_is_replaced() {
        let claims = [
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Port", "1"),
            ("X-Forwarded-Prefix", "/admin"),
            ("X-Real-IP", "10.0.0.1"),
            ("Forwarded", "for=10.0.0.1"),
        ];
        let expected = expect(&[
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-host", "shop.example.com"),
            ("x-forwarded-port", "8080"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "203.0.113.9"),
        ]);
        assert_eq!(forwarded(&claims, "203.0.113.9", &["10.0.0.0/8"]), expected);
        assert_eq!(forwarded(&claims, "::ffff:203.0.113.9", &["10.0.0.0/8"]), expected, "an IPv4 client of an IPv6 listener");
    }

    #[test]
    fn what_a_trusted_proxy_says_is_kept_and_added_to() {
        let said = [
            ("X-Forwarded-For", "198.51.100.7"),
            ("X-Forwarded-For", "10.0.0.2"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Port", "443"),
        ];
        assert_eq!(
            forwarded(&said, "10.0.0.1", &["10.0.0.0/8"]),
            expect(&[
                ("x-forwarded-for", "198.51.100.7, 10.0.0.2, 10.0.0.1"),
                ("x-forwarded-host", "shop.example.com"),
                ("x-forwarded-port", "443"),
                ("x-forwarded-proto", "https"),
                ("x-real-ip", "198.51.100.7"),
            ])
        );
    }

    #[test]
    fn a_request_id_is_kept_if_it_is_one() {
        let id = |sent: Option<&str>| {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            if let Some(sent) = sent {
                request.insert_header(X_REQUEST_ID, sent).unwrap();
            }
            let mut made = None;
            set_request_id(&mut request, &mut made).unwrap();
            request.headers[X_REQUEST_ID].to_str().unwrap().to_owned()
        };
        assert_eq!(id(Some("abc-1")), "abc-1");
        for sent in [None, Some(""), Some("two words"), Some(&*"x".repeat(129))] {
            let (a, b) = (id(sent), id(sent));
            assert_eq!((a.len(), a == b), (32, false), "{sent:?}");
        }
    }
}
