//! What the file says of a listener. See `model`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    format::{As, List, Maybe, OrOff},
    value::{DAY, DnsName, File, HttpsUrl, ListenAddress, MailAddress, Number, Span},
};

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
const SECOND: Duration = Duration::from_secs(1);

/// One address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// IP address and port: `0.0.0.0:8080`, or `[::]:8080` for IPv6 and IPv4. Port 0 takes a free one.
    #[serde(with = "As::<ListenAddress>")]
    #[schemars(example = &"0.0.0.0:8080")]
    pub address: SocketAddr,
    /// TLS 1.2 and 1.3 for clients, HTTP/2 and HTTP/1.1. Without this key no TLS. Certificate files are read again
    /// each second, and each pair is renewed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Redirects clients to `https://`, except for `/.well-known/acme-challenge/`.
    #[serde(default)]
    pub redirect_to_https: bool,
    /// Connections from `trusted_proxies` begin with a PROXY protocol header, version 1 or 2.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Limits on clients.
    #[serde(default)]
    pub limits: Limits,
}

/// TLS for clients.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificates from files. The first one is for names that no other has. Required without `acme`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1), example = json!([{"certificate": "tls/shop.crt", "key": "tls/shop.key"}]))]
    pub certificates: Vec<Certificate>,
    /// A certificate from an ACME authority. Until there is one, clients get those of `certificates`, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
    /// PEM file of the authorities that sign client certificates; clients then have to present one. Without this key none is
    /// asked for.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// A certificate from an ACME authority (RFC 8555), validated with `http-01`: the authority connects to port 80 of each name, which
/// has to lead to a listener without `tls`. Renewed after two thirds of its lifetime. Using it accepts the authority's terms of
/// service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// DNS names of the certificate, without wildcards. Listeners with the same list and `store` share the certificate; lists
    /// that only overlap need another `store`.
    #[serde(default, with = "List::<DnsName>")]
    #[schemars(!default, length(min = 1), extend("uniqueItems" = true), example = ["shop.example.com"])]
    pub names: Vec<String>,
    /// A folder that outlives restarts, for the account and the certificate; relative to the configuration file's folder.
    #[serde(with = "As::<File>")]
    #[schemars(example = &"/var/lib/switchover")]
    pub store: PathBuf,
    /// The authority's directory URL. The default is Let's Encrypt; its staging directory is
    /// `https://acme-staging-v02.api.letsencrypt.org/directory`.
    #[serde(default = "lets_encrypt", with = "As::<HttpsUrl>")]
    pub directory: String,
    /// A mail address for the authority's messages; without this key it has none.
    #[serde(default, with = "As::<Maybe<MailAddress>>", skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// PEM file of the authorities that sign the certificate of the directory's server; relative to the configuration file's
    /// folder. Without this key the authorities that browsers trust.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// A certificate chain and its private key. Relative paths start in the configuration file's folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// PEM file of the chain, the server's own certificate first.
    #[serde(with = "As::<File>")]
    #[schemars(example = &"tls/shop.crt")]
    pub certificate: PathBuf,
    /// PEM file of the private key.
    #[serde(with = "As::<File>")]
    #[schemars(example = &"tls/shop.key")]
    pub key: PathBuf,
}

/// Limits on the clients of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Time from the first byte of a connection or of a request to the end of the request's header, TLS handshake and PROXY
    /// protocol header included. Later: 408.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub header_timeout: Duration,
    /// A connection without a request is closed after this time.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub idle_timeout: Duration,
    /// Bytes per second that a client has to send of a request's body, or to acknowledge by TCP of a response (HTTP/2: all streams
    /// of a connection together); `off`: any rate. A slower client uses up its `stall_timeout`.
    #[serde(with = "As::<OrOff<Number<u32, 1, 1_000_000_000>>>")]
    pub min_rate: Option<u32>,
    /// How long a client may be slower than `min_rate` in total; being faster gives it time back. Longer: 408, or the connection
    /// is closed. A reader gets up to twice as long where one TCP segment takes that long at `min_rate`, since a smaller read
    /// cannot be seen.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub stall_timeout: Duration,
    /// Bytes of a request's whole header. More: 431.
    #[serde(with = "As::<Number<usize, 256, 1_048_576>>")]
    pub header_bytes: usize,
    /// Fields of a request's header. More: 431.
    #[serde(with = "As::<Number<usize, 1, 200>>")]
    pub header_count: usize,
    /// Bytes of a request's method, target and version. More: 414.
    #[serde(with = "As::<Number<usize, 64, 1_048_576>>")]
    pub request_line_bytes: usize,
    /// Bytes of a request's body, chunked or not; `off`: any length. More: 413.
    #[serde(with = "As::<OrOff<Number<u64, 0, LONGEST_BODY>>>")]
    pub body_bytes: Option<u64>,
    /// Requests after which a connection is closed.
    #[serde(with = "As::<Number<u32, 1, 4_294_967_295>>")]
    pub requests_per_connection: u32,
    /// Connections at a time. More: 503.
    #[serde(with = "As::<Number<usize, 1, 1_000_000>>")]
    pub connections: usize,
    /// Connections at a time of one client address; `off`: as many as `connections`. More: 429.
    #[serde(with = "As::<OrOff<Number<usize, 1, 1_000_000>>>")]
    pub connections_per_client: Option<usize>,
    /// HTTP/2 requests at a time on one connection.
    #[serde(with = "As::<Number<u32, 1, 10_000>>")]
    pub streams_per_connection: u32,
    /// Responses at a time that wait for their clients to read; each holds up to 256 KiB. More: new requests get 503.
    #[serde(with = "As::<Number<usize, 1, 1_000_000>>")]
    pub unread_responses: usize,
    /// Forwards header fields with `_` in their names. They are dropped otherwise, since many applications read `_` as `-`.
    pub underscores_in_headers: bool,
}

/// Of which twice still is a number of bytes.
const LONGEST_BODY: u64 = u64::MAX >> 1;

fn lets_encrypt() -> String {
    LETS_ENCRYPT.to_owned()
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
            streams_per_connection: 64,
            unread_responses: 1000,
            underscores_in_headers: false,
        }
    }
}
