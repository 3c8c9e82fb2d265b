//! A steady load over keep-alive connections. Counts every failure and never retries.
//!
//! The slow requests are POSTs: switchover never retries them, so that an application that was stopped too early shows as a
//! failure.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

/// Number of clients with fast requests; each has its own connection.
const QUICK: u32 = 10;
/// Number of clients whose requests take longer than a promotion, so that a drain always has requests to wait for.
const SLOW: u32 = 3;
/// Interval between the requests of one fast client; 1,000 requests per second in total, which a laptop can serve.
const PACE: Duration = Duration::from_millis(10);
/// Duration of a slow request in the application.
const SLOWNESS: Duration = Duration::from_millis(300);
/// Time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many reasons of failures to keep.
const REASONS: usize = 5;

/// The results so far.
#[derive(Clone, Default)]
pub(super) struct Tally {
    pub requests: u64,
    pub failed: u64,
    pub reasons: Vec<String>,
    /// Longest duration, less the time that the request made the application wait.
    pub slowest: Duration,
    /// Number of requests by the application that responded.
    pub by_application: BTreeMap<String, u64>,
}

/// One request that ended.
pub(super) struct Ended {
    pub at: Instant,
    /// The application that responded; none if the request failed.
    pub by: Option<String>,
}

#[derive(Default)]
struct Results {
    tally: Tally,
    requests: Vec<Ended>,
}

/// A running load; ends when it is stopped or dropped.
pub(super) struct Load {
    results: Arc<Mutex<Results>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    pub(super) fn start(address: SocketAddr) -> Self {
        let (results, stop) = (Arc::<Mutex<Results>>::default(), Arc::<AtomicBool>::default());
        let mut clients = JoinSet::new();
        for client in 0..QUICK + SLOW {
            clients.spawn(run_client(client, address, Arc::clone(&results), Arc::clone(&stop)));
        }
        Self { results, stop, clients }
    }

    pub(super) fn tally(&self) -> Tally {
        lock(&self.results).tally.clone()
    }

    /// Waits until every request has ended. Returns the results, and every request in the order of their ends.
    pub(super) async fn stop(mut self) -> (Tally, Vec<Ended>) {
        self.stop.store(true, Relaxed);
        while let Some(client) = self.clients.join_next().await {
            if let Err(e) = client {
                lock(&self.results).tally.failed(format!("a client of the load panicked: {e}"));
            }
        }
        let Results { tally, requests } = std::mem::take(&mut *lock(&self.results));
        (tally, requests)
    }
}

impl Tally {
    fn failed(&mut self, reason: String) {
        self.failed += 1;
        if self.reasons.len() < REASONS {
            self.reasons.push(reason);
        }
    }
}

async fn run_client(client: u32, address: SocketAddr, results: Arc<Mutex<Results>>, stop: Arc<AtomicBool>) {
    let (slow, mut connection) = (client >= QUICK, None);
    // Start the clients at even intervals: together, their requests would come in bursts.
    let start = if slow { SLOWNESS * (client - QUICK) / SLOW } else { PACE * client / QUICK };
    let mut pace = interval_at(Instant::now() + start, PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0.. {
        pace.tick().await;
        if stop.load(Relaxed) {
            return;
        }
        let kind = match turn % 5 {
            _ if slow => Kind::Slow,
            4 => Kind::Post,
            _ => Kind::Get,
        };
        let began = Instant::now();
        let outcome = timeout(TIMEOUT, request(&mut connection, address, kind)).await;
        let took = began.elapsed().saturating_sub(if slow { SLOWNESS } else { Duration::ZERO });
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer in {TIMEOUT:?}")));
        let mut results = lock(&results);
        let Results { tally, requests } = &mut *results;
        tally.requests += 1;
        tally.slowest = tally.slowest.max(took);
        requests.push(Ended { at: Instant::now(), by: outcome.clone().ok() });
        match outcome {
            Ok(application) => *tally.by_application.entry(application).or_default() += 1,
            Err(reason) => {
                tally.failed(reason);
                connection = None;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Get,
    Post,
    Slow,
}

/// Sends one request. Returns the name of the application that responded.
async fn request(
    connection: &mut Option<http1::SendRequest<Full<Bytes>>>,
    address: SocketAddr,
    kind: Kind,
) -> Result<String, String> {
    static BODY: [u8; 2048] = [b'x'; 2048];
    let sender = match connection {
        // Replace a connection that was closed after `Connection: close`; any other close is a failure.
        Some(sender) if !sender.is_closed() => sender,
        _ => connection.insert(connect(address).await?),
    };
    let (method, path, body) = match kind {
        Kind::Get => (Method::GET, "/".to_owned(), Bytes::new()),
        Kind::Post => (Method::POST, "/".to_owned(), Bytes::from_static(&BODY)),
        Kind::Slow => (Method::POST, format!("/slow?ms={}", SLOWNESS.as_millis()), Bytes::from_static(&BODY)),
    };
    let what = format!("{method} {path}");
    let request = Request::builder().method(method).uri(path).header("Host", address.to_string()).body(Full::new(body));
    let request = request.map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| format!("connection lost: {e}"))?;
    let response = sender.send_request(request).await.map_err(|e| format!("{what}: {e}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|e| format!("{what}: {e}"))?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    let whole = matches!(kind, Kind::Get | Kind::Slow) || text.ends_with(&format!(" received {} bytes\n", BODY.len()));
    if !status.is_success() || !whole {
        return Err(format!("{what}: {status} {}", text.trim()));
    }
    Ok(text.split_whitespace().next().unwrap_or("unknown").to_owned())
}

async fn connect(address: SocketAddr) -> Result<http1::SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| format!("cannot connect: {e}"))?;
    stream.set_nodelay(true).map_err(|e| format!("cannot connect: {e}"))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Errors of the connection appear in its requests.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(sender)
}

fn lock(results: &Mutex<Results>) -> std::sync::MutexGuard<'_, Results> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}
