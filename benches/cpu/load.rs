//! The two ends: an origin that answers at once, and clients that ask over kept connections. Both are as small as can be, so
//! that the proxy gets the machine.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::Outcome;

const CONNECTIONS: usize = 64;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";

/// Answers every request, for ever; a request is what ends with an empty line.
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

/// Waits for a proxy that has just been started.
pub(super) async fn until_it_answers(address: SocketAddr) -> Outcome<()> {
    for _ in 0..500 {
        if let Ok(mut stream) = TcpStream::connect(address).await
            && ask_once(&mut stream).await.is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("nobody answers on {address}").into())
}

/// Asks so many times, over all connections together.
pub(super) async fn ask(address: SocketAddr, requests: usize) -> Outcome<()> {
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            for _ in 0..requests / CONNECTIONS {
                ask_once(&mut stream).await?;
            }
            std::io::Result::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

/// Reads until the body has come, whose bytes occur nowhere else.
async fn ask_once(stream: &mut TcpStream) -> std::io::Result<()> {
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
