//! Sends a request to another pool than the active one: because it names the pool in the header of `preview`, or because its
//! listener serves the standby pool.
//!
//! Called once per request, after its service is found. The pool that is chosen here stays the pool of the request: a retry goes to
//! another peer of it, and a swap does not change it. A request that may not choose is rejected and never served by the active pool,
//! because a test of a release would then report on another release.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use pingora::{http::RequestHeader, proxy::Session};

use super::{context::RequestCtx, failure::Failure, forwarding};
use crate::{
    clients::{connection::ClientInfo, reject::Rejection},
    config::{Preview, ServedPool},
    snapshot::Service,
    token::Token,
};

/// Has the token of a client that is not in `preview.from`. Not `Authorization`, which belongs to the application.
static TOKEN: HeaderName = HeaderName::from_static("x-switchover-token");

/// Chooses the pool, and removes the headers that only switchover reads.
///
/// # Errors
/// When the client is not allowed to choose, or the pool does not exist.
pub(super) fn choose(session: &mut Session, ctx: &mut RequestCtx, token: &Token) -> Result<(), Failure> {
    let (Some(service), Some(connection), Some(snapshot)) = (&ctx.service, &ctx.connection, &ctx.snapshot) else { return Ok(()) };
    let named = match &service.preview {
        None => None,
        Some(preview) => named(preview, session.req_header_mut(), &connection.client, &snapshot.trusted_proxies, token)?,
    };
    let chosen = match named {
        Some(name) => Some(pool(service, &name).ok_or(Failure::Rejected(Rejection::PreviewPool))?),
        None if connection.client.pool == ServedPool::Standby => Some(standby(service).ok_or(Failure::NoStandbyPool)?),
        None => None,
    };
    if let Some(chosen) = chosen {
        ctx.service = Some(Arc::clone(chosen));
        ctx.is_preview = true;
    }
    Ok(())
}

/// The name of the pool that the request chooses, if it chooses one and the client is allowed to.
fn named(
    preview: &Preview,
    request: &mut RequestHeader,
    client: &ClientInfo,
    trusted_proxies: &[IpNet],
    token: &Token,
) -> Result<Option<HeaderValue>, Failure> {
    let given = request.remove_header(&TOKEN);
    let is_repeated = request.headers.get_all(&preview.header).iter().nth(1).is_some();
    let Some(name) = request.remove_header(&preview.header) else { return Ok(None) };
    let is_allowed = given.is_some_and(|given| token.is(given.as_bytes()))
        || forwarding::is_from(request, client.address, trusted_proxies, &preview.from);
    match () {
        () if !is_allowed => Err(Failure::Rejected(Rejection::Preview)),
        () if is_repeated => Err(Failure::Rejected(Rejection::PreviewPool)),
        () => Ok(Some(name)),
    }
}

/// A pool of the service, the active one included.
fn pool<'a>(service: &'a Arc<Service>, name: &HeaderValue) -> Option<&'a Arc<Service>> {
    let mut pools = std::iter::once(service).chain(&service.standby);
    pools.find(|service| service.active.name.as_bytes() == name.as_bytes())
}

/// The pool that is not active, if there is exactly one.
fn standby(service: &Service) -> Option<&Arc<Service>> {
    match service.standby.as_slice() {
        [standby] => Some(standby),
        _ => None,
    }
}
