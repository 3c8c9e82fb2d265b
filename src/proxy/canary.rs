//! Sends a share of the clients, and requests that choose, to a pool that is not active.
//!
//! Called for each try of a request, before a peer of the active pool is picked. Each client has a position from 0 to 9,999, and is
//! sent to the other pool if its position is lower than the share. So a growing share only moves clients from the active pool to the
//! other one, and no assignment has to be stored: the position is in a cookie, or is the hash of the client's address.
//!
//! A canary never fails a request that the active pool can serve: without a ready peer, and after a failed try, the active pool is used.

use std::{net::IpAddr, sync::Arc};

use http::header::SET_COOKIE;
use ipnet::IpNet;
use pingora::{
    Result,
    http::{RequestHeader, ResponseHeader},
    lb::selection::{SelectionAlgorithm, algorithms::Random},
};

use super::{context::RequestCtx, hash_key};
use crate::{
    config::Stick,
    pool::{Lease, selection::mixed},
    snapshot::{Canary, POSITIONS},
};

/// Has the position of a client.
const COOKIE: &str = "switchover_side";

/// The position of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    value: u16,
    /// Whether the client has to get it as a cookie.
    is_new: bool,
}

/// Picks and leases a peer of the canary's pool. None if there is no canary, the request belongs to the active pool, or no peer is
/// ready.
pub(super) fn pick(ctx: &mut RequestCtx, request: &RequestHeader) -> Option<Lease> {
    let service = ctx.service.as_ref()?;
    let canary = service.canary.as_ref()?;
    if ctx.is_preview || ctx.leaves_canary {
        return None;
    }
    let client = ctx.connection.as_ref()?.client.address;
    let trusted_proxies = ctx.snapshot.as_ref()?.trusted_proxies.as_slice();
    let is_sent = chosen(canary, request).unwrap_or_else(|| {
        let position = *ctx.position.get_or_insert_with(|| position(canary, request, client, trusted_proxies));
        position.value < canary.share
    });
    if !is_sent {
        return None;
    }
    let pool = &canary.service.active;
    let lease = pool.pick_ready(pool.hash_by().and_then(|by| hash_key::of(by, request, Some(client), trusted_proxies)))?;
    let canary = Arc::clone(&canary.service);
    // After a try on this pool, an idle connection was closed: that is no failure of its peer.
    ctx.tried.clear();
    ctx.routed = ctx.service.replace(canary);
    Some(lease)
}

/// Whether the request chooses the pool, or chooses against it. The values are those of the canary annotations of ingress-nginx.
fn chosen(canary: &Canary, request: &RequestHeader) -> Option<bool> {
    let choice = |value: &[u8]| match value {
        b"always" => Some(true),
        b"never" => Some(false),
        _ => None,
    };
    let header = canary.header.as_ref().and_then(|name| request.headers.get(name)).and_then(|value| choice(value.as_bytes()));
    let cookie = || canary.cookie.as_ref().and_then(|name| hash_key::cookie(&request.headers, name.as_bytes())).and_then(choice);
    header.or_else(cookie)
}

fn position(canary: &Canary, request: &RequestHeader, client: IpAddr, trusted_proxies: &[IpNet]) -> Position {
    let (hash, is_new) = match canary.stick {
        Stick::ClientAddress => {
            // With the service's part, the same clients are not the first ones of every service.
            (mixed(hash_key::of_address(request, client, trusted_proxies) ^ canary.seed), false)
        }
        Stick::Cookie => match hash_key::cookie(&request.headers, COOKIE.as_bytes()).and_then(read) {
            Some(value) => return Position { value, is_new: false },
            None => (Random::new().next(&[]), true),
        },
    };
    Position { value: u16::try_from(hash % u64::from(POSITIONS)).unwrap_or_default(), is_new }
}

/// The position in the value of the cookie; none for any other text.
fn read(value: &[u8]) -> Option<u16> {
    let is_number = (1..=4).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten()
}

/// Sets the cookie of a client that has none.
///
/// # Errors
/// When the value is not a valid header value. Does not happen: it has digits and constants.
pub(super) fn set_cookie(response: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    let Some(Position { value, is_new: true }) = ctx.position else { return Ok(()) };
    let secure = if ctx.connection()?.client.tls.is_some() { "; Secure" } else { "" };
    response.append_header(SET_COOKIE, format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Lax{secure}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_position_is_a_value_of_the_cookie() {
        for (text, value) in [("0", Some(0)), ("9999", Some(9999)), ("0042", Some(42))] {
            assert_eq!(read(text.as_bytes()), value, "{text}");
        }
        for text in ["", "10000", "-1", "+1", "1.5", " 1", "x", "１", "00001"] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
    }
}
