//! Sends copies of requests to a pool that is not active, and throws the responses away.
//!
//! Called once per request, when its header is complete for the peer. A copy runs in a task of its own: whatever happens to it, the
//! request is not affected. Only GET, HEAD and OPTIONS without a body are copied, which an application must be able to get twice
//! (RFC 9110, section 9.2.1).

use std::{sync::Arc, time::Instant};

use http::{HeaderValue, Method, Uri, header, uri::Scheme};
use pingora::{
    Error, ErrorType, OrErr, Result,
    http::RequestHeader,
    lb::selection::{SelectionAlgorithm, algorithms::Random},
    protocols::http::client::HttpSession,
    proxy::Session,
    upstreams::peer::HttpPeer,
};
use tokio::time::{Duration, timeout_at};

use super::{context::RequestCtx, hash_key};
use crate::{
    pool::{Lease, local::local_cause},
    snapshot::Mirror,
};

/// Marks a copy, so that an application or its log can tell it from a request.
const MARK: &str = "X-Switchover-Mirror";

/// How much of a response's body is read, in bytes, so that its connection can be used again. A longer one is not worth it.
const BODY_READ: usize = 256 * 1024;

/// Copies the request, if it is one of those that are copied. Removes the mark of a client.
pub(super) fn copy(session: &mut Session, request: &mut RequestHeader, ctx: &mut RequestCtx) {
    let Some(mirror) = ctx.service.as_ref().and_then(|service| service.mirror.as_ref()) else { return };
    request.remove_header(MARK);
    if ctx.tries > 1 || ctx.is_preview || !is_copied(session, ctx) || !is_chosen(mirror) {
        return;
    }
    let mirror = Arc::clone(mirror);
    let metrics = &mirror.comparison.metrics;
    let Some(place) = mirror.comparison.place() else { return metrics.dropped.inc() };
    let pool = &mirror.service.active;
    let client = ctx.connection.as_ref().map(|connection| connection.client.address);
    let trusted_proxies = ctx.snapshot.as_ref().map(|snapshot| snapshot.trusted_proxies.as_slice()).unwrap_or_default();
    let key = pool.hash_by().and_then(|by| hash_key::of(by, session.req_header(), client, trusted_proxies));
    let Some(lease) = pool.pick_mirror(key) else { return metrics.not_ready.inc() };
    let Ok(request) = marked(request, &mirror) else { return metrics.failed.inc() };
    ctx.compared = Some(Arc::clone(&mirror));
    tokio::spawn(async move {
        exchange(&mirror, lease, request).await;
        drop(place);
    });
}

/// Whether an application must be able to get this request twice.
fn is_copied(session: &mut Session, ctx: &RequestCtx) -> bool {
    let is_safe = matches!(session.req_header().method, Method::GET | Method::HEAD | Method::OPTIONS);
    is_safe && !ctx.upgrades && session.as_mut().is_body_empty()
}

fn is_chosen(mirror: &Mirror) -> bool {
    Random::new().next(&[]) % 1000 < u64::from(mirror.share.per_mille)
}

/// The request with the mark, in the form that its peer expects.
fn marked(request: &RequestHeader, mirror: &Mirror) -> Result<RequestHeader> {
    let mut copy = request.clone();
    copy.insert_header(MARK, HeaderValue::from_static("1"))?;
    if mirror.service.upstream.is_h2() {
        // Pingora's proxy does the same for the original after this phase.
        let host = copy.remove_header(&header::HOST);
        let authority = host.as_ref().map(HeaderValue::as_bytes).or(copy.uri.authority().map(|host| host.as_str().as_bytes()));
        let path = copy.uri.path_and_query().map_or("/", |path| path.as_str());
        let scheme = if mirror.service.upstream.config().tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let uri = Uri::builder().scheme(scheme).authority(authority.unwrap_or_default()).path_and_query(path).build();
        copy.set_uri(uri.or_err(ErrorType::InvalidHTTPHeader, "the target of a copy")?);
    }
    Ok(copy)
}

/// Sends a copy, counts its response, and reads the body within the same time.
async fn exchange(mirror: &Mirror, lease: Lease, request: RequestHeader) {
    let (comparison, timeouts) = (&mirror.comparison, mirror.service.timeouts);
    let deadline = tokio::time::Instant::now() + timeouts.connect + timeouts.response;
    let header = timeout_at(deadline, respond(mirror, &lease, request)).await;
    let (mut session, peer) = match header {
        Ok(Ok(Response { session, peer, status, took })) => {
            comparison.metrics.responses.inc();
            comparison.copies.count(status, Some(took));
            (session, peer)
        }
        failed => {
            comparison.metrics.failed.inc();
            match failed {
                // A shortage of this process says nothing about the pool.
                Ok(Err(e)) if local_cause(&e).is_some() => {}
                Ok(_) => comparison.copies.count(502, None),
                Err(_) => comparison.copies.count(504, None),
            }
            return;
        }
    };
    if let Ok(true) = timeout_at(deadline, read_body(&mut session)).await {
        mirror.connector.release_http_session(session, &*peer, Some(timeouts.idle)).await;
    }
}

/// The header of a response.
struct Response {
    session: HttpSession,
    peer: Box<HttpPeer>,
    status: u16,
    took: Duration,
}

/// Sends the request, a second time if an idle connection turns out to be closed.
async fn respond(mirror: &Mirror, lease: &Lease, request: RequestHeader) -> Result<Response> {
    let mut fresh = false;
    loop {
        let mut peer = lease.peer().http_peer(fresh).ok_or_else(|| Error::new_up(ErrorType::ConnectNoRoute))?;
        mirror.service.upstream.apply(&mut peer, lease.peer());
        peer.options.connection_timeout = Some(mirror.service.timeouts.connect);
        peer.options.total_connection_timeout = Some(mirror.service.timeouts.connect);
        let (mut session, reused) = mirror.connector.get_http_session(&*peer).await?;
        let connected = Instant::now();
        match read_header(&mut session, request.clone()).await {
            Ok(status) => return Ok(Response { session, peer, status, took: connected.elapsed() }),
            Err(_) if reused && !fresh => fresh = true,
            Err(e) => return Err(e),
        }
    }
}

async fn read_header(session: &mut HttpSession, request: RequestHeader) -> Result<u16> {
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        let status = session.response_header().ok_or_else(|| Error::new_up(ErrorType::InvalidHTTPHeader))?.status;
        if !status.is_informational() {
            return Ok(status.as_u16());
        }
    }
}

/// Returns whether the body has ended.
async fn read_body(session: &mut HttpSession) -> bool {
    let mut read = 0;
    while read < BODY_READ {
        match session.read_response_body().await {
            Ok(Some(bytes)) => read += bytes.len(),
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
    false
}
