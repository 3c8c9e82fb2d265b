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
use pingora::{
    protocols::tls::CaType,
    upstreams::peer::{HttpPeer, PeerOptions, Scheme},
    utils::tls::{WrappedX509, parse_x509},
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::spawn_blocking,
};

use super::peer::Peer;
use crate::{
    certificate,
    config::{self, Protocol},
};

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
    /// When the CA file that was read last was written. Locked during a read, so that a slow disk holds up one thread, however many
    /// probes wait for it.
    written: Arc<Mutex<Option<SystemTime>>>,
}

impl Upstream {
    /// Relative paths of `config` are in `folder`.
    pub fn new(config: config::Upstream, folder: &Path) -> Self {
        let ca_file = config.tls.as_ref().and_then(|tls| tls.ca.as_ref()).map(|path| folder.join(path));
        Self { config, ca_file, ca: ArcSwapOption::empty(), written: Arc::default() }
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

    /// Reads the CA file on a blocking thread if it has changed. Returns when the file in use was written; none without one.
    ///
    /// # Errors
    /// Why it cannot be used; the certificates that were read before stay in use.
    pub async fn refresh(self: &Arc<Self>) -> Result<Option<SystemTime>, String> {
        if self.ca_file.is_none() {
            return Ok(None);
        }
        let written = Arc::clone(&self.written).lock_owned().await;
        let upstream = Arc::clone(self);
        // The lock goes to the thread, which may outlast this future.
        spawn_blocking(move || upstream.read_ca(written)).await.map_err(|e| e.to_string())?
    }

    fn read_ca(&self, mut written: OwnedMutexGuard<Option<SystemTime>>) -> Result<Option<SystemTime>, String> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let now = fs::metadata(path).and_then(|file| file.modified()).ok();
        if now.is_none() || *written != now {
            // Each of them parses; Pingora would panic over one that does not.
            let certificates = certificate::authorities(path)?;
            let ca: Vec<_> = certificates.iter().map(|certificate| WrappedX509::new(certificate.to_vec(), parse_x509)).collect();
            self.ca.store(Some(Arc::new(Arc::from(ca))));
            *written = now;
        }
        Ok(*written)
    }
}
