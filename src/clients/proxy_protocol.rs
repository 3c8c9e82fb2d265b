//! Reads the PROXY protocol header, version 1 or 2, in which a TCP load balancer passes the address of its client.
//!
//! Called by [`crate::clients`] before any other byte of a connection is read, and only for addresses in `trusted_proxies`: the
//! header can claim any address. Specification: haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::reject::Rejection;

/// The longest header: for version 1 as specified, for version 2 more than all extensions in use need.
const LONGEST_V1: usize = 107;
const LONGEST_V2: usize = 4096;
/// The fixed part of version 2. The shortest header of version 1, "PROXY UNKNOWN\r\n", is one byte shorter.
const FIXED: usize = 16;

/// Reads the header and no byte after it. Returns the client's address, or none if the header has no address, as in the load
/// balancer's own health checks. The error is none if the connection was closed without a byte.
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

/// How many further bytes the header has at least; none if it is complete.
fn missing(header: &[u8]) -> Option<usize> {
    let missing = match (header.len(), header.get(14..FIXED)) {
        (0, _) => FIXED - 1,
        (length, Some([high, low])) if is_second(header) => {
            (FIXED + usize::from(u16::from_be_bytes([*high, *low]))).saturating_sub(length)
        }
        (length, _) if is_second(header) => FIXED.saturating_sub(length),
        // Byte by byte: only CR LF marks the end of version 1, and each connection has only one header.
        _ => usize::from(!header.ends_with(b"\r\n")),
    };
    (missing > 0).then_some(missing)
}
