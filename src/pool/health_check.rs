//! The checks that probes make, as implementations of Pingora's [`HealthCheck`], and the text of each failure.
//!
//! [`super::probe`] builds a check from the settings and decides when it runs. A check keeps no record and always opens a
//! connection: a probe has to show that a request without a kept connection would succeed.

use std::{net::SocketAddr, ops::RangeInclusive, sync::Arc};

use async_trait::async_trait;
use pingora::{
    BError, Error, ErrorType,
    connectors::http::Connector,
    http::{RequestHeader, ResponseHeader},
    lb::{
        Backend,
        health_check::{HealthCheck, TcpHealthCheck},
    },
    protocols::http::client::HttpSession,
    upstreams::peer::HttpPeer,
};
use tokio::task::spawn_blocking;

use super::{health::ProbeFailure, local::local_cause, peer::Peer, probe::Settings};
use crate::{config, exchange};

/// Characters of a failing response's body that are shown.
const BODY_SHOWN: usize = 120;
/// Bytes of a response's body that are read: enough to show, however much the peer sends.
const BODY_READ: usize = 4096;
/// The type of the errors whose context is already the reason.
const FAILED: ErrorType = ErrorType::Custom("health check");

/// Sends a GET request. Pingora's own `HttpHealthCheck` keeps no body for the reason of a failure, and reads bodies of any length.
struct HttpHealthCheck {
    connector: Arc<Connector>,
    /// Its address is a placeholder.
    template: HttpPeer,
    /// Whether `template` is for HTTP/2, which has no `Connection` header.
    is_h2: bool,
    host: String,
    config: Arc<config::HealthCheck>,
}

/// The check of `peer` under `settings`, with the authorities that `upstream.tls.ca` holds now.
///
/// # Errors
/// [`ProbeFailure::Local`], when a TCP check cannot read the system's root certificates.
pub(super) async fn build(
    settings: &Settings,
    peer: &Peer,
    connector: &Arc<Connector>,
) -> Result<Box<dyn HealthCheck + Send + Sync>, ProbeFailure> {
    let check = &settings.check;
    // A port of its own is a management port, of another server within the application.
    let upstream = check.port.is_none().then_some(&settings.upstream);
    if check.tcp {
        // Pingora reads the system's root certificates for each one, which takes milliseconds, and panics if it cannot, for example
        // without a file descriptor left. On a blocking thread neither stops a worker, and the panic is an error here.
        let mut tcp = spawn_blocking(TcpHealthCheck::new).await.map_err(|e| {
            ProbeFailure::Local(format!("cannot read this host's root certificates: {e}; that says nothing about the peer"))
        })?;
        (tcp.consecutive_success, tcp.consecutive_failure) = (check.ready_after as usize, check.not_ready_after as usize);
        // The timeout of the whole probe is the only one.
        tcp.peer_template.options.connection_timeout = None;
        if let Some(upstream) = upstream {
            upstream.set_options(&mut tcp.peer_template.options);
            tcp.peer_template.sni = upstream.server_name(peer).unwrap_or_default();
        }
        return Ok(tcp);
    }
    let mut template = HttpPeer::new((std::net::Ipv4Addr::UNSPECIFIED, 1), false, String::new());
    if let Some(upstream) = upstream {
        upstream.apply(&mut template, peer);
        // Never over a connection that requests share.
        template.options.max_h2_streams = 1;
    }
    Ok(Box::new(HttpHealthCheck {
        connector: Arc::clone(connector),
        template,
        is_h2: upstream.is_some_and(|upstream| upstream.is_h2()),
        host: check.host.clone().unwrap_or_else(|| peer.address.to_string()),
        config: Arc::clone(check),
    }))
}

#[async_trait]
impl HealthCheck for HttpHealthCheck {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        let mut peer = self.template.clone();
        peer._address = target.addr.clone();
        let (mut session, _) = self.connector.get_http_session(&peer).await?;
        let (response, body) = send(&mut session, self.request()?).await.map_err(|e| match e.etype() {
            ErrorType::InvalidHTTPHeader => failed(format!("{} does not answer in HTTP: {}", target.addr, root_cause(&e))),
            _ => failed(format!("{} closed the connection before it answered", target.addr)),
        })?;
        expected(&self.config.path, &self.config.expect_status, &response, &body).map_err(failed)
    }

    fn health_threshold(&self, success: bool) -> usize {
        (if success { self.config.ready_after } else { self.config.not_ready_after }) as usize
    }
}

impl HttpHealthCheck {
    fn request(&self) -> pingora::Result<RequestHeader> {
        let config::HealthCheck { path, headers, .. } = &*self.config;
        let mut request = exchange::request("GET", path, &self.host, self.is_h2)?;
        for (name, value) in headers {
            request.insert_header(name.clone(), value.0.as_str())?;
        }
        Ok(request)
    }
}

async fn send(session: &mut HttpSession, request: RequestHeader) -> pingora::Result<(ResponseHeader, Vec<u8>)> {
    let header = exchange::send(session, request).await?;
    let body = exchange::read_body(session, BODY_READ).await;
    Ok((header, body))
}

fn expected(path: &str, expected: &[RangeInclusive<u16>], response: &ResponseHeader, body: &[u8]) -> Result<(), String> {
    let status = response.status.as_u16();
    if expected.iter().any(|range| range.contains(&status)) {
        return Ok(());
    }
    let body = String::from_utf8_lossy(body);
    let body: String = body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(BODY_SHOWN).collect();
    let shown = format!("{status} {body}");
    let shown = shown.trim_end();
    Err(match status {
        404 if path.contains("/actuator") => format!(
            "{shown}: {path} is not there; set management.endpoint.health.probes.enabled=true in the application \
             (Spring Boot has it off outside Kubernetes up to 3.5), or health_check.path to a path that answers"
        ),
        301 | 302 | 303 | 307 | 308 => {
            let location = response.headers.get(http::header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or("elsewhere");
            format!("{status} to {location}: security is in front of {path}; let it be read without a login")
        }
        401 | 403 => {
            format!("{shown}: security is in front of {path}; let it be read without a login, or send health_check.headers")
        }
        _ => shown.to_owned(),
    })
}

/// An error whose reason is `reason`.
fn failed(reason: String) -> BError {
    Error::explain(FAILED, reason)
}

/// Why a check of `address` failed. Both checks connect through Pingora's connector, so its errors mean the same for both.
pub(super) fn failure(error: &Error, address: SocketAddr) -> ProbeFailure {
    let context = error.context.as_ref().map_or("", |context| context.as_str());
    if let Some(cause) = local_cause(error) {
        return ProbeFailure::Local(format!("this host cannot connect to {address}: {cause}; that says nothing about the peer"));
    }
    let cause = root_cause(error);
    ProbeFailure::Other(match error.etype() {
        etype if *etype == FAILED => context.to_owned(),
        ErrorType::ConnectRefused => return ProbeFailure::Refused(address),
        ErrorType::ConnectNoRoute => format!("{address} is unreachable: {cause}"),
        ErrorType::ConnectTimedout => format!("no connection to {address} in time"),
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => {
            // Pingora's context is a chain of its own errors, of which rustls' is the last.
            let cause = context.rsplit("cause: ").next().unwrap_or_default();
            format!("no TLS with {address}: {cause}; see upstream.tls.ca and upstream.tls.server_name")
        }
        _ => format!("cannot connect to {address}: {cause}"),
    })
}

fn root_cause(error: &Error) -> String {
    error.root_cause().to_string().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(path: &str, status: u16, body: &str) -> String {
        let mut response = ResponseHeader::build(status, None).unwrap();
        response.insert_header("Location", "/login").unwrap();
        expected(path, &[200..=299], &response, body.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_failing_response_is_explained_with_spring_boot_in_mind() {
        let readiness = "/actuator/health/readiness";
        assert_eq!(reason(readiness, 503, "{\"status\":\"OUT_OF_SERVICE\"}\n"), "503 {\"status\":\"OUT_OF_SERVICE\"}");
        assert!(reason(readiness, 404, "").contains("management.endpoint.health.probes.enabled=true"));
        assert!(!reason("/healthz", 404, "").contains("management"));
        assert!(reason(readiness, 401, "").contains("security is in front of /actuator/health/readiness"));
        assert!(reason(readiness, 302, "").starts_with("302 to /login: security"));
        assert!(reason(readiness, 500, &"x".repeat(5000)).len() < 150);
        assert!(expected("/", &[200..=204, 301..=301], &ResponseHeader::build(301, None).unwrap(), b"").is_ok());
    }
}
