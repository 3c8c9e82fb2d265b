//! The types of a service's configuration: its routes, pools, probes and connections to peers. See `model`.

use std::{collections::BTreeMap, fmt, marker::PhantomData, ops::RangeInclusive, path::PathBuf, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{
    canary::Canary,
    format::{As, Form, Format, List, Map, Maybe},
    mirror::Mirror,
    preview::Preview,
    promotion::Promotion,
    schema::{is_http, without_http_keys},
    spot::key,
    value::{
        Address, CookieName, DAY, ErrorStatus, File, HOUR, HeaderField, HeaderName, HeaderText, HostPattern, Label, Name, Number,
        PathPrefix, ProbeHost, ProbePath, Reference, ServerName, Span, Statuses, Weight,
    },
};

const SECOND: Duration = Duration::from_secs(1);

/// Hosts and paths, and the pools of peers that can serve their requests.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = hash_for_balance)]
pub struct Service {
    /// Hosts without a port: `shop.example.com`, or `*.example.com`, where the `*` matches any name. Empty: any host.
    #[serde(default, with = "List::<HostPattern>")]
    #[schemars(extend("uniqueItems" = true))]
    pub hosts: Vec<String>,
    /// Prefix of the path, in whole segments: `/api` matches `/api` and `/api/x`, not `/apix`. Compared with the normalized path
    /// of a request: decoded, and with `.`, `..` and `//` resolved.
    #[serde(default = "root", with = "As::<PathPrefix>")]
    pub path_prefix: String,
    /// The pool that serves. To change it, edit this line or run `switchover promote`.
    #[serde(default, with = "As::<Reference>")]
    #[schemars(!default, example = &"blue")]
    pub active: String,
    /// Pools by name, usually two. A name has letters, digits, `-` and `_`, at most 63.
    #[serde(default, with = "Map::<Name, Pool>")]
    #[schemars(!default, extend("minProperties" = 1), example = json!({"blue": {"peers": ["127.0.0.1:8081"]}}))]
    pub pools: BTreeMap<String, Pool>,
    /// Probes of peers. Every peer of every pool is probed, active or not.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// The promotion of another pool.
    #[serde(default)]
    pub promotion: Promotion,
    /// The drain of the old pool.
    #[serde(default)]
    pub drain: Drain,
    /// Connections to peers.
    #[serde(default)]
    pub upstream: Upstream,
    /// The choice of a peer for a request.
    #[serde(default)]
    pub balance: Balance,
    /// What `balance: hash` takes from a request: exactly one of these keys. A request without it goes to the peer with the fewest
    /// running requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashBy>,
    /// Time in which the share of a peer that has become ready grows from a tenth of its weight to all of it. `0s`: at once.
    #[serde(default, with = "As::<Span<0, HOUR>>")]
    pub slow_start: Duration,
    /// Files with pages for the error responses of switchover itself, by status (400 to 599): HTML in UTF-8, in regular files of at
    /// most 256 KiB. `{request_id}` is replaced by the ID of the request. Relative to the configuration file's folder, and read again on each reload.
    #[serde(default, with = "Map::<ErrorStatus, ErrorPage>")]
    pub error_pages: BTreeMap<u16, ErrorPage>,
    /// Limits on one request.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How many other peers to try when connecting to a peer fails.
    #[serde(default = "two", with = "As::<Number<usize, 0, 10>>")]
    pub retries: usize,
    /// When no peer is ready: `true` tries the peers that were ready before, `false` responds with 503.
    #[serde(default = "yes")]
    pub fail_open: bool,
    /// Requests that choose their pool, to test one that is not active. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<Preview>,
    /// Copies of requests for a pool that is not active, to compare its responses. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// A share of the clients for a pool that is not active. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// The peers of one release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Label of the release, for the status and the metric `active_pool`; one line of at most 100 characters.
    #[serde(default, with = "As::<Maybe<Label>>", skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Peers, each `host:port` or `{address: host:port, weight: 3}`.
    #[serde(default, with = "List::<PeerForm>")]
    #[schemars(!default, length(min = 1), extend("uniqueItems" = true), example = ["app-blue:8081"])]
    pub peers: Vec<Peer>,
}

/// One server of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Host name, IPv4 address or IPv6 address in brackets, and a port.
    #[serde(with = "As::<Address>")]
    #[schemars(example = &"app-blue:8081")]
    pub address: PeerAddress,
    /// Share of the requests, relative to the other peers of the pool.
    #[serde(default = "one", with = "As::<Weight>")]
    pub weight: u16,
}

/// A peer's address as written in the file: `app-blue:8081`, `10.0.0.7:8081`, `[::1]:8081`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

/// Probes of peers.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = without_http_keys)]
pub struct HealthCheck {
    /// `true`: a probe only connects; with `upstream.tls` and without `port` it also makes the TLS handshake. Excludes `path`,
    /// `host`, `headers` and `expect_status`.
    pub tcp: bool,
    /// Path and query of the GET request.
    #[serde(with = "As::<ProbePath>")]
    #[schemars(transform = is_http)]
    pub path: String,
    /// The Host header. Default: the peer's address.
    #[serde(with = "As::<Maybe<ProbeHost>>", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = is_http)]
    pub host: Option<String>,
    /// Additional headers, by name. `check --effective` does not show their values.
    #[serde(with = "Map::<HeaderName, Secret>")]
    #[schemars(transform = is_http)]
    pub headers: BTreeMap<String, Secret>,
    /// Statuses of a successful probe: `200`, `200-299`, or a list of these.
    #[serde(with = "As::<Statuses>")]
    #[schemars(transform = is_http)]
    pub expect_status: Vec<RangeInclusive<u16>>,
    /// Another port for probes, such as a management port. Default: the peer's port.
    #[serde(with = "As::<Maybe<Number<u16, 1, 65535>>>", skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Time between two probes of a peer.
    #[serde(with = "As::<Span<10, HOUR>>")]
    pub interval: Duration,
    /// Time limit of a probe, from connecting to the end of the response.
    #[serde(with = "As::<Span<10, HOUR>>")]
    pub timeout: Duration,
    /// Successful probes in a row until a peer is ready.
    #[serde(with = "As::<Number<u32, 1, 1000>>")]
    pub ready_after: u32,
    /// Failed probes in a row until a ready peer is not ready.
    #[serde(with = "As::<Number<u32, 1, 1000>>")]
    pub not_ready_after: u32,
}

/// The value of a probe's header. It may be a secret, so neither YAML nor `Debug` output contains it.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(#[serde(with = "As::<HeaderText>")] pub String);

/// An error page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct ErrorPage {
    /// Relative to the configuration file's folder.
    #[serde(with = "As::<File>")]
    pub file: PathBuf,
    /// The content of the file.
    #[serde(skip)]
    pub text: String,
}

/// The drain of the old pool.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long to wait for running requests of the old pool. After that, they still run, but switchover stops waiting.
    #[serde(with = "As::<Span<0, DAY>>")]
    pub timeout: Duration,
}

/// Connections to peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// Protocol of the peers. Probes use it too, unless `health_check.port` names another port.
    pub protocol: Protocol,
    /// TLS to the peers; `{}` is enough. Default: no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
}

/// Protocol of the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/2 without TLS, for most gRPC servers behind a proxy.
    H2c,
}

/// TLS to the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTls {
    /// PEM file of the authorities that sign the peers' certificates; relative to the configuration file's folder, and read again
    /// when it changes. Default: the authorities of the system.
    #[serde(with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The name in the peers' certificates, not a pattern. Default: the host in each peer's address.
    #[serde(with = "As::<Maybe<ServerName>>", skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// The choice of a peer for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The peer with the fewest running requests for its weight.
    #[default]
    LeastRequests,
    /// In turn, by weight.
    RoundRobin,
    /// Of two peers drawn by weight, the one with fewer running requests for its weight.
    Random,
    /// The same peer for the same value of what `hash` names, in shares by weight.
    Hash,
}

/// What `balance: hash` takes from a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = exactly_one)]
pub struct HashBy {
    /// The value of a header field, by its name.
    #[serde(with = "As::<Maybe<HeaderField>>", skip_serializing_if = "Option::is_none")]
    pub header: Option<http::HeaderName>,
    /// The value of a cookie, by its name.
    #[serde(with = "As::<Maybe<CookieName>>", skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// `true`: the client's address, as peers get it in `X-Real-IP`.
    pub client_address: bool,
}

/// Limits on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Time limit for connecting to a peer.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub connect: Duration,
    /// Time limit for the peer's response header, after the last part of the request's body is sent. Also the time limit for an
    /// HTTP/2 peer to accept the next part of the body, except for gRPC. Response bodies, streams and WebSockets have no limit.
    #[serde(with = "As::<Span<1, DAY>>")]
    pub response: Duration,
    /// Time after which an unused connection to a peer is closed. Keep it below the keep-alive timeout of the application
    /// (Tomcat: 20s).
    #[serde(with = "As::<Span<1, DAY>>")]
    pub idle: Duration,
}

/// A peer as keys, or only its address.
struct PeerForm;

impl Format for PeerForm {
    type Value = Peer;
    const FORMS: &'static str = "host:port or keys and values";

    fn read(text: &str) -> Result<Peer, String> {
        Ok(Peer { address: Address::read(text)?, weight: one() })
    }

    fn write(peer: &Peer) -> Value {
        json!(peer)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [Address::schema(generator), generator.subschema_for::<Peer>()]})
    }

    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Peer, D::Error> {
        deserializer.deserialize_any(Form::<Self>(PhantomData))
    }

    fn from_keys<'de, D: Deserializer<'de>>(keys: D) -> Result<Peer, D::Error> {
        Peer::deserialize(keys)
    }
}

/// `hash` is required with `balance: hash`, and not allowed with another balance.
fn hash_for_balance(schema: &mut Schema) {
    let (balance, hash) = (key!(Service, balance), key!(Service, hash));
    schema.insert("if".to_owned(), json!({"properties": {balance: {"const": Balance::Hash}}, "required": [balance]}));
    schema.insert("then".to_owned(), json!({"required": [hash]}));
    schema.insert("else".to_owned(), json!({"properties": {hash: false}}));
}

/// One key of [`HashBy`].
fn exactly_one(schema: &mut Schema) {
    let [header, cookie] = [key!(HashBy, header), key!(HashBy, cookie)].map(|key| json!({"required": [key]}));
    let key = key!(HashBy, client_address);
    let client_address = json!({"properties": {key: {"const": true}}, "required": [key]});
    schema.insert("oneOf".to_owned(), json!([header, cookie, client_address]));
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn root() -> String {
    "/".to_owned()
}

fn one() -> u16 {
    1
}

fn two() -> usize {
    2
}

fn yes() -> bool {
    true
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            tcp: false,
            path: "/actuator/health/readiness".to_owned(),
            host: None,
            headers: BTreeMap::new(),
            expect_status: vec![200..=299],
            port: None,
            interval: SECOND,
            timeout: SECOND,
            ready_after: 2,
            not_ready_after: 3,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout: 30 * SECOND }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: 2 * SECOND, response: 60 * SECOND, idle: 10 * SECOND }
    }
}
