//! The traits that Pingora requires of a stream, besides reading and writing.

use std::{fmt, os::fd::RawFd, sync::Arc};

use async_trait::async_trait;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    raw_connect::ProxyDigest, tls::SslDigest,
};
use tokio::io::AsyncWriteExt;

use super::{ClientStream, Mode};

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // Fails if the client has closed the connection already.
        drop(AsyncWriteExt::shutdown(self).await);
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> RawFd {
        self.fd
    }
}

impl Ssl for ClientStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        None
    }

    /// Without TLS, the preface decides.
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        (self.mode == Mode::H2).then_some(ALPN::H2)
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.connection_digest.clone()
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl Peek for ClientStream {}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a client's connection, descriptor {}", self.fd)
    }
}
