//! Steady load over TLS, by HTTP/2 or HTTP/1.1, or by HTTP/2 without TLS: real clients that keep their connections and try nothing twice by themselves.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Version};
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
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Clients that ask until they are stopped.
pub struct H2Load {
    runtime: Runtime,
    state: Arc<State>,
    clients: JoinSet<()>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    done: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Connections that have shaken hands and say nothing.
pub struct Silent {
    _runtime: Runtime,
    _streams: Vec<TlsStream<TcpStream>>,
}

enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

fn config(ca: &Path, protocol: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    config
}

async fn handshake(address: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(config).connect(ServerName::try_from("shop.test").unwrap(), stream).await
}

impl H2Load {
    /// By `h2`, `http/1.1` or `h2c`.
    pub fn start(address: SocketAddr, ca: &Path, protocol: &'static str, clients: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = Arc::new(config(ca, protocol));
        let state = Arc::new(State::default());
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn_on(client(address, Arc::clone(&config), protocol, Arc::clone(&state)), runtime.handle());
        }
        Self { runtime, state, clients: tasks }
    }

    pub fn silent(address: SocketAddr, ca: &Path, protocol: &str, connections: usize) -> Silent {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let config = Arc::new(config(ca, protocol));
        let streams = runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..connections {
                streams.push(handshake(address, Arc::clone(&config)).await.unwrap());
            }
            streams
        });
        Silent { _runtime: runtime, _streams: streams }
    }

    /// How many were answered, and what went wrong.
    pub fn stop(mut self) -> (u64, Vec<String>) {
        self.state.stop.store(true, Relaxed);
        self.runtime.block_on(async { while self.clients.join_next().await.is_some() {} });
        (self.state.done.load(Relaxed), std::mem::take(&mut self.state.failures.lock().unwrap()))
    }
}

/// One connection after the other; a new one where the last was closed between two requests, as clients may expect.
async fn client(address: SocketAddr, config: Arc<ClientConfig>, protocol: &str, state: Arc<State>) {
    let mut sender = None;
    let mut turn = 0_u32;
    while !state.stop.load(Relaxed) {
        let ready = match &mut sender {
            Some(Sender::H1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::H2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !ready {
            match connect(address, Arc::clone(&config), protocol).await {
                Ok(new) => sender = Some(new),
                Err(e) => {
                    state.failures.lock().unwrap().push(format!("connect: {e}"));
                    return;
                }
            }
        }
        turn += 1;
        if let Err(e) = ask(sender.as_mut().unwrap(), turn, protocol).await {
            state.failures.lock().unwrap().push(e);
            sender = None;
        }
        state.done.fetch_add(1, Relaxed);
    }
}

async fn connect(address: SocketAddr, config: Arc<ClientConfig>, protocol: &str) -> Result<Sender, String> {
    if protocol == "h2c" {
        let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
        return h2(stream).await;
    }
    let stream = handshake(address, config).await.map_err(|e| e.to_string())?;
    if protocol == "h2" {
        return h2(stream).await;
    }
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(Sender::H1(sender))
}

async fn h2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, String> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    Ok(Sender::H2(sender))
}

async fn ask(sender: &mut Sender, turn: u32, protocol: &str) -> Result<(), String> {
    let (method, path, body) = match turn % 4 {
        0 => (Method::POST, "/", Bytes::from_static(&[b'x'; 2000])),
        1 => (Method::GET, "/slow?ms=150", Bytes::new()),
        _ => (Method::GET, "/", Bytes::new()),
    };
    let request = Request::builder().method(method);
    let request = match protocol {
        "http/1.1" => request.uri(path).header("Host", "shop.test"),
        "h2" => request.uri(format!("https://shop.test{path}")).version(Version::HTTP_2),
        _ => request.uri(format!("http://shop.test{path}")).version(Version::HTTP_2),
    };
    let request = request.body(Full::new(body)).unwrap();
    let asked = async {
        let response = match sender {
            Sender::H1(sender) => sender.send_request(request).await,
            Sender::H2(sender) => sender.send_request(request).await,
        };
        let response = response.map_err(|e| format!("{path}: {e:?}"))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| format!("{path}: body: {e:?}"))?.to_bytes();
        if status == 200 { Ok(()) } else { Err(format!("{path}: {status} {}", String::from_utf8_lossy(&body))) }
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap_or_else(|_| Err(format!("{path}: no answer")))
}
