//! Responses of switchover itself: errors, redirects to HTTPS, and ACME challenges.
//!
//! Called by the phases in [`super`], and never after a peer's response has begun.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, header};
use pingora::{Result, http::ResponseHeader, protocols::http::ServerSession, proxy::Session};

use super::{context::RequestCtx, failure::Failure, forwarding};
use crate::clients::reject::error_fields;

/// Sends an error response.
pub(super) async fn failure(session: &mut Session, ctx: &mut RequestCtx, failure: Failure) -> Result<()> {
    if is_grpc(session) {
        // A gRPC client reads `grpc-status`, not the HTTP status. This header is a complete response ("trailers-only").
        let mut response = ResponseHeader::build(200, Some(3))?;
        response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))?;
        response.insert_header("grpc-status", failure.grpc_status())?;
        response.insert_header("grpc-message", failure.body().trim_end())?;
        return end_with(session, response).await;
    }
    let status = failure.status();
    let reason = reason(ctx, failure);
    let id = forwarding::request_id(session.req_header(), &mut ctx.request_id);
    let page = ctx.service.as_ref().filter(|_| reason.is_none()).and_then(|service| service.error_pages.get(&status));
    let text = reason.as_deref().unwrap_or(failure.body());
    let accept = session.req_header().headers.get(header::ACCEPT).map(HeaderValue::as_bytes).unwrap_or_default();
    let (content_type, body) = if memchr::memmem::find(accept, b"application/json").is_some() {
        let message = text.trim_end().trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        ("application/json", serde_json::json!({"status": status, "error": message, "request_id": id}).to_string())
    } else if let Some(page) = page {
        // A kept id comes from the client and has any graphic characters; escape those that are special in HTML.
        let id = id.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;");
        ("text/html; charset=utf-8", page.text.replace("{request_id}", &id))
    } else {
        ("text/plain; charset=utf-8", text.to_owned())
    };
    let mut response = ResponseHeader::build(status, Some(6))?;
    response.insert_header(forwarding::X_REQUEST_ID, id)?;
    for (name, value) in error_fields(status, content_type, body.len()) {
        response.insert_header(name, value)?;
    }
    if failure != Failure::NoRoute {
        // The rest of the request is not read, so the connection cannot be reused.
        session.set_keepalive(None);
    }
    respond(session, response, body).await
}

/// Why the pool that a request chose is not ready. Only for such a request, whose client is one of the operator's.
fn reason(ctx: &RequestCtx, failure: Failure) -> Option<String> {
    let pool = &ctx.service.as_ref().filter(|_| ctx.is_preview && failure == Failure::NoReadyPeer)?.active;
    Some(format!("503 {} is not ready: {}\n", pool.name, pool.missing()))
}

/// Redirects the client to the same host and path over HTTPS on the default port.
pub(super) async fn redirect(session: &mut Session) -> Result<()> {
    let request = session.req_header();
    let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let host = host.or_else(|| request.uri.authority().map(|authority| authority.as_str().as_bytes())).unwrap_or_default();
    let port = host.iter().rposition(|byte| *byte == b':').filter(|at| !host.iter().skip(*at).any(|byte| *byte == b']'));
    let host = host.get(..port.unwrap_or(host.len())).unwrap_or_default();
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let location = HeaderValue::from_bytes(&[b"https://", host, path.as_bytes()].concat());
    // Every client knows 301; 308 keeps the method and the body.
    let status = if matches!(request.method, Method::GET | Method::HEAD) { 301 } else { 308 };
    let mut response = ResponseHeader::build(status, Some(2))?;
    response.insert_header(header::LOCATION, location.unwrap_or(HeaderValue::from_static("/")))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
    end_with(session, response).await
}

/// Responds to an `http-01` challenge (RFC 8555, section 8.3).
pub(super) async fn challenge(session: &mut Session, key_authorization: String) -> Result<()> {
    let mut response = ResponseHeader::build(200, Some(2))?;
    response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(key_authorization.len()))?;
    respond(session, response, key_authorization).await
}

/// Writes a response; the body is left out for HEAD (RFC 9110, section 9.3.2).
async fn respond(session: &mut Session, response: ResponseHeader, body: String) -> Result<()> {
    if session.req_header().method == Method::HEAD {
        return end_with(session, response).await;
    }
    session.write_response_header(Box::new(response), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}

/// Writes a response that consists of its header.
async fn end_with(session: &mut Session, response: ResponseHeader) -> Result<()> {
    match &mut *session.downstream_session {
        // Directly: Pingora's wrapper never sets the end of the stream, and the client would see a cut stream.
        ServerSession::Custom(stream) => stream.write_response_header(Box::new(response), true).await,
        _ => session.write_response_header(Box::new(response), true).await,
    }
}

/// Whether the request is a gRPC call.
pub(super) fn is_grpc(session: &Session) -> bool {
    let content_type = session.req_header().headers.get(header::CONTENT_TYPE);
    is_h2(session) && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether the request came over HTTP/2.
pub(super) fn is_h2(session: &Session) -> bool {
    session.req_header().version == Version::HTTP_2
}

/// The status of the response, once one has begun. Counts 101, but no other interim (1xx) response.
pub(super) fn status_sent(session: &Session) -> Option<u16> {
    let status = session.response_written()?.status;
    (!status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS).then_some(status.as_u16())
}
