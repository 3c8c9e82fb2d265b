//! Parses hosts and addresses; the errors suggest a correction. Pure; called by the formats in `value`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{reader::shown, service::PeerAddress};

/// An address to listen on.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let hint = if text.bytes().any(|b| b.is_ascii_alphabetic()) && !text.starts_with('[') {
            "; a name cannot be listened on"
        } else {
            ""
        };
        format!("{} is not IP:port{hint}; write 0.0.0.0:8080, 127.0.0.1:8080 or [::]:8080", shown(text))
    })
}

/// A network, or a single address. Both are returned as a network.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| format!("{} is not a network; write 10.0.0.0/8, fd00::/8 or 192.168.1.4", shown(text)))?;
    if let IpNet::V6(mapped) = network
        && let Some(ipv4) = mapped.network().to_ipv4_mapped()
        && let Some(prefix) = mapped.prefix_len().checked_sub(96)
    {
        let right = if prefix == 32 { ipv4.to_string() } else { format!("{ipv4}/{prefix}") };
        return Err(format!(
            "{} never matches, because IPv4 clients of an IPv6 listener count as IPv4; write {right}",
            shown(text)
        ));
    }
    Ok(network.trunc())
}

/// A peer's address.
pub(super) fn peer_address(text: &str) -> Result<PeerAddress, String> {
    const FORMS: &str = "write app-blue:8081, 10.0.0.7:8081 or [::1]:8081";
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split('/').next().unwrap_or_default();
        return Err(format!("{} has a scheme; leave out {scheme}:// and any path: {rest}", shown(text)));
    }
    let bad = |why: &str| format!("{} {why}; {FORMS}", shown(text));
    let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("has no port"))?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| bad("has no port from 1 to 65535"))?;
    if let Some(ipv6) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let ip: Ipv6Addr = ipv6.parse().map_err(|_| bad("is not an IPv6 address in brackets"))?;
        return Ok(PeerAddress { host: ip.to_string(), port });
    }
    if host.contains(':') {
        return Err(bad("needs brackets around its IPv6 address"));
    }
    if is_no_address(host) || !is_host_name(host) {
        return Err(bad("is not a host and a port"));
    }
    Ok(PeerAddress { host: host.to_ascii_lowercase(), port })
}

/// Labels of letters, digits and hyphens (RFC 1123), and underscores, which occur in names of containers.
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (1..=253).contains(&host.len()) && host.split('.').all(label)
}

/// A host in requests of clients, in lower case and without its final dot.
pub(super) fn host_pattern(text: &str) -> Result<String, String> {
    let host = text.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    if let Some(ip) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).and_then(|ip| ip.parse::<Ipv6Addr>().ok()) {
        // Normalized to the form that clients send (RFC 5952).
        return Ok(format!("[{ip}]"));
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    if is_host_name(name) && !is_no_address(name) {
        return Ok(host.to_owned());
    }
    let hint = match host {
        _ if is_no_address(host) => ", and no IPv4 address",
        _ if !host.is_ascii() => " in ASCII, with xn--",
        _ if host.contains(':') => " without a port",
        _ => "",
    };
    Err(format!("{} is not a host{hint}; write shop.example.com or *.example.com", shown(text)))
}

/// Whether a host looks like an IPv4 address but is not one, such as 10.0.0.256.
fn is_no_address(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_digit() || b == b'.') && host.parse::<Ipv4Addr>().is_err()
}

/// The Host header of a probe, with or without a port. Not a pattern: it would be sent literally, and match no host.
pub(super) fn probe_host(text: &str) -> Result<String, String> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && !name.ends_with(':') && !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port_is_fine = port.is_none_or(|port| port.parse().is_ok_and(|port: u16| port > 0));
    if port_is_fine && !name.starts_with('*') && host_pattern(name).is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!("{} is not a Host header; write shop.example.com, or shop.example.com:8080", shown(text)))
}

/// The name in a peer's certificate: one name or address, not a pattern, because certificates are matched against one name.
pub(super) fn server_name(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let is_address = name.parse::<IpAddr>().is_ok();
    if is_address || is_host_name(&name) && !is_no_address(&name) && !name.ends_with('.') {
        return Ok(name);
    }
    let hint = match name.strip_suffix('.') {
        _ if name.starts_with("*.") => ", and a pattern matches no certificate".to_owned(),
        Some(without) if is_host_name(without) => format!(", and no certificate has the dot at its end: {without}"),
        _ => String::new(),
    };
    Err(format!(
        "{} is not the name of a server{hint}; write shop.internal, one of the names in the peers' certificate",
        shown(text)
    ))
}

/// A name for a certificate from an ACME authority. Not a wildcard, which http-01 cannot validate (RFC 8555, section 8.3).
pub(super) fn dns_name(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    if let Some(without) = name.strip_suffix('.').filter(|name| is_host_name(name)) {
        return Err(format!("{} ends with a dot, which no certificate has; write {without}", shown(text)));
    }
    if is_host_name(&name) && name.parse::<IpAddr>().is_err() {
        return Ok(name);
    }
    let hint = if name.starts_with("*.") { ", and http-01 cannot validate a wildcard" } else { "" };
    Err(format!("{} is not a host{hint}; write shop.example.com", shown(text)))
}

/// The URL of a hook. It has no user and password, which a log would show.
pub(super) fn http_url(text: &str) -> Result<http::Uri, String> {
    let uri = text.parse::<http::Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    let uri = uri.filter(|uri| uri.host().is_some_and(|host| !host.is_empty()) && !text.contains(['@', '#']));
    uri.ok_or_else(|| format!("{} is not a URL; write http://host:port/path or https://host/path", shown(text)))
}

/// The directory URL of an ACME authority.
pub(super) fn https_url(text: &str) -> Result<String, String> {
    let uri = text.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
    uri.map(|_| text.to_owned())
        .ok_or_else(|| format!("{} is not an https:// URL; write https://acme.example.com/directory", shown(text)))
}

/// A mail address. Checks only its form.
pub(super) fn mail_address(text: &str) -> Result<String, String> {
    let fine = text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && is_host_name(host))
        && text.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(text.to_owned()) } else { Err(format!("{} is not a mail address; write ops@example.com", shown(text))) }
}
