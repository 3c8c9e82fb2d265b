//! Active health checks: one probe, the rhythm of probes, and the reason when one fails.
//!
//! The controller runs one [`run`] task per peer for as long as the peer is in the file or drains, and one task of
//! [`super::proof`] per peer that a swap has to prove. A probe uses Pingora's connector, as requests do, but never a kept
//! connection: it has to show that a new request would get through.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use log::{info, warn};
use pingora::{
    BError, ErrorType,
    connectors::http::Connector,
    http::{RequestHeader, ResponseHeader},
    protocols::http::client::HttpSession,
    upstreams::peer::{HttpPeer, Peer as _},
};
use tokio::{net::TcpStream, sync::watch, time::timeout};

use super::{
    health::{Failure, ProbeResult, Thresholds},
    local::{is_local, local_cause},
    peer::Peer,
    upstream::Upstream,
};
use crate::config::{HealthCheck, Secret};

/// Between two passes of a new peer.
const NEW_PEER_GAP: Duration = Duration::from_millis(10);
/// How much of a failing answer's body is shown.
const BODY_SHOWN: usize = 120;
/// How much of an answer's body is read at most: enough to show, whatever the peer sends.
const BODY_READ: usize = 4096;

/// How a peer is probed.
#[derive(Clone)]
pub struct Settings {
    /// What to ask, how often, and how many answers count.
    pub check: Arc<HealthCheck>,
    /// How to speak to the peer.
    pub upstream: Arc<Upstream>,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.check == other.check && self.upstream.config() == other.upstream.config()
    }
}

/// Probes `peer` until the task is aborted: at once, then at the interval, with a little jitter so that many peers are not
/// probed in step; quickly after the first pass of a new peer. Changed settings start over at once, and an answer to the old
/// settings that is still awaited does not count. Without settings the probes rest.
pub async fn run(peer: Arc<Peer>, mut settings: watch::Receiver<Option<Settings>>, connector: Arc<Connector>) {
    loop {
        let current = settings.borrow_and_update().clone();
        let round = async {
            let Some(current) = current else { return std::future::pending().await };
            let was_ready = peer.health.was_ready();
            let result = observe(&peer, &current, &connector).await;
            let (took, passed) = (result.took, result.failure.is_none());
            if judge(&peer, result, &current.check) || !was_ready {
                peer.notify();
            }
            let interval = current.check.interval;
            tokio::time::sleep(match passed && !peer.health.was_ready() {
                true => NEW_PEER_GAP.min(interval),
                false => jittered(interval).saturating_sub(took),
            })
            .await;
        };
        tokio::select! {
            () = round => {}
            // A closed channel means that the controller has gone.
            changed = settings.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether the verdict is too old to be believed: the task that should renew it ended again and again.
pub fn is_stale(peer: &Peer, check: &HealthCheck) -> bool {
    let last = peer.health.record().last.and_then(|last| last.at.elapsed().ok());
    last.is_some_and(|age| age > 3 * (check.interval + check.timeout))
}

/// One probe, counted in the metrics.
pub(super) async fn observe(peer: &Peer, settings: &Settings, connector: &Connector) -> ProbeResult {
    let Settings { check, upstream } = settings;
    let began = Instant::now();
    let failure = match timeout(check.timeout, probe(peer, check, upstream, connector)).await {
        Ok(outcome) => outcome.err(),
        Err(_) => Some(Failure::Other(format!("no answer within {}", humantime::format_duration(check.timeout)))),
    };
    // The name of a stopped container disappears before its address is known to be dead, and explains more.
    let failure = failure.map(|failure| match failure {
        Failure::Local(_) => failure,
        _ => peer.unresolved().map_or(failure, Failure::Other),
    });
    let took = began.elapsed();
    peer.metrics.probe_duration.observe(took.as_secs_f64());
    match &failure {
        None => peer.metrics.probes_passed.inc(),
        Some(Failure::Local(reason)) => {
            let Peer { service, pool, address, .. } = peer;
            peer.metrics.probes_local.inc();
            warn!("cannot probe service={service} pool={pool} peer={address} reason={reason}");
        }
        Some(_) => peer.metrics.probes_failed.inc(),
    }
    if failure.is_some() {
        // The address may be one that this host cannot use; its name may have others.
        peer.connect_failed.notify_one();
    }
    ProbeResult { at: SystemTime::now(), took, failure }
}

/// Lets a probe count for the peer's verdict. Returns whether the verdict, or what is known of it, changed.
pub(super) fn judge(peer: &Peer, result: ProbeResult, check: &HealthCheck) -> bool {
    let thresholds = Thresholds { ready_after: check.ready_after, not_ready_after: check.not_ready_after };
    let failure = result.failure.clone();
    if matches!(failure, Some(Failure::Local(_))) {
        peer.health.not_probed(result);
        return true;
    }
    let changed = peer.health.probed(result, thresholds);
    if changed {
        let Peer { service, pool, address, .. } = peer;
        match failure {
            None => info!("peer is ready service={service} pool={pool} peer={address}"),
            Some(reason) => warn!("peer is not ready service={service} pool={pool} peer={address} reason={reason}"),
        }
    }
    changed
}

/// The interval, up to a tenth more or less.
pub(super) fn jittered(interval: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    interval.mul_f64(0.9 + 0.2 * random as f64 / 1000.0)
}

async fn probe(peer: &Peer, check: &HealthCheck, upstream: &Upstream, connector: &Connector) -> Result<(), Failure> {
    upstream.refresh().map_err(Failure::Other)?;
    let Some(target) = peer.target() else {
        return Err(Failure::Other(peer.unresolved().unwrap_or_else(|| format!("{} is not resolved yet", peer.address.host))));
    };
    let mut address = *target.addresses.first().ok_or_else(|| Failure::Other("not an IP address".to_owned()))?;
    if let Some(port) = check.port {
        address.set_port(port);
    }
    if check.tcp {
        return TcpStream::connect(address).await.map(drop).map_err(|e| match is_local(&e) {
            true => local_failure(&e, address),
            false => connect_failure(&e.to_string(), address, e.kind()),
        });
    }
    let host = check.host.clone().unwrap_or_else(|| peer.address.to_string());
    let mut http_peer = HttpPeer::new(address, false, String::new());
    // A port of its own is a management port, of another server within the application.
    if check.port.is_none() {
        upstream.apply(&mut http_peer, peer);
        // Never over a connection that requests share.
        http_peer.options.max_h2_streams = 1;
    }
    let (answer, body) = get(connector, &http_peer, &check.path, &host, &check.headers).await?;
    expected(&check.path, &check.expect_status, &answer, &body).map_err(Failure::Other)
}

async fn get(
    connector: &Connector,
    http_peer: &HttpPeer,
    path: &str,
    host: &str,
    headers: &BTreeMap<String, Secret>,
) -> Result<(ResponseHeader, Vec<u8>), Failure> {
    let other = |e: BError| Failure::Other(root_cause(&e));
    let address = *http_peer.address().as_inet().ok_or_else(|| Failure::Other("not an IP address".to_owned()))?;
    let connected = connector.get_http_session(http_peer).await;
    let (mut session, _) = connected.map_err(|e| match (local_cause(&e), e.etype()) {
        (Some(cause), _) => local_failure(cause, address),
        (None, ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError) => {
            Failure::Other(tls_failure(&e, address))
        }
        (None, _) => connect_failure(&root_cause(&e), address, io_kind(&e)),
    })?;
    let mut request = RequestHeader::build("GET", path.as_bytes(), Some(3 + headers.len())).map_err(other)?;
    request.insert_header("Host", host).map_err(other)?;
    request.insert_header("User-Agent", concat!("switchover/", env!("CARGO_PKG_VERSION"))).map_err(other)?;
    if session.as_http2().is_none() {
        request.insert_header("Connection", "close").map_err(other)?;
    }
    for (name, value) in headers {
        request.insert_header(name.clone(), value.0.as_str()).map_err(other)?;
    }
    exchange(&mut session, request).await.map_err(|e| match e.etype() {
        ErrorType::InvalidHTTPHeader => Failure::Other(format!("{address} does not answer in HTTP: {}", root_cause(&e))),
        _ => Failure::Other(format!("{address} closed the connection before it answered")),
    })
}

/// Reads the header and as much of the body as is worth showing.
async fn exchange(session: &mut HttpSession, request: RequestHeader) -> Result<(ResponseHeader, Vec<u8>), BError> {
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    session.read_response_header().await?;
    let header = session.response_header().cloned().ok_or_else(|| pingora::Error::new(ErrorType::InvalidHTTPHeader))?;
    let mut body = Vec::new();
    while body.len() < BODY_READ
        && let Ok(Some(chunk)) = session.read_response_body().await
    {
        body.extend_from_slice(&chunk);
    }
    Ok((header, body))
}

fn expected(path: &str, expected: &[RangeInclusive<u16>], answer: &ResponseHeader, body: &[u8]) -> Result<(), String> {
    let status = answer.status.as_u16();
    if expected.iter().any(|range| range.contains(&status)) {
        return Ok(());
    }
    let body = String::from_utf8_lossy(body);
    let body: String = body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(BODY_SHOWN).collect();
    let shown = format!("{status} {body}");
    let said = shown.trim_end();
    let actuator = path.contains("/actuator");
    Err(match status {
        404 if actuator => format!(
            "{said}: {path} is not there; set management.endpoint.health.probes.enabled=true in the application \
             (Spring Boot has it off outside Kubernetes up to 3.5), or health_check.path to a path that answers"
        ),
        301 | 302 | 303 | 307 | 308 => {
            let location = answer.headers.get(http::header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or("elsewhere");
            format!("{status} to {location}: security is in front of {path}; let it be read without a login")
        }
        401 | 403 => {
            format!("{said}: security is in front of {path}; let it be read without a login, or send health_check.headers")
        }
        _ => said.to_owned(),
    })
}

fn local_failure(cause: &std::io::Error, address: std::net::SocketAddr) -> Failure {
    Failure::Local(format!("this host cannot connect to {address}: {cause}; that says nothing about the peer"))
}

fn connect_failure(cause: &str, address: std::net::SocketAddr, kind: std::io::ErrorKind) -> Failure {
    Failure::Other(match kind {
        std::io::ErrorKind::ConnectionRefused => return Failure::Refused(address),
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
            format!("{address} is unreachable: {cause}")
        }
        std::io::ErrorKind::TimedOut => format!("no connection to {address} in time"),
        _ => format!("cannot connect to {address}: {cause}"),
    })
}

/// Pingora's context is a chain of its own errors, of which rustls' is the last.
fn tls_failure(error: &pingora::Error, address: std::net::SocketAddr) -> String {
    let context = error.context.as_ref().map_or("", |context| context.as_str());
    let cause = context.rsplit("cause: ").next().unwrap_or_default();
    format!("no TLS with {address}: {cause}; see upstream.tls.ca and upstream.tls.server_name")
}

fn root_cause(error: &pingora::Error) -> String {
    error.root_cause().to_string().trim().to_owned()
}

fn io_kind(error: &pingora::Error) -> std::io::ErrorKind {
    match error.etype() {
        ErrorType::ConnectRefused => std::io::ErrorKind::ConnectionRefused,
        ErrorType::ConnectTimedout => std::io::ErrorKind::TimedOut,
        ErrorType::ConnectNoRoute => std::io::ErrorKind::HostUnreachable,
        _ => std::io::ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(path: &str, status: u16, body: &str) -> String {
        let mut answer = ResponseHeader::build(status, None).unwrap();
        answer.insert_header("Location", "/login").unwrap();
        expected(path, &[200..=299], &answer, body.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_failing_answer_is_explained_with_spring_boot_in_mind() {
        let readiness = "/actuator/health/readiness";
        assert_eq!(reason(readiness, 503, "{\"status\":\"OUT_OF_SERVICE\"}\n"), "503 {\"status\":\"OUT_OF_SERVICE\"}");
        assert!(reason(readiness, 404, "").contains("management.endpoint.health.probes.enabled=true"));
        assert!(!reason("/healthz", 404, "").contains("management"));
        assert!(reason(readiness, 401, "").contains("security is in front of /actuator/health/readiness"));
        assert!(reason(readiness, 302, "").starts_with("302 to /login: security"));
        assert!(reason(readiness, 500, &"x".repeat(5000)).len() < 150);
        assert!(expected("/", &[200..=204, 301..=301], &ResponseHeader::build(301, None).unwrap(), b"").is_ok());
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let interval = jittered(Duration::from_secs(1));
            assert!((Duration::from_millis(900)..=Duration::from_millis(1100)).contains(&interval), "{interval:?}");
        }
    }
}
