//! What the file says, one type for each mapping of it and one field for each key.
//!
//! This is the only place that names a key, its default and its range: serde reads and writes these types, schemars makes the
//! JSON Schema of them, and the descriptions and tables that users read are these comments. Fields are in the order in which
//! messages and tables list them. Listeners are in `listener`, services in `service`; what keys have to do with each other is `validate`'s.
//!
//! A key that has to be there, but can be empty while the rest of a file is read, has a default for serde and none for the
//! schema (`schemars(!default)`); `structure` reports it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IntoDeserializer, value::StrDeserializer},
};
use serde_json::json;

use super::{
    format::{As, List, Map, Maybe, TextOr, text_or},
    listener::Listener,
    reader::Fault,
    schema::is_static,
    service::Service,
    value::{DAY, File, ListenAddress, Name, Network, Number, Span},
};

/// The default address of the admin API: loopback, so that it cannot be reached from outside until the file says so.
pub const ADMIN_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// The configuration of switchover.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "switchover")]
pub struct Config {
    /// Where clients connect.
    #[serde(default)]
    #[schemars(!default, transform = is_static, length(min = 1), example = json!([{"address": "0.0.0.0:8080"}]))]
    pub listeners: Vec<Listener>,
    /// The admin API.
    #[serde(default)]
    #[schemars(transform = is_static)]
    pub admin: Admin,
    /// Worker threads that serve requests; without this key one per CPU.
    #[serde(default, with = "As::<Maybe<Number<usize, 1, 1024>>>", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = is_static)]
    pub threads: Option<usize>,
    /// How long a stopping process waits for running requests.
    #[serde(default = "thirty_seconds", with = "As::<Span<0, DAY>>")]
    pub shutdown_timeout: Duration,
    /// Networks and addresses of proxies in front: their `X-Forwarded-*` and `X-Real-IP` headers are kept, those of all other
    /// clients are replaced. IPv4 is written as IPv4, also for a listener on `[::]`.
    #[serde(default, with = "List::<Network>")]
    pub trusted_proxies: Vec<IpNet>,
    /// One line per request: `text` or `json` to standard output, `{format: json, file: FILE}`, or `off`.
    #[serde(default, with = "LogOrOff")]
    #[schemars(transform = is_static)]
    pub access_log: Option<AccessLog>,
    /// `propagate` adds a `traceparent` header to a request that has neither that nor B3 headers.
    #[serde(default)]
    pub tracing: Tracing,
    /// A folder in which the pool that served last is remembered for a restart; relative to the configuration file's folder. It
    /// has to exist and be writable. Without this key nothing is remembered.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    #[schemars(transform = is_static)]
    pub state_dir: Option<PathBuf>,
    /// Services by name. A name has letters, digits, `-` and `_`, at most 63.
    #[serde(default, with = "Map::<Name, Service>")]
    #[schemars(!default, extend("minProperties" = 1),
               example = json!({"shop": {"active": "blue", "pools": {"blue": {"peers": ["app-blue:8081"]}}}}))]
    pub services: BTreeMap<String, Service>,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// What a line looks like.
    #[schemars(example = &"json")]
    pub format: LogFormat,
    /// The file to append to, relative to the configuration file's folder, opened again on SIGUSR1; without this key standard
    /// output.
    #[serde(default, with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// What a line of the access log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// The combined log format, with more fields at its end.
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
    /// file's folder, read for each request. Without this key `/v1` is for clients on loopback only.
    #[serde(with = "As::<Maybe<File>>", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// The access log as keys and values, as a format alone, or `off`.
struct LogOrOff;

impl LogOrOff {
    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AccessLog>, D::Error> {
        text_or(deserializer)
    }

    fn serialize<S: Serializer>(log: &Option<AccessLog>, serializer: S) -> Result<S::Ok, S::Error> {
        match log {
            Some(log) => log.serialize(serializer),
            None => serializer.serialize_str("off"),
        }
    }
}

impl TextOr for Option<AccessLog> {
    const EXPECTED: &'static str = "text, json, off or keys and values";

    fn from_text(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(None);
        }
        let format: StrDeserializer<'_, Fault> = text.into_deserializer();
        let format = LogFormat::deserialize(format).map_err(|fault| format!("{fault}, or off"))?;
        Ok(Some(AccessLog { format, file: None }))
    }

    fn from_keys<'de, D: Deserializer<'de>>(keys: D) -> Result<Self, D::Error> {
        AccessLog::deserialize(keys).map(Some)
    }
}

impl JsonSchema for LogOrOff {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "LogOrOff".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let [format, keys] = [generator.subschema_for::<LogFormat>(), generator.subschema_for::<AccessLog>()];
        json_schema!({"anyOf": [{"const": "off"}, format, keys]})
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

/// Of the process itself, and of probes, certificates and kept connections.
const OWN_MIB: usize = 32;
/// A connection of HTTP/1 with a request, TLS included.
const REQUEST_KIB: usize = 64;
/// What a response holds on top of that while its client does not read.
const UNREAD_KIB: usize = 192;

impl Config {
    /// Connections from clients that all listeners together allow at a time.
    pub fn connections(&self) -> usize {
        self.listeners.iter().map(|listener| listener.limits.connections).sum()
    }

    /// MiB that those need at most with a request on each, as many responses unread as the limits allow. HTTP/2 is not in it: each
    /// such connection has `streams_per_connection` requests, and holds up to 4 MiB by default.
    pub fn memory_mib(&self) -> usize {
        let unread: usize = self.listeners.iter().map(|listener| listener.limits.unread_responses).sum();
        let unread = unread.min(self.connections());
        OWN_MIB + (self.connections() * REQUEST_KIB + unread * UNREAD_KIB).div_ceil(1024)
    }
}
