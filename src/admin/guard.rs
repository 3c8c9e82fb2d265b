//! Access control for `/v1`: loopback or bearer token, no cross-origin browser requests.
//!
//! Called by the router in [`super`] as middleware. A web page can make a browser send a plain POST to any address, and with DNS
//! rebinding it can even read the response. Therefore a request without a token needs a Host that is an IP address, `localhost`
//! or the admin address, and no foreign Origin; a POST needs JSON, which a page cannot send without a CORS preflight.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};

use super::{Admin, error};
use crate::token;

/// Requires the bearer token. Without a token file, allows loopback clients only.
pub(super) async fn only_with_token(
    State(token_file): State<Option<Arc<Path>>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let Some(file) = token_file else {
        if client.ip().to_canonical().is_loopback() {
            return next.run(request).await;
        }
        let message = "only loopback clients may call this without a token; set admin.token_file to allow others".to_owned();
        return error(StatusCode::FORBIDDEN, "no-token-file", message);
    };
    // Reads the file for each request, so that the token can be changed.
    let token = match token::named(&file) {
        Ok(token) => token,
        Err(message) => return error(StatusCode::INTERNAL_SERVER_ERROR, "token-file", message),
    };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| token::is_equal(given, &token)) {
        return next.run(request).await;
    }
    let mut answer = error(
        StatusCode::UNAUTHORIZED,
        "no-token",
        "the header Authorization: Bearer with the token of admin.token_file is required".to_owned(),
    );
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    answer
}

/// Rejects requests that a web page may have made. A page cannot know the token, so with a token file this allows everything.
pub(super) async fn no_page(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if admin.token_file.is_some() {
        return next.run(request).await;
    }
    let address = admin.address;
    let headers = request.headers();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_here(host, address) {
        let message = "the Host is neither an IP address nor localhost; use one of them".to_owned();
        return error(StatusCode::FORBIDDEN, "foreign-host", message);
    }
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").is_none_or(|(_, origin)| origin != host)
    {
        return error(StatusCode::FORBIDDEN, "foreign-origin", "requests from pages of another origin are rejected".to_owned());
    }
    if request.method() == Method::POST && !is_json(headers) {
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
