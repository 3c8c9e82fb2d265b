//! The origin and the clients of the bench. Both are minimal, so that the proxy gets most of the machine.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::Outcome;

const CONNECTIONS: usize = 64;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";

/// Responds to every request, forever. A request ends with an empty line.
pub(super) async fn serve(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await? > 0 {
                stream.write_all(ANSWER).await?;
            }
            std::io::Result::Ok(())
        });
    }
}

/// Waits until a proxy accepts connections.
pub(super) async fn until_it_answers(address: SocketAddr) -> Outcome<()> {
    for _ in 0..500 {
        if let Ok(mut stream) = TcpStream::connect(address).await
            && ask_once(&mut stream).await.is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("no proxy responds on {address}").into())
}

/// Sends a number of requests over all connections together, over TLS with a connector, with one or many requests per connection.
pub(super) async fn ask(address: SocketAddr, tls: Option<TlsConnector>, requests: usize, per_connection: usize) -> Outcome<()> {
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let tls = tls.clone();
        clients.spawn(async move {
            let mut left = requests / CONNECTIONS;
            while left > 0 {
                let now = left.min(per_connection);
                left -= now;
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                match &tls {
                    Some(tls) => ask_times(tls.connect(ServerName::from(address.ip()), stream).await?, now).await?,
                    None => ask_times(stream, now).await?,
                }
            }
            std::io::Result::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

/// Full handshakes without resumption, with the newest version and curve of the proxy.
pub(super) fn connector(certificate: &Path) -> Outcome<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config).into())
}

async fn ask_times(mut stream: impl AsyncRead + AsyncWrite + Unpin, times: usize) -> std::io::Result<()> {
    for _ in 0..times {
        ask_once(&mut stream).await?;
    }
    Ok(())
}

/// Reads until the end of the body, whose bytes occur nowhere else.
async fn ask_once(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::with_capacity(1024);
    while !answer.ends_with(b"Hello, world!") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::Error::other(format!("closed after {:?}", String::from_utf8_lossy(&answer))));
        }
    }
    if answer.starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
    }
}
