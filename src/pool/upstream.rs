//! How peers of a service are spoken to: HTTP/1.1 or HTTP/2, in the clear or over TLS.
//!
//! One per service and setting, shared by its requests and its probes, so that a probe proves what a request will need. Probes read
//! the CA file again when it has changed; requests take what is there.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use pingora::{
    protocols::tls::CaType,
    upstreams::peer::{HttpPeer, PeerOptions, Scheme},
    utils::tls::{WrappedX509, parse_x509},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::parse_x509_certificate;

use super::peer::Peer;
use crate::config::{self, Protocol, file};

/// Requests that share one HTTP/2 connection to a peer.
const STREAMS: u32 = 100;
/// Bytes of a response that an HTTP/2 peer may send before its client has read any: 24 KiB, and 48 MB/s at a round trip of 0.5 ms.
/// Every request holds as much for a client that does not read.
const STREAM_WINDOW: u32 = 24 * 1024;
/// All streams of a connection together. Pingora's default is 8 MiB for either, so that one unread response holds up all others.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;

/// The settings of one service.
pub struct Upstream {
    config: config::Upstream,
    ca_file: Option<PathBuf>,
    ca: ArcSwapOption<Arc<CaType>>,
    /// When the file that was read last was written.
    read: Mutex<Option<SystemTime>>,
}

impl Upstream {
    /// Relative paths of `config` are in `folder`.
    pub fn new(config: config::Upstream, folder: &Path) -> Self {
        let ca_file = config.tls.as_ref().and_then(|tls| tls.ca.as_ref()).map(|path| folder.join(path));
        Self { config, ca_file, ca: ArcSwapOption::empty(), read: Mutex::default() }
    }

    /// As the file has it.
    pub fn config(&self) -> &config::Upstream {
        &self.config
    }

    /// Whether requests share their connections to a peer.
    pub fn is_h2(&self) -> bool {
        self.config.protocol != Protocol::Http1
    }

    /// Sets how a request to `peer` is sent.
    pub fn apply(&self, http_peer: &mut HttpPeer, peer: &Peer) {
        self.set_options(&mut http_peer.options);
        if let Some(name) = self.server_name(peer) {
            http_peer.scheme = Scheme::HTTPS;
            http_peer.sni = name;
        }
    }

    /// Sets the protocol and the authorities of a connection.
    pub fn set_options(&self, options: &mut PeerOptions) {
        if self.is_h2() {
            options.set_http_version(2, 2);
            options.max_h2_streams = STREAMS as usize;
            options.h2_stream_window_size = Some(STREAM_WINDOW);
            options.h2_connection_window_size = Some(CONNECTION_WINDOW);
        }
        if self.config.tls.is_some() {
            options.ca = self.ca.load().as_ref().map(|ca| Arc::clone(&**ca));
        }
    }

    /// The name that the certificate of `peer` has to have; none without TLS.
    pub fn server_name(&self, peer: &Peer) -> Option<String> {
        let tls = self.config.tls.as_ref()?;
        Some(tls.server_name.clone().unwrap_or_else(|| peer.address.host.clone()))
    }

    /// Reads the CA file if it has changed. Returns when the file in use was written; none without one.
    ///
    /// # Errors
    /// Why it cannot be used; what was read before stays in use.
    pub fn refresh(&self) -> Result<Option<SystemTime>, String> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let failed = |why: &dyn std::fmt::Display| format!("upstream.tls.ca: {}: {why}", path.display());
        let written = fs::metadata(path).and_then(|file| file.modified()).map_err(|e| failed(&e))?;
        let mut read = self.read.lock();
        if *read == Some(written) {
            return Ok(*read);
        }
        let bytes = file::read(path, file::LARGEST).map_err(|e| failed(&e))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let certificates = certificates.map_err(|e| failed(&e))?;
        // Pingora would panic over one that cannot be parsed.
        if certificates.is_empty() || certificates.iter().any(|certificate| parse_x509_certificate(certificate).is_err()) {
            return Err(failed(&"holds no certificates in PEM; expected -----BEGIN CERTIFICATE-----"));
        }
        let ca: Vec<_> = certificates.iter().map(|certificate| WrappedX509::new(certificate.to_vec(), parse_x509)).collect();
        self.ca.store(Some(Arc::new(Arc::from(ca))));
        *read = Some(written);
        Ok(*read)
    }
}
