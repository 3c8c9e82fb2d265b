//! Builds the access log entry of a request. Called when the request has ended, and only if the log is on.

use std::time::{Instant, SystemTime};

use http::{HeaderName, Version, header};
use pingora::proxy::Session;

use super::{context::RequestCtx, failure::Failure, forwarding};
use crate::{
    access_log::{Entry, shortened},
    pool::Lease,
};

/// Builds the entry of an ended request.
pub(super) fn of(session: &mut Session, ctx: &RequestCtx, code: u16, now: Instant) -> Box<Entry> {
    let client = ctx.connection.as_ref().map(|connection| &connection.client);
    let request = session.req_header();
    let header = |name: &HeaderName| request.headers.get(name).map(|value| shortened(value.as_bytes())).unwrap_or_default();
    let host = request.uri.authority().map(|host| shortened(host.as_str().as_bytes()));
    let kept = header(&forwarding::REQUEST_ID);
    let failure = ctx.rejection().map(Failure::Rejected).or(ctx.failure);
    let peer = ctx.lease.as_ref().map(Lease::peer).or(ctx.tried.last());
    Box::new(Entry {
        at: Some(SystemTime::now()),
        client: client.map(|client| client.address.to_string()).unwrap_or_default(),
        listener: client.map(|client| client.listener.to_string()).unwrap_or_default(),
        method: request.method.to_string(),
        host: host.unwrap_or_else(|| header(&header::HOST)),
        target: shortened(request.raw_path()),
        version: match request.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        },
        tls: client.and_then(|client| client.tls),
        status: code,
        bytes_sent: session.body_bytes_sent() as u64,
        bytes_received: session.body_bytes_read() as u64,
        duration: Some(now - ctx.began),
        connect: ctx.connect_took,
        header: ctx.header_took,
        service: ctx.service.as_ref().map(|service| service.name.clone()).unwrap_or_default(),
        pool: peer.map(|peer| peer.pool.clone()).unwrap_or_default(),
        peer: peer.map(|peer| peer.address.to_string()).unwrap_or_default(),
        retries: ctx.tries.saturating_sub(1),
        request_id: ctx.request_id.as_ref().map_or(kept, |id| id.as_str().to_owned()),
        ended: failure.map_or("ok", Failure::word),
        referer: header(&header::REFERER),
        user_agent: header(&header::USER_AGENT),
    })
}
