//! Peers that speak HTTP/1.1 or HTTP/2, with TLS or without.

use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_rustls::TlsAcceptor;

/// More than every buffer between a peer and a client takes together.
pub const LARGE: usize = 8 * 1024 * 1024;

/// The window of RFC 9113, section 6.9.2.
const DEFAULT_WINDOW: u32 = 65535;

/// Answers with the version of the request, the length of its body and its cookies; `/large` with [`LARGE`] bytes, `/late` never.
pub struct HyperPeer {
    pub address: SocketAddr,
    _runtime: Runtime,
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    if head.uri.path() == "/late" {
        std::future::pending::<()>().await;
    }
    if head.uri.path() == "/large" {
        return Ok(Response::new(Full::new(Bytes::from_static(&[b'x'; LARGE]))));
    }
    let cookies: Vec<_> = head.headers.get_all("cookie").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    let length = body.collect().await.map(|body| body.to_bytes().len()).unwrap_or_default();
    let name = if head.headers.contains_key("x-forwarded-for") { format!(" {length} {cookies:?}") } else { String::new() };
    let te = head.headers.get("te").map(|te| format!(" te {}", te.to_str().unwrap())).unwrap_or_default();
    let version = if head.version == Version::HTTP_2 { "h2" } else { "http1" };
    Ok(Response::new(Full::new(Bytes::from(format!("{version}{name}{te}")))))
}

impl HyperPeer {
    /// Speaks HTTP/2 only, if asked to; over TLS with FOLDER/NAME.crt, if there is a name.
    pub fn start(h2: bool, tls: Option<(&Path, &str)>) -> Self {
        Self::with_window(DEFAULT_WINDOW, h2, tls)
    }

    /// Takes `window` bytes of a request body before it reads. With fewer than the default, a body that is sent before the peer's
    /// SETTINGS have arrived may never be read completely: the h2 crate does not look again at what it owes the sender when it
    /// applies a smaller window.
    pub fn with_window(window: u32, h2: bool, tls: Option<(&Path, &str)>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = tls.map(|(folder, name)| {
            let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.crt"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
            config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
            TlsAcceptor::from(Arc::new(config))
        });
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(h2, window, stream).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(h2, window, stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, _runtime: runtime }
    }
}

async fn serve(h2: bool, window: u32, stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) {
    let io = TokioIo::new(stream);
    if h2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window).serve_connection(io, service_fn(answer)).await.unwrap_or_default();
    } else {
        http1::Builder::new().serve_connection(io, service_fn(answer)).await.unwrap_or_default();
    }
}
