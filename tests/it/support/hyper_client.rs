//! Clients that speak TLS or HTTP/2, which the byte-by-byte [`Client`](super::Client) does not. Used by [`Load`](super::Load),
//! and by tests that need handshakes alone. Nothing here retries a request.

use std::{net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Runtime,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::TIMEOUT;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 over TLS.
    Https1,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/2 in clear text, with prior knowledge.
    H2c,
}

impl Protocol {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Https1 => b"http/1.1",
            Self::H2 | Self::H2c => b"h2",
        }
    }
}

/// Where a client connects, and how.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    protocol: Protocol,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// `ca` verifies the server's certificate, which has to be one for `shop.test`; H2c does not read it.
    pub fn new(address: SocketAddr, protocol: Protocol, ca: &Path) -> Self {
        let tls = (protocol != Protocol::H2c).then(|| {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let mut config = builder.with_root_certificates(roots).with_no_client_auth();
            config.alpn_protocols = vec![protocol.alpn().to_vec()];
            Arc::new(config)
        });
        Self { address, protocol, tls }
    }

    async fn tcp(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(self.address).await.map_err(|e| format!("connect: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(stream)
    }

    async fn handshake(&self, tls: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, String> {
        let name = ServerName::try_from("shop.test").unwrap();
        TlsConnector::from(Arc::clone(tls)).connect(name, self.tcp().await?).await.map_err(|e| format!("TLS: {e}"))
    }
}

/// One connection, with one request at a time.
pub struct Connection {
    sender: Sender,
    protocol: Protocol,
    driver: JoinHandle<hyper::Result<()>>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub async fn open(target: &Target) -> Result<Self, String> {
        match &target.tls {
            None => Self::over(target.protocol, target.tcp().await?).await,
            Some(tls) => Self::over(target.protocol, target.handshake(tls).await?).await,
        }
    }

    async fn over(protocol: Protocol, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, String> {
        let io = TokioIo::new(stream);
        let (sender, driver) = if protocol == Protocol::Https1 {
            let (sender, connection) = http1::handshake(io).await.map_err(|e| format!("HTTP/1.1: {e}"))?;
            (Sender::Http1(sender), tokio::spawn(connection))
        } else {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(|e| format!("HTTP/2: {e}"))?;
            (Sender::Http2(sender), tokio::spawn(connection))
        };
        Ok(Self { sender, protocol, driver })
    }

    /// Waits until a request can be sent. `Ok(false)` when the server has ended an HTTP/2 connection in order, between two
    /// requests; a client opens another one then. HTTP/1.1 says so beforehand, by `Connection: close`.
    pub async fn ready(&mut self) -> Result<bool, String> {
        let ready = match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await,
            Sender::Http2(sender) => sender.ready().await,
        };
        match ready {
            Ok(()) => Ok(true),
            Err(_) if self.protocol == Protocol::Https1 => Err("closed without notice between two requests".to_owned()),
            Err(e) => match (&mut self.driver).await {
                Ok(Ok(())) => Ok(false),
                other => Err(format!("the connection broke between two requests: {e}: {other:?}")),
            },
        }
    }

    pub async fn ask(&mut self, method: &str, path: &str, body: &'static [u8]) -> Result<Response<Bytes>, String> {
        let request = Request::builder().method(method);
        let request = match self.protocol {
            Protocol::Https1 => request.uri(path).header("Host", "shop.test"),
            Protocol::H2 => request.uri(format!("https://shop.test{path}")).version(Version::HTTP_2),
            Protocol::H2c => request.uri(format!("http://shop.test{path}")).version(Version::HTTP_2),
        };
        let request = request.body(Full::new(Bytes::from_static(body))).unwrap();
        let answer = async {
            let response = match &mut self.sender {
                Sender::Http1(sender) => sender.send_request(request).await,
                Sender::Http2(sender) => sender.send_request(request).await,
            };
            let (head, body) = response.map_err(|e| format!("{e:?}"))?.into_parts();
            let body = body.collect().await.map_err(|e| format!("the body broke off: {e:?}"))?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        tokio::time::timeout(TIMEOUT, answer).await.unwrap_or_else(|_| Err("no answer".to_owned()))
    }
}

/// Connections that have completed the TLS handshake and send nothing.
pub struct Silent {
    _runtime: Runtime,
    _streams: Vec<TlsStream<TcpStream>>,
}

impl Silent {
    pub fn start(address: SocketAddr, ca: &Path, protocol: Protocol, connections: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let target = Target::new(address, protocol, ca);
        let streams = runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..connections {
                streams.push(target.handshake(target.tls.as_ref().unwrap()).await.unwrap());
            }
            streams
        });
        Self { _runtime: runtime, _streams: streams }
    }
}
