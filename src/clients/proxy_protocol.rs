//! The PROXY protocol header, version 1 or 2, by which a balancer that only forwards bytes says whose they are.
//!
//! Read by [`crate::clients`] before anything else of a connection, and only from addresses that `trusted_proxies` lists: whoever may
//! send one may be anybody. Specification: haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::reject::Rejection;

/// The longest of version 1, by the specification; and more than one of version 2 with every extension in use has.
const LONGEST_V1: usize = 107;
const LONGEST_V2: usize = 4096;
/// Of version 2 before it says how many bytes follow; "PROXY UNKNOWN\r\n" is the shortest of version 1, one less.
const FIXED: usize = 16;

/// Reads a header and nothing behind it. Gives the client's address, or none where the balancer speaks for itself, as in its
/// health checks. An error is a header that is none, or no error at all if nothing was said.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Option<Rejection>> {
    const BAD: Option<Rejection> = Some(Rejection::ProxyProtocol);
    let mut header = Vec::with_capacity(LONGEST_V1);
    while let Some(missing) = missing(&header) {
        let before = header.len();
        let longest = if is_second(&header) { LONGEST_V2 } else { LONGEST_V1 };
        if before + missing > longest {
            return Err(BAD);
        }
        header.resize(before + missing, 0);
        let rest = header.get_mut(before..).unwrap_or_default();
        match stream.read_exact(rest).await {
            Ok(_) => {}
            Err(_) if before == 0 && rest.iter().all(|byte| *byte == 0) => return Err(None),
            Err(_) => return Err(BAD),
        }
    }
    match HeaderResult::parse(&header) {
        HeaderResult::V1(Ok(header)) => Ok(match &header.addresses {
            v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
            v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) if header.command == v2::Command::Local => Ok(None),
        HeaderResult::V2(Ok(header)) => Ok(match &header.addresses {
            v2::Addresses::IPv4(ip) => Some((ip.source_address, ip.source_port).into()),
            v2::Addresses::IPv6(ip) => Some((ip.source_address, ip.source_port).into()),
            v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
        }),
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => Err(BAD),
    }
}

fn is_second(header: &[u8]) -> bool {
    header.first() == Some(&b'\r')
}

/// How many bytes the header surely has beyond these; none, if that is all of it.
fn missing(header: &[u8]) -> Option<usize> {
    let missing = match (header.len(), header.get(14..FIXED)) {
        (0, _) => FIXED - 1,
        (length, Some([high, low])) if is_second(header) => {
            (FIXED + usize::from(u16::from_be_bytes([*high, *low]))).saturating_sub(length)
        }
        (length, _) if is_second(header) => FIXED.saturating_sub(length),
        // Byte by byte, since its end is known when it is there; a balancer sends one to begin with, not many.
        _ => usize::from(!header.ends_with(b"\r\n")),
    };
    (missing > 0).then_some(missing)
}
