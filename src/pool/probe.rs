//! Active health checks: one probe, the pace of probes, and the reason when one fails.
//!
//! The controller runs one [`run`] task per peer for as long as the peer is in the file or drains. A probe goes by Pingora's
//! connector, as requests do, but never over a kept connection: it has to prove that a new request would get through.

use std::{
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
    health::{ProbeResult, Thresholds},
    local::{is_local, local_cause},
    peer::Peer,
    upstream::Upstream,
};
use crate::config::{HealthCheck, ProbeKind};

/// Between two passes of a proof: long enough to be two looks, short enough not to be noticed in a swap.
const PROOF_GAP: Duration = Duration::from_millis(10);
/// Between a failure and the next probe while somebody waits: an application that starts should not wait for us.
const HURRY_GAP: Duration = Duration::from_millis(100);
/// How much of a failing answer's body is shown.
const BODY_SHOWN: usize = 120;
/// How much of an answer's body is read at most: enough to show, whatever the peer sends.
const BODY_READ: usize = 4096;

/// What a peer's probe task goes by; the controller changes it while the task runs.
#[derive(Clone)]
pub struct Pace {
    /// What to ask, how often, and how many answers count.
    pub check: Arc<HealthCheck>,
    /// How to speak to it.
    pub upstream: Arc<Upstream>,
    /// When the proof that waits for this peer began; none if nobody waits.
    pub proof: Option<Instant>,
}

/// Why a probe did not pass.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The peer failed it.
    Peer(String),
    /// It could not be sent, for want of something that is this process's or its host's.
    Local(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Peer(reason)
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Self::Peer(reason.to_owned())
    }
}

impl Failure {
    fn local(cause: &std::io::Error, address: std::net::SocketAddr) -> Self {
        Self::Local(format!("this host cannot connect to {address}: {cause}; that says nothing about the peer"))
    }
}

impl PartialEq for Pace {
    fn eq(&self, other: &Self) -> bool {
        self.check == other.check && self.proof == other.proof && self.upstream.config() == other.upstream.config()
    }
}

/// Probes `peer` for ever: at once, then at the interval, with a little jitter so that many peers are not probed in step;
/// quickly while a proof waits or while a new peer has yet to become ready.
pub async fn run(peer: Arc<Peer>, mut pace: watch::Receiver<Pace>, connector: Arc<Connector>) {
    loop {
        let Pace { check, upstream, proof } = pace.borrow_and_update().clone();
        let began = Instant::now();
        let outcome = timeout(check.timeout, probe(&peer, &check, &upstream, &connector))
            .await
            .unwrap_or_else(|_| Err(Failure::Peer(format!("no answer within {}", humantime::format_duration(check.timeout)))));
        let took = began.elapsed();
        let passed = outcome.is_ok();
        take_in(&peer, &check, proof, outcome, took);

        let proving = proof.is_some_and(|since| peer.health.proven(since) < check.ready_after);
        let rest = match passed {
            true if proving || !peer.health.was_ready() => PROOF_GAP.min(check.interval),
            false if proving => HURRY_GAP.min(check.interval),
            _ => jittered(check.interval).saturating_sub(took),
        };
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            // A changed pace is a reason to look at once; a closed channel means that the controller has gone.
            changed = pace.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether the verdict is too old to be believed: the task that should renew it ended again and again.
pub fn is_stale(peer: &Peer, check: &HealthCheck) -> bool {
    let last = peer.health.record().last.and_then(|last| last.at.elapsed().ok());
    last.is_some_and(|age| age > 3 * (check.interval + check.timeout))
}

/// Counts a probe, and passes its outcome on to the peer's health.
fn take_in(peer: &Peer, check: &HealthCheck, proof: Option<Instant>, outcome: Result<(), Failure>, took: Duration) {
    let Peer { service, pool, address, .. } = peer;
    peer.metrics.probe_duration.observe(took.as_secs_f64());
    let at = SystemTime::now();
    let failure = match outcome {
        Ok(()) => None,
        // A stopped container's name is gone before its address is known to be dead: that is what a person has to be told.
        Err(Failure::Peer(reason)) => Some(peer.unresolved().unwrap_or(reason)),
        Err(Failure::Local(reason)) => {
            peer.metrics.probes_local.inc();
            warn!("cannot probe service={service} pool={pool} peer={address} reason={reason}");
            // The address may be one that this host cannot use; its name may have others.
            peer.connect_failed.notify_one();
            peer.health.not_probed(ProbeResult { at, took, failure: Some(reason) });
            return peer.notify();
        }
    };
    if failure.is_none() {
        peer.metrics.probes_passed.inc();
    } else {
        peer.metrics.probes_failed.inc();
        peer.connect_failed.notify_one();
    }
    let thresholds = Thresholds { ready_after: check.ready_after, not_ready_after: check.not_ready_after };
    let changed = peer.health.probed(ProbeResult { at, took, failure: failure.clone() }, thresholds, proof);
    if changed {
        match failure {
            None => info!("peer is ready service={service} pool={pool} peer={address}"),
            Some(reason) => warn!("peer is not ready service={service} pool={pool} peer={address} reason={reason}"),
        }
    }
    if changed || proof.is_some() || !peer.health.was_ready() {
        peer.notify();
    }
}

/// The interval, up to a tenth more or less.
fn jittered(interval: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    interval.mul_f64(0.9 + 0.2 * random as f64 / 1000.0)
}

async fn probe(peer: &Peer, check: &HealthCheck, upstream: &Upstream, connector: &Connector) -> Result<(), Failure> {
    upstream.refresh()?;
    let Some(target) = peer.target() else {
        return Err(peer.unresolved().unwrap_or_else(|| format!("{} is not resolved yet", peer.address.host)).into());
    };
    let mut address = *target.addresses.first().ok_or("not an IP address")?;
    if let Some(port) = check.port {
        address.set_port(port);
    }
    match &check.kind {
        ProbeKind::Tcp => TcpStream::connect(address).await.map(drop).map_err(|e| match is_local(&e) {
            true => Failure::local(&e, address),
            false => connect_failure(&e.to_string(), address, e.kind()).into(),
        }),
        ProbeKind::Http { path, host, headers, expect_status } => {
            let host = host.clone().unwrap_or_else(|| peer.address.to_string());
            let mut http_peer = HttpPeer::new(address, false, String::new());
            // A port of its own is a management port, of another server within the application.
            if check.port.is_none() {
                upstream.apply(&mut http_peer, peer);
                // Never over a connection that requests share.
                http_peer.options.max_h2_streams = 1;
            }
            let (answer, body) = get(connector, &http_peer, path, &host, headers).await?;
            Ok(judge(path, expect_status, &answer, &body)?)
        }
    }
}

async fn get(
    connector: &Connector,
    http_peer: &HttpPeer,
    path: &str,
    host: &str,
    headers: &[(String, String)],
) -> Result<(ResponseHeader, Vec<u8>), Failure> {
    let address = *http_peer.address().as_inet().ok_or("not an IP address")?;
    let connected = connector.get_http_session(http_peer).await;
    let (mut session, _) = connected.map_err(|e| match (local_cause(&e), e.etype()) {
        (Some(cause), _) => Failure::local(cause, address),
        (None, ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError) => {
            tls_failure(&e, address).into()
        }
        (None, _) => connect_failure(&root_cause(&e), address, io_kind(&e)).into(),
    })?;
    let mut request = RequestHeader::build("GET", path.as_bytes(), Some(3 + headers.len())).map_err(|e| root_cause(&e))?;
    request.insert_header("Host", host).map_err(|e| root_cause(&e))?;
    request.insert_header("User-Agent", concat!("switchover/", env!("CARGO_PKG_VERSION"))).map_err(|e| root_cause(&e))?;
    if session.as_http2().is_none() {
        request.insert_header("Connection", "close").map_err(|e| root_cause(&e))?;
    }
    for (name, value) in headers {
        request.insert_header(name.clone(), value).map_err(|e| root_cause(&e))?;
    }
    exchange(&mut session, request).await.map_err(|e| match e.etype() {
        ErrorType::InvalidHTTPHeader => format!("{address} does not answer in HTTP: {}", root_cause(&e)).into(),
        _ => format!("{address} closed the connection before it answered").into(),
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

fn judge(path: &str, expected: &[RangeInclusive<u16>], answer: &ResponseHeader, body: &[u8]) -> Result<(), String> {
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

fn connect_failure(cause: &str, address: std::net::SocketAddr, kind: std::io::ErrorKind) -> String {
    match kind {
        std::io::ErrorKind::ConnectionRefused => format!("connection refused: nothing listens on {address}"),
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
            format!("{address} is unreachable: {cause}")
        }
        std::io::ErrorKind::TimedOut => format!("no connection to {address} in time"),
        _ => format!("cannot connect to {address}: {cause}"),
    }
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
        judge(path, &[200..=299], &answer, body.as_bytes()).unwrap_err()
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
        assert!(judge("/", &[200..=204, 301..=301], &ResponseHeader::build(301, None).unwrap(), b"").is_ok());
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1000 {
            let interval = jittered(Duration::from_secs(1));
            assert!((Duration::from_millis(900)..=Duration::from_millis(1100)).contains(&interval), "{interval:?}");
        }
    }
}
