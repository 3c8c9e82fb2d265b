//! A steady load over keep-alive connections, without retries. A connection that closes without notice counts as a failure. Tests
//! end it after a number of requests ([`Load::await_sent`]), never after a time, so that no assertion depends on the speed of the
//! machine.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::runtime::{Handle, Runtime};

use super::{
    Client, eventually,
    hyper_client::{self, Protocol, Target},
};

/// The request that a client sends in turn `n`: method, path, body.
pub type Mix = fn(usize) -> (&'static str, &'static str, &'static [u8]);

/// A load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<Tally>>,
    /// The runtime for connections other than plain HTTP/1.1.
    _runtime: Option<Runtime>,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    done: AtomicU64,
}

/// The results.
#[derive(Default, Debug)]
pub struct Tally {
    pub requests: u64,
    /// `(method, reason)`.
    pub failures: Vec<(&'static str, String)>,
    /// The time at which the last request was sent that each application (`X-App`) responded to.
    pub last_sent: BTreeMap<String, Instant>,
}

impl Tally {
    pub fn assert_no_failures(&self) {
        assert!(self.requests > 0, "no request was sent");
        assert!(self.failures.is_empty(), "{} of {} failed: {:?}", self.failures.len(), self.requests, &self.failures[..1]);
    }
}

/// Small GETs, POSTs with a body, and some requests that are slower than a swap.
pub fn mixed(turn: usize) -> (&'static str, &'static str, &'static [u8]) {
    match turn % 16 {
        0 => ("GET", "/slow?ms=100", b""),
        // switchover never retries a POST, so an application that is stopped too early causes a failure.
        8 => ("POST", "/slow?ms=100", &[b'x'; 3000]),
        1..=5 => ("POST", "/", &[b'x'; 3000]),
        _ => ("GET", "/", b""),
    }
}

impl Load {
    /// Starts a load over HTTP/1.1 without TLS.
    pub fn start(address: SocketAddr, clients: usize, mix: Mix) -> Self {
        Self::run(&Way::Plain(address), clients, mix, None)
    }

    /// Starts a load over TLS, HTTP/2, or both; `ca` verifies the server's certificate.
    pub fn start_over(protocol: Protocol, address: SocketAddr, ca: &Path, clients: usize, mix: Mix) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let way = Way::Hyper(Target::new(address, protocol, ca), runtime.handle().clone());
        Self::run(&way, clients, mix, Some(runtime))
    }

    fn run(way: &Way, clients: usize, mix: Mix, runtime: Option<Runtime>) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let clients = (0..clients)
            .map(|client| {
                let (way, stop, counts) = (way.clone(), Arc::clone(&stop), Arc::clone(&counts));
                thread::spawn(move || run(client, &way, mix, &stop, &counts))
            })
            .collect();
        let load = Self { stop, counts, clients, _runtime: runtime };
        eventually("the load runs", || if load.done() > 0 { Ok(()) } else { Err("no answer yet") });
        load
    }

    /// The number of ended requests, failed ones included.
    pub fn done(&self) -> u64 {
        self.counts.done.load(SeqCst)
    }

    /// Waits until this many more requests were sent.
    pub fn await_sent(&self, requests: u64) {
        let sent = || self.counts.sent.load(SeqCst);
        let enough = sent() + requests;
        eventually(&format!("{requests} further requests are sent"), || if sent() >= enough { Ok(()) } else { Err(sent()) });
    }

    pub fn stop(self) -> Tally {
        self.stop.store(true, SeqCst);
        let mut all = Tally::default();
        for client in self.clients {
            let tally = client.join().unwrap();
            all.requests += tally.requests;
            all.failures.extend(tally.failures);
            for (app, at) in tally.last_sent {
                let last = all.last_sent.entry(app).or_insert(at);
                *last = at.max(*last);
            }
        }
        all
    }
}

fn run(client: usize, way: &Way, mix: Mix, stop: &AtomicBool, counts: &Counts) -> Tally {
    let mut tally = Tally::default();
    let mut connection: Option<Connection> = None;
    let mut turn = client;
    while !stop.load(SeqCst) {
        let (method, path, body) = mix(turn);
        turn += 1;
        let sent = Instant::now();
        counts.sent.fetch_add(1, SeqCst);
        let outcome = Connection::reuse(connection.take(), way).and_then(|mut open| {
            let answer = open.ask(method, path, body)?;
            if !answer.closes {
                connection = Some(open);
            }
            Ok(answer)
        });
        tally.requests += 1;
        counts.done.fetch_add(1, SeqCst);
        match outcome {
            Ok(Answer { status: 200, app, .. }) => {
                if let Some(app) = app {
                    tally.last_sent.insert(app, sent);
                }
            }
            Ok(answer) => tally.failures.push((method, format!("{path}: {} {}", answer.status, answer.text.trim()))),
            Err(e) => tally.failures.push((method, format!("{path}: {e}"))),
        }
        // Leaves CPU time to the other processes of the test.
        thread::sleep(Duration::from_millis(2));
    }
    tally
}

/// The destination of a load's connections, and their runtime.
#[derive(Clone)]
enum Way {
    Plain(SocketAddr),
    Hyper(Target, Handle),
}

enum Connection {
    Plain(Client),
    Hyper(hyper_client::Connection, Handle),
}

struct Answer {
    status: u16,
    app: Option<String>,
    text: String,
    closes: bool,
}

impl Connection {
    /// The open connection; a new one if there is none, or if the server has closed it properly.
    fn reuse(open: Option<Self>, way: &Way) -> Result<Self, String> {
        match open {
            Some(Self::Hyper(mut connection, handle)) => {
                if handle.block_on(connection.ready())? {
                    Ok(Self::Hyper(connection, handle))
                } else {
                    Self::open(way)
                }
            }
            Some(plain) => Ok(plain),
            None => Self::open(way),
        }
    }

    fn open(way: &Way) -> Result<Self, String> {
        match way {
            Way::Plain(address) => Client::connect(*address).map(Self::Plain).map_err(|e| e.to_string()),
            Way::Hyper(target, handle) => {
                Ok(Self::Hyper(handle.block_on(hyper_client::Connection::open(target))?, handle.clone()))
            }
        }
    }

    fn ask(&mut self, method: &'static str, path: &str, body: &'static [u8]) -> Result<Answer, String> {
        match self {
            Self::Plain(client) => {
                let response = client.request(method, path, body).map_err(|e| e.to_string())?;
                let app = response.header("x-app").map(str::to_owned);
                Ok(Answer { status: response.status, app, text: response.text(), closes: response.closes() })
            }
            Self::Hyper(connection, handle) => {
                let response = handle.block_on(connection.ask(method, path, body))?;
                let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
                Ok(Answer {
                    status: response.status().as_u16(),
                    app: header("x-app").map(str::to_owned),
                    text: String::from_utf8_lossy(response.body()).into_owned(),
                    closes: header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
                })
            }
        }
    }
}
