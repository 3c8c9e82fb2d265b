//! Answers that are not a peer's: errors, and the way to HTTPS.
//!
//! Called by the request's phases in [`super`], never once a peer's answer has begun.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, Version, header};
use pingora::{Result, http::ResponseHeader, protocols::http::ServerSession, proxy::Session};

use super::{context::RequestCtx, failure::Failure, forwarding};

/// Answers in place of a peer.
pub(super) async fn failure(session: &mut Session, ctx: &mut RequestCtx, failure: Failure) -> Result<()> {
    if is_grpc(session) {
        // A status of HTTP means nothing to it; this is a whole answer.
        let mut response = ResponseHeader::build(200, Some(3))?;
        response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))?;
        response.insert_header("grpc-status", failure.grpc_status())?;
        response.insert_header("grpc-message", failure.body().trim_end())?;
        return end_with(session, response).await;
    }
    let status = failure.status();
    let id = forwarding::request_id(session.req_header(), &mut ctx.request_id);
    let page = ctx.service.as_ref().and_then(|service| service.error_pages.get(&status));
    let accept = session.req_header().headers.get(header::ACCEPT).map(HeaderValue::as_bytes).unwrap_or_default();
    let (content_type, body) = if memchr::memmem::find(accept, b"application/json").is_some() {
        let message = failure.body().trim_end().trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        ("application/json", serde_json::json!({"status": status, "error": message, "request_id": id}).to_string())
    } else if let Some(page) = page {
        // An id has graphic characters only, of which these mean something in HTML.
        let id = id.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;");
        ("text/html; charset=utf-8", page.text.replace("{request_id}", &id))
    } else {
        ("text/plain; charset=utf-8", failure.body().to_owned())
    };
    let mut response = ResponseHeader::build(status, Some(6))?;
    response.insert_header(forwarding::X_REQUEST_ID, id)?;
    response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static(content_type))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    if failure == Failure::NobodyReady {
        response.insert_header(header::RETRY_AFTER, HeaderValue::from_static("1"))?;
    }
    if failure != Failure::NoRoute {
        // What is left of the request is of no use any more, so the connection is not either.
        session.set_keepalive(None);
    }
    respond(session, response, body).await
}

/// Sends the client to the same place over HTTPS, on its usual port.
pub(super) async fn redirect(session: &mut Session) -> Result<()> {
    let request = session.req_header();
    let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let host = host.or_else(|| request.uri.authority().map(|authority| authority.as_str().as_bytes())).unwrap_or_default();
    let port = host.iter().rposition(|byte| *byte == b':').filter(|at| !host.iter().skip(*at).any(|byte| *byte == b']'));
    let host = host.get(..port.unwrap_or(host.len())).unwrap_or_default();
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let location = HeaderValue::from_bytes(&[b"https://", host, path.as_bytes()].concat());
    // 301 is the one that every client knows; 308 keeps the method and the body.
    let status = if matches!(request.method, Method::GET | Method::HEAD) { 301 } else { 308 };
    let mut response = ResponseHeader::build(status, Some(2))?;
    response.insert_header(header::LOCATION, location.unwrap_or(HeaderValue::from_static("/")))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
    end_with(session, response).await
}

/// Shows an authority that a name is ours.
pub(super) async fn challenge(session: &mut Session, key_authorization: String) -> Result<()> {
    let mut response = ResponseHeader::build(200, Some(2))?;
    response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))?;
    response.insert_header(header::CONTENT_LENGTH, HeaderValue::from(key_authorization.len()))?;
    respond(session, response, key_authorization).await
}

/// Writes an answer with its body, which one to HEAD has not (RFC 9110, section 9.3.2).
async fn respond(session: &mut Session, response: ResponseHeader, body: String) -> Result<()> {
    if session.req_header().method == Method::HEAD {
        return end_with(session, response).await;
    }
    session.write_response_header(Box::new(response), false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}

/// Writes a header that is the whole answer.
async fn end_with(session: &mut Session, response: ResponseHeader) -> Result<()> {
    match &mut *session.downstream_session {
        // Pingora's own way never says that it is the end, and the client would see its stream cut off.
        ServerSession::Custom(stream) => stream.write_response_header(Box::new(response), true).await,
        _ => session.write_response_header(Box::new(response), true).await,
    }
}

/// Whether it is a call of gRPC.
pub(super) fn is_grpc(session: &Session) -> bool {
    let content_type = session.req_header().headers.get(header::CONTENT_TYPE);
    is_h2(session) && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether it came over HTTP/2.
pub(super) fn is_h2(session: &Session) -> bool {
    session.req_header().version == Version::HTTP_2
}

/// The status of the answer, once it has begun. An interim response (1xx) is none, a switch of protocols (101) is one.
pub(super) fn status_sent(session: &Session) -> Option<u16> {
    let status = session.response_written()?.status;
    (!status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS).then_some(status.as_u16())
}
