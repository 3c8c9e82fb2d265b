//! Who may change something over the admin face: programs that mean it, not pages that a browser happens to show.
//!
//! A page can make a browser send a plain POST anywhere, and by a name that suddenly means 127.0.0.1 it can even read the
//! answer. So a change has to be JSON, which a page cannot send without asking first, to a host that is an address, `localhost`
//! or the face's own, from no other origin.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::Response,
};

use super::error;

/// Lets a change through, or says why not.
pub(super) async fn only_from_here(State(address): State<SocketAddr>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_here(host, address) {
        let message = "the Host is not this machine's; use an IP address or localhost".to_owned();
        return error(StatusCode::FORBIDDEN, "foreign-host", message);
    }
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").is_none_or(|(_, origin)| origin != host)
    {
        return error(StatusCode::FORBIDDEN, "foreign-origin", "a page of another origin may not change anything".to_owned());
    }
    if !is_json(headers) {
        let message = "a change needs Content-Type: application/json".to_owned();
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", message);
    }
    next.run(request).await
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

fn is_here(host: &str, address: SocketAddr) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    ip.is_ok() || name.eq_ignore_ascii_case("localhost") || host == address.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_here() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9901));
        for (host, here) in [
            ("127.0.0.1:9901", true),
            ("localhost:9901", true),
            ("LOCALHOST", true),
            ("[::1]:9901", true),
            ("10.0.0.5", true),
            ("", false),
            ("evil.example.com", false),
            ("evil.example.com:9901", false),
            ("127.0.0.1.evil.example.com", false),
            ("localhost.evil.example.com:9901", false),
        ] {
            assert_eq!(is_here(host, address), here, "{host}");
        }
    }
}
