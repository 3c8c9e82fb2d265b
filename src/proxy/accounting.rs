//! Counts and logs a request. Called once, when the request has ended, whatever the outcome.

use std::time::Instant;

use pingora::proxy::Session;

use super::{Proxy, context::RequestCtx, failure::Failure, log_entry, own_response};

/// Counts an ended request and writes its access log line.
pub(super) fn ended(proxy: &Proxy, session: &mut Session, ctx: &RequestCtx) {
    let now = Instant::now();
    if let Some(connection) = &ctx.connection {
        connection.end_request(now);
    }
    let code = own_response::status_sent(session).or(ctx.failure.map(Failure::status)).unwrap_or(Failure::ClientGone.status());
    let method = &session.req_header().method;
    let counter = match (ctx.answering_peer(), &ctx.service) {
        (Some(peer), _) => &peer.metrics.requests,
        (None, Some(service)) => &service.metrics.unserved,
        (None, None) => &proxy.metrics.unrouted,
    };
    counter.inc(code, method);
    if code >= 500
        && let Some(peer) = ctx.answering_peer()
    {
        peer.failed();
    }
    if let (true, Some(failure), Some(peer)) = (ctx.answered, ctx.failure, ctx.answering_peer()) {
        peer.metrics.broke_off(failure.blame());
    }
    if let Some(mirror) = &ctx.compared {
        mirror.comparison.originals.count(code, ctx.header_took);
    }
    if let Some(log) = &proxy.access_log {
        log.write(log_entry::of(session, ctx, code, now));
    }
    if let Some(service) = &ctx.service {
        service.active.metrics.duration.observe((now - ctx.began).as_secs_f64());
        if ctx.tries > 1 {
            if ctx.answered { service.metrics.retries_succeeded.inc() } else { service.metrics.retries_failed.inc() }
        }
    }
}
