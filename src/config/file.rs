//! The file's keys: what they are called, what they may be, what they are if left out.
//!
//! Called by `parse` alone. Looks at one value at a time; what values have to do with each other is `validate`'s.

use std::{collections::BTreeMap, time::Duration};

use super::{
    ADMIN_ADDRESS, AccessLog, Admin, Balance, Config, ErrorPage, HealthCheck, LogFormat, Peer, PeerAddress, Pool, ProbeKind,
    Protocol, Service, Timeouts, Upstream, UpstreamTls, listener,
    reader::{Field, Map, Reader, nearest, shown},
    value,
    yaml::{Kind, Node},
};

const SECOND: Duration = Duration::from_secs(1);
const PROBE_SHORTEST: Duration = Duration::from_millis(10);
const PROBE_LONGEST: Duration = Duration::from_secs(60 * 60);

/// Reads the whole file. What could not be read is left out, and is among the reader's problems.
pub(super) fn read(document: &Node, r: &mut Reader) -> Option<Config> {
    let mut map = r.map(&Field { at: String::new(), node: document })?;
    let listeners = r.required(&mut map, "listeners", "write: listeners: [{address: \"0.0.0.0:8080\"}]");
    let listeners = listeners.map(|field| listener::list(r, &field)).unwrap_or_default();
    let admin = map.get("admin").and_then(|field| admin_of(r, &field));
    let threads = map.get("threads").and_then(|field| r.value(&field, value::number(1..=1024, "")));
    let shutdown_timeout = r.value_or(&mut map, "shutdown_timeout", 30 * SECOND, value::patience);
    let trusted = map.get("trusted_proxies").map(|field| r.list(&field)).unwrap_or_default();
    let trusted_proxies = trusted.iter().filter_map(|field| r.value(field, value::network)).collect();
    let access_log = map.get("access_log").and_then(|field| access_log_of(r, &field));
    let tracing = r.value_or(&mut map, "tracing", false, tracing);
    let state_dir = map.get("state_dir").and_then(|field| r.value(&field, value::file));
    let services = r.required(&mut map, "services", "name at least one service with its pools");
    let services = services.map(|field| services_of(r, &field)).unwrap_or_default();
    r.finish(&map);
    let admin = admin.unwrap_or(Admin { address: ADMIN_ADDRESS, token_file: None });
    Some(Config { listeners, admin, threads, shutdown_timeout, trusted_proxies, access_log, tracing, state_dir, services })
}

/// `off`, a format, or a format and a file.
fn access_log_of(r: &mut Reader, field: &Field<'_>) -> Option<AccessLog> {
    if let Kind::Scalar { .. } = field.node.kind {
        let format = r.value(field, value::or_off(log_format))??;
        return Some(AccessLog { format, file: None });
    }
    let mut map = r.map(field)?;
    let format = r.required(&mut map, "format", "write text or json");
    let format = format.and_then(|field| r.value(&field, log_format));
    let file = map.get("file").and_then(|field| r.value(&field, value::file));
    r.finish(&map);
    Some(AccessLog { format: format?, file })
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{} is not allowed; use text, json or off", shown(text))),
    }
}

fn tracing(text: &str) -> Result<bool, String> {
    match text {
        "propagate" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{} is not allowed; use propagate or off", shown(text))),
    }
}

fn admin_of(r: &mut Reader, field: &Field<'_>) -> Option<Admin> {
    let mut map = r.map(field)?;
    let address = r.value_or(&mut map, "address", ADMIN_ADDRESS, value::listen_address);
    let token_file = map.get("token_file").and_then(|field| r.value(&field, value::file));
    r.finish(&map);
    Some(Admin { address, token_file })
}

fn services_of(r: &mut Reader, field: &Field<'_>) -> BTreeMap<String, Service> {
    let named = r.named(field, "service");
    let read = |(key, field): (&super::yaml::Key, Field<'_>), r: &mut Reader| {
        if let Err(message) = value::name(&key.name) {
            r.problem(&field.at, key.place, message);
        }
        Some((key.name.clone(), service_of(r, &field)?))
    };
    named.into_iter().filter_map(|entry| read(entry, r)).collect()
}

fn service_of(r: &mut Reader, field: &Field<'_>) -> Option<Service> {
    let mut map = r.map(field)?;
    let hosts = map.get("hosts").map(|field| r.list(&field)).unwrap_or_default();
    let hosts = hosts.iter().filter_map(|field| r.value(field, value::host_pattern)).collect();
    let path_prefix = r.value_or(&mut map, "path_prefix", "/".to_owned(), value::path_prefix);
    let active = r.required(&mut map, "active", "write the name of the pool that serves");
    let active_name = active.as_ref().and_then(|field| r.value(field, |text| Ok(text.to_owned())));
    let pools = r.required(&mut map, "pools", "write: pools: {blue: {peers: [\"127.0.0.1:8081\"]}}");
    let pools_are_there = pools.is_some();
    let pools = pools.map(|field| pools_of(r, &field)).unwrap_or_default();
    if let (Some(field), Some(name), true) = (&active, &active_name, pools_are_there)
        && !pools.contains_key(name)
    {
        let known: Vec<&str> = pools.keys().map(String::as_str).collect();
        let hint = nearest(name, known.iter().copied());
        r.problem(&field.at, field.node.place, format!("no pool {}; pools are {}{hint}", shown(name), known.join(", ")));
    }
    let health_check = map.get("health_check").and_then(|field| health_check_of(r, &field));
    let ready_timeout = one_of(r, &mut map, "promotion", "ready_timeout", 120 * SECOND, value::bound);
    let drain_timeout = one_of(r, &mut map, "drain", "timeout", 30 * SECOND, value::patience);
    let upstream = map.get("upstream").and_then(|field| upstream_of(r, &field)).unwrap_or_default();
    let balance = r.value_or(&mut map, "balance", Balance::LeastRequests, balance);
    let error_pages = map.get("error_pages").map(|field| error_pages_of(r, &field)).unwrap_or_default();
    let timeouts = map.get("timeouts").and_then(|field| timeouts_of(r, &field)).unwrap_or_default();
    let retries = r.value_or(&mut map, "retries", 2, value::number(0..=10, ""));
    let fail_open = r.value_or(&mut map, "fail_open", true, value::boolean);
    r.finish(&map);
    Some(Service {
        hosts,
        path_prefix,
        active: active_name.unwrap_or_default(),
        pools,
        health_check: health_check.unwrap_or_default(),
        ready_timeout,
        drain_timeout,
        upstream,
        balance,
        error_pages,
        timeouts,
        retries,
        fail_open,
    })
}

/// A mapping with a single key.
fn one_of<T>(
    r: &mut Reader,
    map: &mut Map<'_>,
    outer: &'static str,
    key: &'static str,
    default: T,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> T {
    let Some(mut inner) = map.get(outer).and_then(|field| r.map(&field)) else {
        return default;
    };
    let value = r.value_or(&mut inner, key, default, parse);
    r.finish(&inner);
    value
}

fn pools_of(r: &mut Reader, field: &Field<'_>) -> BTreeMap<String, Pool> {
    let mut pools = BTreeMap::new();
    for (key, field) in r.named(field, "pool") {
        if let Err(message) = value::name(&key.name) {
            r.problem(&field.at, key.place, message);
        }
        // A pool that cannot be read is still one that `active` may name.
        let pool = pool_of(r, &field).unwrap_or(Pool { version: None, peers: Vec::new() });
        pools.insert(key.name.clone(), pool);
    }
    pools
}

fn pool_of(r: &mut Reader, field: &Field<'_>) -> Option<Pool> {
    let mut map = r.map(field)?;
    let version = map.get("version").and_then(|field| r.value(&field, value::label));
    let peers = r.required(&mut map, "peers", "write: peers: [\"app-blue:8081\"]");
    let peers = peers.map(|field| peers_of(r, &field)).unwrap_or_default();
    r.finish(&map);
    Some(Pool { version, peers })
}

fn peers_of(r: &mut Reader, field: &Field<'_>) -> Vec<Peer> {
    let items = r.list(field);
    if field.is_empty() {
        r.problem(&field.at, field.node.place, "is empty; name at least one peer: [\"app-blue:8081\"]");
    }
    let mut peers: Vec<Peer> = Vec::new();
    for item in &items {
        let Some(peer) = peer_of(r, item) else { continue };
        if peers.iter().any(|known| known.address == peer.address) {
            r.problem(
                &item.at,
                item.node.place,
                format!("{} is there twice in this pool; keep one, and give it a weight", peer.address),
            );
        }
        peers.push(peer);
    }
    peers
}

fn peer_of(r: &mut Reader, field: &Field<'_>) -> Option<Peer> {
    if let Kind::Scalar { .. } = field.node.kind {
        return Some(Peer { address: r.value(field, value::peer_address)?, weight: 1 });
    }
    let mut map = r.map(field)?;
    let address = r.required(&mut map, "address", "write app-blue:8081, 10.0.0.7:8081 or [::1]:8081");
    let address: Option<PeerAddress> = address.and_then(|field| r.value(&field, value::peer_address));
    let weight = r.value_or(&mut map, "weight", 1, value::number(1..=1000, ", or remove the peer"));
    r.finish(&map);
    Some(Peer { address: address?, weight })
}

fn health_check_of(r: &mut Reader, field: &Field<'_>) -> Option<HealthCheck> {
    let mut map = r.map(field)?;
    let usual = HealthCheck::default();
    let tcp = r.value_or(&mut map, "tcp", false, value::boolean);
    let http = [map.get("path"), map.get("host"), map.get("headers"), map.get("expect_status")];
    let kind = if tcp {
        for field in http.into_iter().flatten() {
            r.problem(&field.at, field.node.place, "means nothing with tcp: true; remove one of the two");
        }
        ProbeKind::Tcp
    } else {
        let [path, host, headers, expect_status] = http;
        ProbeKind::Http {
            path: path.and_then(|field| r.value(&field, value::probe_path)).unwrap_or_else(|| DEFAULT_PATH.to_owned()),
            host: host.and_then(|field| r.value(&field, value::probe_host)),
            headers: headers.map(|field| headers_of(r, &field)).unwrap_or_default(),
            expect_status: expect_status.and_then(|field| statuses_of(r, &field)).unwrap_or_else(|| vec![200..=299]),
        }
    };
    let span = || value::duration(PROBE_SHORTEST, PROBE_LONGEST);
    let check = HealthCheck {
        kind,
        port: map.get("port").and_then(|field| r.value(&field, value::number(1..=65535, ""))),
        interval: r.value_or(&mut map, "interval", usual.interval, span()),
        timeout: r.value_or(&mut map, "timeout", usual.timeout, span()),
        ready_after: r.value_or(&mut map, "ready_after", usual.ready_after, value::number(1..=1000, "")),
        not_ready_after: r.value_or(&mut map, "not_ready_after", usual.not_ready_after, value::number(1..=1000, "")),
    };
    r.finish(&map);
    Some(check)
}

fn headers_of(r: &mut Reader, field: &Field<'_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for (key, field) in r.named(field, "header") {
        if key.name.eq_ignore_ascii_case("host") {
            r.problem(&field.at, key.place, "is set with health_check.host");
        } else if http::HeaderName::from_bytes(key.name.as_bytes()).is_err() {
            r.problem(&field.at, key.place, format!("{} is not a header's name", shown(&key.name)));
        } else if let Some(value) = r.value(&field, value::header_value) {
            headers.push((key.name.clone(), value));
        }
    }
    headers
}

fn statuses_of(r: &mut Reader, field: &Field<'_>) -> Option<Vec<std::ops::RangeInclusive<u16>>> {
    if let Kind::Scalar { .. } = field.node.kind {
        return r.value(field, value::statuses);
    }
    let ranges: Vec<_> = r.list(field).iter().filter_map(|item| r.value(item, value::statuses)).flatten().collect();
    if field.is_empty() {
        r.problem(&field.at, field.node.place, "is empty; write 200-299");
    }
    Some(ranges)
}

fn error_pages_of(r: &mut Reader, field: &Field<'_>) -> BTreeMap<u16, ErrorPage> {
    let mut pages = BTreeMap::new();
    for (key, field) in r.named(field, "status") {
        let status = key.name.parse().ok().filter(|status| (400..=599).contains(status));
        let file = r.value(&field, value::file);
        match (status, file) {
            (Some(status), Some(file)) => drop(pages.insert(status, ErrorPage { file, text: String::new() })),
            (None, _) => {
                let message = format!("{} is not the status of an error; use 400 to 599", shown(&key.name));
                r.problem(&field.at, key.place, message);
            }
            (Some(_), None) => {}
        }
    }
    pages
}

fn upstream_of(r: &mut Reader, field: &Field<'_>) -> Option<Upstream> {
    let mut map = r.map(field)?;
    let written = map.get("protocol");
    let protocol = written.as_ref().and_then(|field| r.value(field, protocol)).unwrap_or_default();
    let tls = map.get("tls").and_then(|field| {
        let mut inner = r.map(&field)?;
        let ca = inner.get("ca").and_then(|field| r.value(&field, value::file));
        let server_name = inner.get("server_name").and_then(|field| r.value(&field, value::server_name));
        r.finish(&inner);
        Some(UpstreamTls { ca, server_name })
    });
    match (&written, protocol, &tls) {
        (Some(field), Protocol::H2, None) => {
            r.problem(&field.at, field.node.place, "h2 is over TLS; write tls: {} beside it, or h2c");
        }
        (Some(field), Protocol::H2c, Some(_)) => {
            r.problem(&field.at, field.node.place, "h2c is without TLS; write h2, or leave out tls");
        }
        _ => {}
    }
    r.finish(&map);
    Some(Upstream { protocol, tls })
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "http1" => Ok(Protocol::Http1),
        "h2" => Ok(Protocol::H2),
        "h2c" => Ok(Protocol::H2c),
        _ => Err(format!(
            "{} is not allowed; use http1, h2 or h2c{}",
            shown(text),
            nearest(text, ["http1", "h2", "h2c"].into_iter())
        )),
    }
}

fn balance(text: &str) -> Result<Balance, String> {
    match text {
        "least_requests" => Ok(Balance::LeastRequests),
        "round_robin" => Ok(Balance::RoundRobin),
        _ => {
            let known = ["least_requests", "round_robin"];
            Err(format!("{} is not allowed; use {}{}", shown(text), known.join(" or "), nearest(text, known.into_iter())))
        }
    }
}

fn timeouts_of(r: &mut Reader, field: &Field<'_>) -> Option<Timeouts> {
    let mut map = r.map(field)?;
    let usual = Timeouts::default();
    let timeouts = Timeouts {
        connect: r.value_or(&mut map, "connect", usual.connect, value::bound),
        response: r.value_or(&mut map, "response", usual.response, value::bound),
        idle: r.value_or(&mut map, "idle", usual.idle, value::bound),
    };
    r.finish(&map);
    Some(timeouts)
}

const DEFAULT_PATH: &str = "/actuator/health/readiness";

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: ProbeKind::Http {
                path: DEFAULT_PATH.to_owned(),
                host: None,
                headers: Vec::new(),
                expect_status: vec![200..=299],
            },
            port: None,
            interval: SECOND,
            timeout: SECOND,
            ready_after: 2,
            not_ready_after: 3,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: 2 * SECOND, response: 60 * SECOND, idle: 10 * SECOND }
    }
}
