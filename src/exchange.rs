//! One HTTP request of switchover itself over Pingora's connector: a probe, a request of a warm-up, a check, or a notification.
//!
//! The callers connect, because they distinguish why that failed, and they set the time limit. No connection is used twice, so that
//! a request never fails because the other side has just closed an idle one.

use bytes::Bytes;
use pingora::{
    Error, ErrorType,
    http::{RequestHeader, ResponseHeader},
    protocols::http::client::HttpSession,
};

/// A request header with the fields that every such request has. Pingora sends names as they are written here.
///
/// # Errors
/// When a value is not allowed in a header.
pub fn request(method: &str, path: &str, host: &str, is_h2: bool) -> pingora::Result<RequestHeader> {
    let mut request = RequestHeader::build(method, path.as_bytes(), None)?;
    request.insert_header("Host", host)?;
    request.insert_header("User-Agent", concat!("switchover/", env!("CARGO_PKG_VERSION")))?;
    // HTTP/2 has no such field (RFC 9113, section 8.2.2).
    if !is_h2 {
        request.insert_header("Connection", "close")?;
    }
    Ok(request)
}

/// Sends a request without a body, and reads the header of the response.
///
/// # Errors
/// When the connection is lost or the response is not valid HTTP.
pub async fn send(session: &mut HttpSession, request: RequestHeader) -> pingora::Result<ResponseHeader> {
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    read_header(session).await
}

/// Sends a request with JSON as its body, over HTTP/1.1, and reads the header of the response.
///
/// # Errors
/// The same as of [`send`].
pub async fn send_json(session: &mut HttpSession, mut request: RequestHeader, body: Bytes) -> pingora::Result<ResponseHeader> {
    request.insert_header("Content-Type", "application/json")?;
    request.insert_header("Content-Length", body.len())?;
    session.write_request_header(Box::new(request)).await?;
    session.write_request_body(body, true).await?;
    session.finish_request_body().await?;
    read_header(session).await
}

async fn read_header(session: &mut HttpSession) -> pingora::Result<ResponseHeader> {
    session.read_response_header().await?;
    session.response_header().cloned().ok_or_else(|| Error::new(ErrorType::InvalidHTTPHeader))
}

/// Reads the beginning of the response's body: `limit` bytes at most, however much the other side sends.
pub async fn read_body(session: &mut HttpSession, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < limit
        && let Ok(Some(chunk)) = session.read_response_body().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(limit);
    body
}
