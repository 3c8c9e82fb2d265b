//! Steady load over keep-alive connections, which counts whatever goes wrong and never tries again.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

/// Clients, each with a connection of its own.
const CLIENTS: usize = 16;
/// How long each of them pauses: the demo is to be watched, not to melt a laptop.
const PAUSE: Duration = Duration::from_millis(10);
/// As many reasons as a person wants to read.
const REASONS: usize = 5;

/// What the load has seen.
#[derive(Clone, Default)]
pub(super) struct Tally {
    pub requests: u64,
    pub failed: u64,
    pub reasons: Vec<String>,
    pub slowest: Duration,
    /// Requests by the colour that answered.
    pub by_colour: BTreeMap<String, u64>,
}

/// Load that goes on until it is dropped or stopped.
pub(super) struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    pub(super) fn start(address: SocketAddr) -> Self {
        let (tally, stop) = (Arc::<Mutex<Tally>>::default(), Arc::<AtomicBool>::default());
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            clients.spawn(run_client(client, address, Arc::clone(&tally), Arc::clone(&stop)));
        }
        Self { tally, stop, clients }
    }

    pub(super) fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Lets every request end, and counts it.
    pub(super) async fn stop(mut self) -> Tally {
        self.stop.store(true, Relaxed);
        while self.clients.join_next().await.is_some() {}
        self.tally()
    }
}

async fn run_client(client: usize, address: SocketAddr, tally: Arc<Mutex<Tally>>, stop: Arc<AtomicBool>) {
    let mut connection = None;
    for turn in client.. {
        if stop.load(Relaxed) {
            return;
        }
        let began = Instant::now();
        let outcome = request(&mut connection, address, turn).await;
        let took = began.elapsed();
        {
            let mut tally = lock(&tally);
            tally.requests += 1;
            tally.slowest = tally.slowest.max(took);
            match outcome {
                Ok(colour) => *tally.by_colour.entry(colour).or_default() += 1,
                Err(reason) => {
                    tally.failed += 1;
                    connection = None;
                    if tally.reasons.len() < REASONS {
                        tally.reasons.push(reason);
                    }
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One request; mostly small GETs, some POSTs with a body, some that take longer than a swap.
async fn request(
    connection: &mut Option<http1::SendRequest<Full<Bytes>>>,
    address: SocketAddr,
    turn: usize,
) -> Result<String, String> {
    let sender = match connection {
        // A connection that was announced to end is replaced; one that breaks is a failure.
        Some(sender) if !sender.is_closed() => sender,
        _ => connection.insert(connect(address).await?),
    };
    let (method, path, body) = match turn % 20 {
        0 => (Method::GET, "/slow?ms=300", Bytes::new()),
        1..=5 => (Method::POST, "/", Bytes::from_static(&[b'x'; 2048])),
        _ => (Method::GET, "/", Bytes::new()),
    };
    let request = Request::builder().method(method).uri(path).header("Host", address.to_string()).body(Full::new(body));
    let request = request.map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| format!("connection lost: {e}"))?;
    let response = sender.send_request(request).await.map_err(|e| format!("{path}: {e}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| format!("{path}: {e}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    if !status.is_success() {
        return Err(format!("{path}: {status} {}", text.trim()));
    }
    Ok(text.split_whitespace().next().unwrap_or("nobody").to_owned())
}

async fn connect(address: SocketAddr) -> Result<http1::SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| format!("cannot connect: {e}"))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Its end shows in the requests on it.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(sender)
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
