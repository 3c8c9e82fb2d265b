//! Sends JSON to a URL of the user by POST. Redirects are not followed; the response's body is bounded.

use bytes::Bytes;
use http::{Uri, uri::Scheme};
use pingora::{connectors::http::Connector, http::RequestHeader, upstreams::peer::HttpPeer};
use tokio::net::lookup_host;

use super::{OUTPUT_KEPT, shown};
use crate::exchange;

/// Sends `body` to `url`. The caller bounds the time, by dropping the future. The connector verifies certificates with the authorities
/// of the system.
///
/// # Errors
/// When there is no response, or one with another status than 200 to 299; the message has the beginning of its body.
pub(super) async fn post(
    connector: &Connector,
    url: &Uri,
    headers: &[(&'static str, String)],
    body: Bytes,
) -> Result<(), String> {
    let is_tls = url.scheme() == Some(&Scheme::HTTPS);
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or(host, |authority| authority.as_str());
    let request = || -> pingora::Result<RequestHeader> {
        let mut request = exchange::request("POST", path, authority, false)?;
        for (name, value) in headers {
            request.insert_header(*name, value)?;
        }
        Ok(request)
    };
    let request = request().map_err(|e| format!("cannot be sent: {e}"))?;
    let addresses = lookup_host((name, port)).await.map_err(|e| format!("{host} cannot be resolved: {e}"))?;
    let mut unreachable = format!("{host} has no address");
    for address in addresses {
        let peer = HttpPeer::new(address, is_tls, name.to_owned());
        let mut session = match connector.get_http_session(&peer).await {
            Ok((session, _)) => session,
            Err(e) => {
                unreachable = format!("no connection to {host} ({address}): {}", cause(&e));
                continue;
            }
        };
        let response = exchange::send_json(&mut session, request, body).await;
        let status = response.map_err(|e| format!("no response: {}", cause(&e)))?.status;
        if status.is_success() {
            return Ok(());
        }
        let said = shown(&exchange::read_body(&mut session, OUTPUT_KEPT).await);
        let status = format!("responded with {}", status.as_u16());
        return Err(if said.is_empty() { status } else { format!("{status}: {said}") });
    }
    Err(unreachable)
}

/// The last of Pingora's chain of errors, which is that of rustls or of the system.
fn cause(error: &pingora::Error) -> String {
    let context = error.context.as_ref().map_or("", |context| context.as_str());
    match context.rsplit_once("cause: ") {
        Some((_, cause)) => cause.trim().to_owned(),
        None => error.root_cause().to_string().trim().to_owned(),
    }
}
