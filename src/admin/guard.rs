//! Who may ask the admin face for more than health and metrics: programs that mean it, not strangers, and not pages that a
//! browser happens to show.
//!
//! A page can make a browser send a plain POST anywhere, and by a name that suddenly means 127.0.0.1 it can even read the
//! answer. So a change has to be JSON, which a page cannot send without asking first, to a host that is an address, `localhost`
//! or the face's own, from no other origin.

use std::{
    fs,
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

use subtle::ConstantTimeEq;

use super::{Admin, error};

/// Shorter ones could be guessed.
const TOKEN_SHORTEST: usize = 16;

/// Lets a request through that knows the token, or says why not. Without a token file, whoever is on this machine is let through.
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
        let message = "from elsewhere than loopback this needs admin.token_file in the configuration, and its token".to_owned();
        return error(StatusCode::FORBIDDEN, "no-token-file", message);
    };
    // For each request, so that a token can be changed in its file.
    let token = match token(&file) {
        Ok(token) => token,
        Err(message) => return error(StatusCode::INTERNAL_SERVER_ERROR, "token-file", message),
    };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if given.is_some_and(|given| bool::from(given.ct_eq(token.as_bytes()))) {
        return next.run(request).await;
    }
    let mut answer =
        error(StatusCode::UNAUTHORIZED, "no-token", "needs Authorization: Bearer and the token of admin.token_file".to_owned());
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    answer
}

/// The token in a file, without the space around it.
///
/// # Errors
/// When there is none, or one that could be guessed.
pub fn token(file: &Path) -> Result<String, String> {
    read_token(file).map_err(|why| format!("admin.token_file: {why}"))
}

/// As [`token`], with messages for a place that names the key already.
///
/// # Errors
/// As [`token`].
pub fn read_token(file: &Path) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let token = text.trim();
    if token.len() < TOKEN_SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let file = file.display();
        return Err(format!(
            "{file} has to hold one token of {TOKEN_SHORTEST} characters or more; openssl rand -hex 32 makes one"
        ));
    }
    Ok(token.to_owned())
}

/// Lets a request through that no page can have made, or says why not. Whoever knows a token is no page.
pub(super) async fn no_page(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if admin.token_file.is_some() {
        return next.run(request).await;
    }
    let address = admin.address;
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
