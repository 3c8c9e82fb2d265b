//! Listeners: what the file says of one, and how that is read.
//!
//! Called by `file` for the key `listeners`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    reader::{Field, Reader},
    value,
};

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const SECOND: Duration = Duration::from_secs(1);

/// One address clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// IP and port as written; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificates, if clients speak TLS here.
    pub tls: Option<Tls>,
    /// Whether requests are sent to `https://`, except those for `/.well-known/acme-challenge/`. Default false.
    pub redirect_to_https: bool,
    /// Whether those that `trusted_proxies` lists begin their connections with a PROXY protocol header. Default false.
    pub proxy_protocol: bool,
    /// What a client may ask of it.
    pub limits: Limits,
}

/// TLS for clients: 1.2 and 1.3, HTTP/2 and HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The first is for names that none of the others has. Never empty without `acme`.
    pub certificates: Vec<Certificate>,
    /// A certificate that an authority gives by itself.
    pub acme: Option<Acme>,
    /// Who signs the certificates that clients have to show; none are asked for without it.
    pub client_ca: Option<PathBuf>,
}

/// A certificate from an authority that speaks ACME, by the proof `http-01`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The DNS names that it is for, lower case, without wildcards. Never empty.
    pub names: Vec<String>,
    /// The folder that keeps the account and the certificate; relative to the configuration file's.
    pub store: PathBuf,
    /// The authority's directory, an `https://` URL. Default Let's Encrypt.
    pub directory: String,
    /// Whom it may write to.
    pub contact: Option<String>,
    /// Who has signed the certificate of the directory's server; relative to the configuration file's folder. Default: whom
    /// browsers trust.
    pub ca: Option<PathBuf>,
}

/// A certificate chain and its key, PEM files; relative to the configuration file's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a client may ask of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a header, or of a connection, to the end of the header. Default 10 s.
    pub header_timeout: Duration,
    /// A connection without a request is closed after this. Default 60 s.
    pub idle_timeout: Duration,
    /// Bytes per second, in either direction, below which a client uses up its `stall_timeout`; none: any rate. Default 500.
    pub min_rate: Option<u32>,
    /// How long a client may be slower than `min_rate`, all in all. Default 30 s.
    pub stall_timeout: Duration,
    /// All of a header. Default 16384.
    pub header_bytes: usize,
    /// Fields of a header, at most 200. Default 100.
    pub header_count: usize,
    /// Method, target and version. Default 8192.
    pub request_line_bytes: usize,
    /// A request body; none: any length. Default none.
    pub body_bytes: Option<u64>,
    /// Requests after which a connection is closed. Default 10000.
    pub requests_per_connection: u32,
    /// Connections at a time. Default 10000.
    pub connections: usize,
    /// Connections at a time of one client address; none: as many as there may be at all. Default none.
    pub connections_per_client: Option<usize>,
    /// HTTP/2 requests at a time on one connection. Default 50.
    pub streams_per_connection: u32,
    /// Responses at a time that wait for their clients to read; each holds up to 256 KiB. Default 1000.
    pub unread_responses: usize,
    /// Whether header fields with `_` in their names are sent on. Default false: they are dropped.
    pub underscores_in_headers: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: 10 * SECOND,
            idle_timeout: 60 * SECOND,
            min_rate: Some(500),
            stall_timeout: 30 * SECOND,
            header_bytes: 16 * 1024,
            header_count: 100,
            request_line_bytes: 8 * 1024,
            body_bytes: None,
            requests_per_connection: 10_000,
            connections: 10_000,
            connections_per_client: None,
            streams_per_connection: 50,
            unread_responses: 1000,
            underscores_in_headers: false,
        }
    }
}

/// All of them.
pub(super) fn list(r: &mut Reader, field: &Field<'_>) -> Vec<Listener> {
    let items = r.list(field);
    if field.is_empty() {
        r.problem(&field.at, field.node.place, "is empty; name at least one address: [{address: \"0.0.0.0:8080\"}]");
    }
    items.iter().filter_map(|item| listener_of(r, item)).collect()
}

fn listener_of(r: &mut Reader, field: &Field<'_>) -> Option<Listener> {
    let mut map = r.map(field)?;
    let address = r.required(&mut map, "address", "write IP:port, such as 0.0.0.0:8080");
    let address = address.and_then(|field| r.value(&field, value::listen_address));
    let tls = map.get("tls").and_then(|field| tls_of(r, &field));
    let redirect = map.get("redirect_to_https");
    let redirect_to_https = redirect.as_ref().and_then(|field| r.value(field, value::boolean)).unwrap_or(false);
    if let (true, Some(field), Some(_)) = (redirect_to_https, &redirect, &tls) {
        r.problem(&field.at, field.node.place, "makes a circle with tls; set it on the plain listener");
    }
    let proxy_protocol = r.value_or(&mut map, "proxy_protocol", false, value::boolean);
    let limits = map.get("limits").and_then(|field| limits_of(r, &field)).unwrap_or_default();
    r.finish(&map);
    Some(Listener { address: address?, tls, redirect_to_https, proxy_protocol, limits })
}

fn tls_of(r: &mut Reader, field: &Field<'_>) -> Option<Tls> {
    let mut map = r.map(field)?;
    let acme = map.get("acme");
    let list = match acme {
        Some(_) => map.get("certificates"),
        None => r.required(&mut map, "certificates", "write: certificates: [{certificate: tls/shop.crt, key: tls/shop.key}]"),
    };
    let acme = acme.and_then(|field| acme_of(r, &field));
    let items = list.as_ref().map(|field| r.list(field)).unwrap_or_default();
    if let Some(field) = list.filter(Field::is_empty) {
        r.problem(&field.at, field.node.place, "is empty; write: [{certificate: tls/shop.crt, key: tls/shop.key}]");
    }
    let certificates = items.iter().filter_map(|item| certificate_of(r, item)).collect();
    let client_ca = map.get("client_ca").and_then(|field| r.value(&field, value::file));
    r.finish(&map);
    Some(Tls { certificates, acme, client_ca })
}

fn acme_of(r: &mut Reader, field: &Field<'_>) -> Option<Acme> {
    let mut map = r.map(field)?;
    let names = r.required(&mut map, "names", "write: names: [shop.example.com]");
    let items = names.as_ref().map(|field| r.list(field)).unwrap_or_default();
    if let Some(field) = names.filter(Field::is_empty) {
        r.problem(&field.at, field.node.place, "is empty; write: [shop.example.com]");
    }
    let names = items.iter().filter_map(|item| r.value(item, value::dns_name)).collect();
    let store = r.required(&mut map, "store", "write the path of a folder that is kept, such as /var/lib/switchover");
    let store = store.and_then(|field| r.value(&field, value::file));
    let directory = r.value_or(&mut map, "directory", LETS_ENCRYPT.to_owned(), value::https_url);
    let contact = map.get("contact").and_then(|field| r.value(&field, value::mail_address));
    let ca = map.get("ca").and_then(|field| r.value(&field, value::file));
    r.finish(&map);
    Some(Acme { names, store: store?, directory, contact, ca })
}

fn certificate_of(r: &mut Reader, field: &Field<'_>) -> Option<Certificate> {
    let mut map = r.map(field)?;
    let [certificate, key] = [("certificate", "shop.crt"), ("key", "shop.key")].map(|(name, example)| {
        let field = r.required(&mut map, name, &format!("write the path of a PEM file, such as tls/{example}"));
        field.and_then(|field| r.value(&field, value::file))
    });
    r.finish(&map);
    Some(Certificate { certificate: certificate?, key: key? })
}

fn limits_of(r: &mut Reader, field: &Field<'_>) -> Option<Limits> {
    let mut map = r.map(field)?;
    let usual = Limits::default();
    let limits = Limits {
        header_timeout: r.value_or(&mut map, "header_timeout", usual.header_timeout, value::bound),
        idle_timeout: r.value_or(&mut map, "idle_timeout", usual.idle_timeout, value::bound),
        min_rate: r.value_or(&mut map, "min_rate", usual.min_rate, value::or_off(value::number(1..=1_000_000_000, ", or off"))),
        stall_timeout: r.value_or(&mut map, "stall_timeout", usual.stall_timeout, value::bound),
        header_bytes: r.value_or(&mut map, "header_bytes", usual.header_bytes, value::number(256..=1_048_576, "")),
        header_count: r.value_or(&mut map, "header_count", usual.header_count, value::number(1..=200, "")),
        request_line_bytes: r.value_or(
            &mut map,
            "request_line_bytes",
            usual.request_line_bytes,
            value::number(64..=1_048_576, ""),
        ),
        body_bytes: r.value_or(
            &mut map,
            "body_bytes",
            usual.body_bytes,
            value::or_off(value::number(0..=u64::MAX >> 1, ", or off")),
        ),
        requests_per_connection: r.value_or(
            &mut map,
            "requests_per_connection",
            usual.requests_per_connection,
            value::number(1..=u32::MAX, ""),
        ),
        connections: r.value_or(&mut map, "connections", usual.connections, value::number(1..=1_000_000, "")),
        connections_per_client: r.value_or(
            &mut map,
            "connections_per_client",
            usual.connections_per_client,
            value::or_off(value::number(1..=1_000_000, ", or off")),
        ),
        streams_per_connection: r.value_or(
            &mut map,
            "streams_per_connection",
            usual.streams_per_connection,
            value::number(1..=10_000, ""),
        ),
        unread_responses: r.value_or(&mut map, "unread_responses", usual.unread_responses, value::number(1..=1_000_000, "")),
        underscores_in_headers: r.value_or(&mut map, "underscores_in_headers", usual.underscores_in_headers, value::boolean),
    };
    r.finish(&map);
    Some(limits)
}
