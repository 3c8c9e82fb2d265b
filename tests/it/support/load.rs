//! Strict load: keep-alive connections, no retries, and a connection that ends without having said so is a failure.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Client, Response};

/// What a client does in turn `n`: method, path, body.
pub type Mix = fn(usize) -> (&'static str, &'static str, &'static [u8]);

/// Load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
}

/// What it has seen.
#[derive(Default, Debug)]
pub struct Tally {
    pub requests: u64,
    /// `(method, reason)`.
    pub failures: Vec<(&'static str, String)>,
    /// When the last request that an application (`X-App`) answered was sent.
    pub last_sent: BTreeMap<String, Instant>,
    pub slowest: Duration,
}

impl Tally {
    pub fn assert_no_failures(&self) {
        assert!(self.requests > 0, "no load at all");
        assert!(self.failures.is_empty(), "{} of {} failed: {:?}", self.failures.len(), self.requests, &self.failures[..1]);
    }
}

/// Small GETs, POSTs with a body, and some requests that are slower than a swap.
pub fn mixed(turn: usize) -> (&'static str, &'static str, &'static [u8]) {
    match turn % 16 {
        0 => ("GET", "/slow?ms=200", b""),
        // Never sent twice: if its application is stopped too early, no retry hides that.
        8 => ("POST", "/slow?ms=200", &[b'x'; 3000]),
        1..=5 => ("POST", "/", &[b'x'; 3000]),
        _ => ("GET", "/", b""),
    }
}

impl Load {
    pub fn start(address: SocketAddr, clients: usize, mix: Mix) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients)
            .map(|client| {
                let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                thread::spawn(move || run(client, address, mix, &stop, &done))
            })
            .collect();
        let load = Self { stop, done, clients };
        super::eventually("load runs", || if load.done.load(SeqCst) > 0 { Ok(()) } else { Err("nothing yet") });
        load
    }

    pub fn done(&self) -> u64 {
        self.done.load(SeqCst)
    }

    pub fn stop(self) -> Tally {
        self.stop.store(true, SeqCst);
        let mut all = Tally::default();
        for client in self.clients {
            let tally = client.join().unwrap();
            all.requests += tally.requests;
            all.failures.extend(tally.failures);
            all.slowest = all.slowest.max(tally.slowest);
            for (app, at) in tally.last_sent {
                let last = all.last_sent.entry(app).or_insert(at);
                *last = at.max(*last);
            }
        }
        all
    }
}

fn run(client: usize, address: SocketAddr, mix: Mix, stop: &AtomicBool, done: &AtomicU64) -> Tally {
    let mut tally = Tally::default();
    let mut connection: Option<Client> = None;
    let mut turn = client;
    while !stop.load(SeqCst) {
        let (method, path, body) = mix(turn);
        turn += 1;
        let sent = Instant::now();
        let outcome = connection.take().map_or_else(|| Client::connect(address), Ok).and_then(|mut client| {
            let response = client.request(method, path, body)?;
            if !response.closes() {
                connection = Some(client);
            }
            Ok(response)
        });
        tally.requests += 1;
        done.fetch_add(1, SeqCst);
        tally.slowest = tally.slowest.max(sent.elapsed());
        match outcome {
            Ok(Response { status: 200, headers, .. }) => {
                if let Some((_, app)) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-app")) {
                    tally.last_sent.insert(app.clone(), sent);
                }
            }
            Ok(response) => tally.failures.push((method, format!("{} {}", response.status, response.text().trim()))),
            Err(e) => tally.failures.push((method, e.to_string())),
        }
        // A breather for two cores that run everything at once.
        thread::sleep(Duration::from_millis(2));
    }
    tally
}
