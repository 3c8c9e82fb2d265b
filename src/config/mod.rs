//! The configuration: what a valid file says, as values that cannot be wrong.
//!
//! `check`, `run` and every reload come in through [`load`] and [`parse`]; nothing else reads the file. A [`Config`] that
//! exists is valid. Nothing here opens a socket, starts a task or knows what runs.

pub mod diff;
pub mod edit;
mod file;
mod listener;
mod problem;
mod reader;
mod validate;
mod value;
pub mod write;
mod yaml;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

pub(crate) use self::reader::nearest;
pub use self::{
    listener::{Acme, Certificate, Limits, Listener, Tls},
    problem::{LoadError, Problem, place},
};

/// Default admin address: loopback only.
pub const ADMIN_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect; static. Never empty.
    pub listeners: Vec<Listener>,
    /// The admin face; static.
    pub admin: Admin,
    /// Worker threads of the proxy; static. `None`: one per CPU.
    pub threads: Option<usize>,
    /// How long a stopping process waits for running requests. Default 30 s.
    pub shutdown_timeout: Duration,
    /// Clients whose forwarding headers are believed. Default: nobody.
    pub trusted_proxies: Vec<IpNet>,
    /// One line per request; none: none are written. Static.
    pub access_log: Option<AccessLog>,
    /// Whether a request without a `traceparent` is given one. Default false.
    pub tracing: bool,
    /// Where the pools that served last are remembered; relative to the configuration file's folder. Static.
    pub state_dir: Option<PathBuf>,
    /// By name. Never empty.
    pub services: BTreeMap<String, Service>,
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

/// Where requests are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// What a line looks like.
    pub format: LogFormat,
    /// Relative to the configuration file's folder; opened anew on SIGUSR1. Default: standard output.
    pub file: Option<PathBuf>,
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `text`: the combined format with more fields.
    Text,
    /// `json`: an object.
    Json,
}

/// The admin face.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Default `127.0.0.1:9901`.
    pub address: SocketAddr,
    /// Holds the bearer token that `/v1` asks for, read for each request. Without it `/v1` is for clients on loopback.
    pub token_file: Option<PathBuf>,
}

/// What a host and a path prefix lead to.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Lower case, without port, `*.example.com` allowed as the whole first label. Empty: any host.
    pub hosts: Vec<String>,
    /// Starts with `/`. Default `/`.
    pub path_prefix: String,
    /// Name of one of `pools`.
    pub active: String,
    /// By name. Never empty.
    pub pools: BTreeMap<String, Pool>,
    /// How peers are probed.
    pub health_check: HealthCheck,
    /// How long a pool may take to become ready before a swap is given up. Default 120 s.
    pub ready_timeout: Duration,
    /// How long a drain waits for running requests. Default 30 s.
    pub drain_timeout: Duration,
    /// How peers are spoken to. Default HTTP/1.1 in the clear.
    pub upstream: Upstream,
    /// How a peer is chosen. Default least requests.
    pub balance: Balance,
    /// What clients are shown instead of switchover's own words, by status.
    pub error_pages: BTreeMap<u16, ErrorPage>,
    /// Bounds on one request.
    pub timeouts: Timeouts,
    /// Further peers tried after one that could not be connected to. Default 2.
    pub retries: usize,
    /// Whether peers that were ready once are still tried when no peer is ready. Default true.
    pub fail_open: bool,
}

/// A named set of peers of one release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The release's label, for status and metrics.
    pub version: Option<String>,
    /// In the order of the file; never empty, no address twice.
    pub peers: Vec<Peer>,
}

/// One server of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub address: PeerAddress,
    /// Its share of requests, 1 to 1000. Default 1.
    pub weight: u16,
}

/// A peer's address as written in the file: `app-blue:8081`, `10.0.0.7:8081`, `[::1]:8081`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// A host name, an IPv4 or an IPv6 address without brackets.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

/// How peers are probed.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// HTTP or TCP.
    pub kind: ProbeKind,
    /// Another port than the peer's own, such as a management port.
    pub port: Option<u16>,
    /// Time between two probes. Default 1 s.
    pub interval: Duration,
    /// The overall deadline of one probe. Default 1 s.
    pub timeout: Duration,
    /// Passes in a row before a peer is ready. Default 2.
    pub ready_after: u32,
    /// Failures in a row before a ready peer is not. Default 3.
    pub not_ready_after: u32,
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq)]
pub enum ProbeKind {
    /// A connection, nothing else (`tcp: true`).
    Tcp,
    /// A GET.
    Http {
        /// Path and query. Default `/actuator/health/readiness`.
        path: String,
        /// The Host header; default: the peer's address.
        host: Option<String>,
        /// Further headers.
        headers: Vec<(String, String)>,
        /// Statuses that pass. Default 200-299.
        expect_status: Vec<RangeInclusive<u16>>,
    },
}

/// A page for an error, HTML in UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPage {
    /// Relative to the configuration file's folder.
    pub file: PathBuf,
    /// What is in it, read with the configuration; `{request_id}` stands for the request's id.
    pub text: String,
}

/// How peers are spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// Default HTTP/1.1.
    pub protocol: Protocol,
    /// TLS, if they speak it.
    pub tls: Option<UpstreamTls>,
}

/// What peers speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// `http1`.
    #[default]
    Http1,
    /// `h2`: HTTP/2 over TLS.
    H2,
    /// `h2c`: HTTP/2 in the clear, as gRPC servers behind a proxy do.
    H2c,
}

/// TLS towards peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Who signs their certificates, PEM; relative to the configuration file's folder. Default: whom the system trusts.
    pub ca: Option<PathBuf>,
    /// The name in their certificates. Default: the host of a peer's address.
    pub server_name: Option<String>,
}

/// How a peer is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// `least_requests`: the fewest requests in flight for its weight.
    LeastRequests,
    /// `round_robin`: in turn, by weight.
    RoundRobin,
}

/// Bounds on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting to a peer. Default 2 s.
    pub connect: Duration,
    /// Waiting for a peer's response header; a body, a stream or a WebSocket has no bound. Default 60 s.
    pub response: Duration,
    /// An unused connection to a peer is closed after this. Default 10 s: below Tomcat's 20 s.
    pub idle: Duration,
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

/// More than any configuration needs, and little enough to read at once.
const LARGEST_FILE: usize = 1024 * 1024;

/// The configuration that a text is.
///
/// # Errors
/// Every problem of it, in the order of their lines.
pub fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    let document = yaml::parse(text).map_err(|problem| vec![problem])?;
    let Some(document) = document else {
        return Err(vec![Problem::new("", "is empty; conf/minimal.yaml is a file to begin with")]);
    };
    let mut reader = reader::Reader::default();
    let config = file::read(&document, &mut reader);
    let mut problems = reader.problems;
    match config {
        Some(config) => {
            problems.extend(validate::problems(&config, &document));
            if problems.is_empty() {
                return Ok(config);
            }
        }
        None => debug_assert!(!problems.is_empty(), "a file that cannot be read without a reason"),
    }
    problems.sort_by_key(|problem| (problem.line, problem.column));
    Err(problems)
}

/// As [`parse`], with the error pages read from `folder`.
///
/// # Errors
/// Every problem, and every page that cannot be read.
pub fn parse_in(folder: &Path, text: &str) -> Result<Config, Vec<Problem>> {
    let mut config = parse(text)?;
    let mut problems = Vec::new();
    for (name, service) in &mut config.services {
        for (status, page) in &mut service.error_pages {
            let path = folder.join(&page.file);
            match fs::read(&path).map(String::from_utf8) {
                Ok(Ok(text)) if text.len() <= LARGEST_FILE => page.text = text,
                other => {
                    let why = match other {
                        Ok(Ok(_)) => format!("is longer than {LARGEST_FILE} bytes"),
                        Ok(Err(_)) => "is not UTF-8 text".to_owned(),
                        Err(e) => e.to_string(),
                    };
                    let at = format!("services.{name}.error_pages.{status}");
                    problems.push(Problem::new(&at, format!("{}: {why}", path.display())));
                }
            }
        }
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// Reads a file once, and gives its text and the configuration that it is.
///
/// # Errors
/// When it cannot be read, or is not valid.
pub fn load(path: &Path) -> Result<(String, Config), LoadError> {
    let text = read(path)?;
    match parse_in(path.parent().unwrap_or(Path::new("")), &text) {
        Ok(config) => Ok((text, config)),
        Err(mut problems) => {
            place(path, &text, &mut problems);
            Err(LoadError { problems })
        }
    }
}

/// Reads only the `admin` section, so that `status` works while the rest of the file is being edited.
///
/// # Errors
/// When the file cannot be read.
pub fn admin(path: &Path) -> Result<Admin, LoadError> {
    let document = yaml::parse(&read(path)?).unwrap_or_default();
    let admin = document.as_ref().and_then(|document| document.get("admin"));
    let text = |key| admin?.get(key)?.as_text();
    let address = text("address").and_then(|text| text.parse().ok()).unwrap_or(ADMIN_ADDRESS);
    let folder = path.parent().unwrap_or(Path::new(""));
    Ok(Admin { address, token_file: text("token_file").map(|file| folder.join(file)) })
}

fn read(path: &Path) -> Result<String, LoadError> {
    let failed = |problem| LoadError { problems: vec![Problem { file: path.display().to_string(), ..problem }] };
    let of_file = |message: String| failed(Problem::new("", message));
    let bytes = fs::read(path).map_err(|e| {
        of_file(match e.kind() {
            io::ErrorKind::NotFound => "there is no such file; name another with --config".to_owned(),
            io::ErrorKind::IsADirectory => "is a folder; name the file in it with --config".to_owned(),
            io::ErrorKind::PermissionDenied => "may not be read by this user; see its permissions".to_owned(),
            _ => format!("cannot be read: {e}"),
        })
    })?;
    if bytes.len() > LARGEST_FILE {
        return Err(of_file(format!("is {} bytes long, more than the {LARGEST_FILE} of any configuration", bytes.len())));
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes().iter().take(e.utf8_error().valid_up_to()).filter(|byte| **byte == b'\n').count();
        let message = "is not UTF-8 text; save it as UTF-8".to_owned();
        failed(Problem { line: Some(line), ..Problem::new("", message) })
    })
}

#[cfg(test)]
mod tests;
