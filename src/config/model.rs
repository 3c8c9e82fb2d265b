//! The types of the configuration: one type for each mapping of the file, one field for each key.
//!
//! Each key, its default and its range are declared here and nowhere else: serde reads and writes these types, schemars generates
//! the JSON Schema from them, and their comments are the descriptions in the documentation. The order of the fields is the order
//! in messages and tables. Listeners are in `listener`, services in `service`; `validate` checks relations between keys.
//!
//! A required key has a default for serde, so that the rest of a file without it is still checked, and none for the schema
//! (`schemars(!default)`); `structure` reports it as missing.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use http::Uri;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IntoDeserializer, value::StrDeserializer},
};
use serde_json::{Value, json};

use super::{
    format::{As, Form, Format, List, Map, Maybe},
    listener::Listener,
    reader::Fault,
    schema::is_static,
    service::Service,
    value::{DAY, File, HttpUrl, ListenAddress, Name, Network, Number, Span},
};

/// The default address of the admin API: loopback only.
pub const ADMIN_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// The configuration of switchover.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "switchover")]
pub struct Config {
    /// Addresses that clients connect to.
    #[serde(default)]
    #[schemars(!default, transform = is_static, length(min = 1), example = json!([{"address": "0.0.0.0:8080"}]))]
    pub listeners: Vec<Listener>,
    /// The admin API.
    #[serde(default)]
    #[schemars(transform = is_static)]
    pub admin: Admin,
    /// Number of worker threads for requests. Default: one per CPU.
    #[serde(default, with = "As::<Maybe<Number<usize, 1, 1024>>>", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = is_static)]
    pub threads: Option<usize>,
    /// How long a stopping process waits for running requests.
    #[serde(default = "thirty_seconds", with = "As::<Span<0, DAY>>")]
    pub shutdown_timeout: Duration,
    /// Networks and addresses of proxies in front of switchover. Their `X-Forwarded-*` and `X-Real-IP` headers are kept; those of
    /// all other clients are replaced. Write IPv4 addresses as IPv4, also for a listener on `[::]`.
    #[serde(default, with = "List::<Network>")]
    pub trusted_proxies: Vec<IpNet>,
    /// One line per request: `text` or `json` to standard output, `{format: json, file: FILE}`, or `off`.
    #[serde(default, with = "As::<LogOrOff>")]
    #[schemars(transform = is_static)]
    pub access_log: Option<AccessLog>,
    /// `propagate` adds a `traceparent` header to requests that have neither that nor B3 headers.
    #[serde(default)]
    pub tracing: Tracing,
    /// Notifications of swaps. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    /// A folder in which switchover records the pool that served last, for its next start; relative to the configuration file's
    /// folder. It must exist and be writable. Default: no record.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = is_static)]
    pub state_dir: Option<PathBuf>,
    /// Services by name. A name has letters, digits, `-` and `_`, at most 63.
    #[serde(default, with = "Map::<Name, Service>")]
    #[schemars(!default, extend("minProperties" = 1),
               example = json!({"shop": {"active": "blue", "pools": {"blue": {"peers": ["app-blue:8081"]}}}}))]
    pub services: BTreeMap<String, Service>,
}

/// Notifications of swaps.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// An `http://` or `https://` URL. It gets a POST request with a JSON object for each event of a swap.
    #[serde(with = "As::<HttpUrl>")]
    #[schemars(example = &"https://hooks.example.com/switchover")]
    pub url: Uri,
    /// A file with the secret of the signature in `X-Switchover-Signature`; relative to the configuration file's folder, read for
    /// each event. Default: no signature.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// The format of its lines.
    #[schemars(example = &"json")]
    pub format: LogFormat,
    /// The file to append to, relative to the configuration file's folder; reopened on SIGUSR1. Default: standard output.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// The format of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// The combined log format, with additional fields at the end.
    Text,
    /// A JSON object.
    Json,
}

/// Trace headers of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tracing {
    /// Trace headers pass unchanged.
    #[default]
    Off,
    /// A request without trace headers gets a `traceparent`.
    Propagate,
}

/// The admin API: health, metrics, status and commands.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// IP address and port of the admin API. Health and metrics need no token.
    #[serde(with = "As::<ListenAddress>")]
    pub address: SocketAddr,
    /// A file with the bearer token that everything under `/v1` requires, 16 characters or more; relative to the configuration
    /// file's folder, read for each request. Default: `/v1` accepts clients on loopback only.
    #[serde(with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// The access log: keys and values, only a format, or `off`.
struct LogOrOff;

impl Format for LogOrOff {
    type Value = Option<AccessLog>;
    const FORMS: &'static str = "text, json, off or keys and values";

    fn read(text: &str) -> Result<Self::Value, String> {
        if text == "off" {
            return Ok(None);
        }
        let format: StrDeserializer<'_, Fault> = text.into_deserializer();
        let format = LogFormat::deserialize(format).map_err(|fault| format!("{fault}, or off"))?;
        Ok(Some(AccessLog { format, file: None }))
    }

    fn write(log: &Self::Value) -> Value {
        log.as_ref().map_or("off".into(), |log| json!(log))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let [format, keys] = [generator.subschema_for::<LogFormat>(), generator.subschema_for::<AccessLog>()];
        json_schema!({"anyOf": [{"const": "off"}, format, keys]})
    }

    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(Form::<Self>(PhantomData))
    }

    fn from_keys<'de, D: Deserializer<'de>>(keys: D) -> Result<Self::Value, D::Error> {
        AccessLog::deserialize(keys).map(Some)
    }
}

fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: ADMIN_ADDRESS, token_file: None }
    }
}

/// Memory of the process itself, of probes, certificates and idle connections.
const OWN_MIB: usize = 32;
/// Memory of an HTTP/1 connection with a request, including TLS.
const REQUEST_KIB: usize = 64;
/// Additional memory of a response that its client does not read.
const UNREAD_KIB: usize = 192;

impl Config {
    /// Maximum number of client connections of all listeners together.
    pub fn connections(&self) -> usize {
        self.listeners.iter().map(|listener| listener.limits.connections).sum()
    }

    /// Maximum memory in MiB, with a request on each HTTP/1 connection and as many unread responses as the limits allow. Excludes
    /// HTTP/2: such a connection has up to `streams_per_connection` requests, and holds up to 4 MiB by default.
    pub fn memory_mib(&self) -> usize {
        let unread: usize = self.listeners.iter().map(|listener| listener.limits.unread_responses).sum();
        let unread = unread.min(self.connections());
        OWN_MIB + (self.connections() * REQUEST_KIB + unread * UNREAD_KIB).div_ceil(1024)
    }
}
