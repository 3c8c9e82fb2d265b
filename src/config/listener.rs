//! The types of a listener's configuration. See `model`.

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
    /// IP address and port: `0.0.0.0:8080`, or `[::]:8080` for IPv6 and IPv4. Port 0 chooses a free port.
    #[serde(with = "As::<ListenAddress>")]
    #[schemars(example = &"0.0.0.0:8080")]
    pub address: SocketAddr,
    /// TLS 1.2 and 1.3 for clients, HTTP/2 and HTTP/1.1. Default: no TLS. Certificate files are read again every second;
    /// each certificate is replaced separately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Redirects clients to `https://`, except for `/.well-known/acme-challenge/`.
    #[serde(default)]
    pub redirect_to_https: bool,
    /// Connections from `trusted_proxies` start with a PROXY protocol header, version 1 or 2.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// The pool that its requests go to. A client of a listener with `standby` reaches an application that is not released.
    #[serde(default)]
    pub pool: ServedPool,
    /// Limits on clients.
    #[serde(default)]
    pub limits: Limits,
}

/// The pool that a listener's requests go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServedPool {
    /// The active pool.
    #[default]
    Active,
    /// The pool that is not active, of a service with two pools. Requests of other services get 503.
    Standby,
}

/// TLS for clients.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificates from files. The first one is the default, for names that no other certificate has. Required without `acme`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1), example = json!([{"certificate": "tls/shop.crt", "key": "tls/shop.key"}]))]
    pub certificates: Vec<Certificate>,
    /// A certificate from an ACME authority. Until it is issued, clients get those of `certificates`, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
    /// PEM file of the authorities that sign client certificates; clients then must present one. Default: no client certificates.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// A certificate from an ACME authority (RFC 8555), validated with `http-01`: the authority connects to port 80 of each name,
/// which must be a listener without `tls`. Renewed after two thirds of its lifetime. Using it accepts the authority's terms of
/// service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// DNS names of the certificate, without wildcards. Listeners with the same list and `store` share the certificate; lists
    /// that overlap but differ need different stores.
    #[serde(default, with = "List::<DnsName>")]
    #[schemars(!default, length(min = 1), extend("uniqueItems" = true), example = ["shop.example.com"])]
    pub names: Vec<String>,
    /// A persistent folder for the account and the certificate; relative to the configuration file's folder.
    #[serde(with = "As::<File>")]
    #[schemars(example = &"/var/lib/switchover")]
    pub store: PathBuf,
    /// The authority's directory URL. The default is Let's Encrypt; its staging directory is
    /// `https://acme-staging-v02.api.letsencrypt.org/directory`.
    #[serde(default = "lets_encrypt", with = "As::<HttpsUrl>")]
    pub directory: String,
    /// A mail address for messages of the authority. Default: none.
    #[serde(default, with = "As::<Maybe<MailAddress>>", skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// PEM file of the authorities that sign the certificate of the directory's server; relative to the configuration file's
    /// folder. Default: the authorities that browsers trust.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// A certificate chain and its private key. Paths are relative to the configuration file's folder.
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
    /// Time from the first byte of a connection or of a request to the end of the request's header, including the TLS handshake
    /// and the PROXY protocol header. After that: 408.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub header_timeout: Duration,
    /// Time after which a connection without a request is closed.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub idle_timeout: Duration,
    /// Minimum rate of a client, in bytes per second: of a request's body that it sends, or of a response that it acknowledges by
    /// TCP (HTTP/2: all streams of a connection together). `off`: no minimum. A slower client uses up its `stall_timeout`.
    #[serde(with = "As::<OrOff<Number<u32, 1, 1_000_000_000>>>")]
    pub min_rate: Option<u32>,
    /// Total time that a client may be slower than `min_rate`; it regains time while it is faster. After that: 408, or the
    /// connection is closed. A client that reads gets up to twice that time if one TCP segment takes that long at `min_rate`,
    /// because smaller reads are not visible.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub stall_timeout: Duration,
    /// Maximum size of a request's header, in bytes. Larger: 431.
    #[serde(with = "As::<Number<usize, 256, 1_048_576>>")]
    pub header_bytes: usize,
    /// Maximum number of fields in a request's header. More: 431.
    #[serde(with = "As::<Number<usize, 1, 200>>")]
    pub header_count: usize,
    /// Maximum size of a request's method, target and version, in bytes. Larger: 414.
    #[serde(with = "As::<Number<usize, 64, 1_048_576>>")]
    pub request_line_bytes: usize,
    /// Maximum size of a request's body, in bytes, chunked or not; `off`: no limit. Larger: 413.
    #[serde(with = "As::<OrOff<Number<u64, 0, LONGEST_BODY>>>")]
    pub body_bytes: Option<u64>,
    /// Number of requests after which a connection is closed.
    #[serde(with = "As::<Number<u32, 1, 4_294_967_295>>")]
    pub requests_per_connection: u32,
    /// Maximum number of open connections. More: 503.
    #[serde(with = "As::<Number<usize, 1, 1_000_000>>")]
    pub connections: usize,
    /// Maximum number of open connections from one client address; `off`: only `connections` limits it. More: 429.
    #[serde(with = "As::<OrOff<Number<usize, 1, 1_000_000>>>")]
    pub connections_per_client: Option<usize>,
    /// Maximum number of concurrent HTTP/2 requests on one connection.
    #[serde(with = "As::<Number<u32, 1, 10_000>>")]
    pub streams_per_connection: u32,
    /// Maximum number of responses that wait for their clients to read; each holds up to 256 KiB. More: new requests get 503.
    #[serde(with = "As::<Number<usize, 1, 1_000_000>>")]
    pub unread_responses: usize,
    /// Forwards header fields with `_` in their names. Default: they are dropped, because many applications read `_` as `-`.
    pub underscores_in_headers: bool,
}

/// Half of the largest `u64`, so that twice this value does not overflow.
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
