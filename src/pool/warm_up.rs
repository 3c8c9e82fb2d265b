//! The warm-up of a new pool: GET requests to each of its peers, so that the first clients do not wait for a cold application.
//!
//! The controller runs it after the proof of the pool and before its promotion, and shows its progress. It ends early when response
//! times no longer change. Being slow never fails it, because that is what it is for; failed requests do.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use pingora::{connectors::http::Connector, protocols::l4::socket::SocketAddr};
use tokio::time::timeout;

use super::{Peer, Upstream, health::ProbeFailure, health_check};
use crate::{
    config,
    exchange::{request, send},
    metrics::PoolMetrics,
};

/// Marks the requests, for access logs and statistics of the application.
const HEADER: &str = "X-Switchover-Warm-Up";
/// More failed requests than this share fail the warm-up: a single failed request may be an accident, such as a cache that is not
/// filled yet.
const FAILURES_ALLOWED: f64 = 0.1;
/// Response times no longer change when the p95 of the last quarter of the requests differs from that of the quarter before by
/// less than this share.
const SETTLED: f64 = 0.2;
/// Least number of requests in a quarter; the p95 of fewer requests changes by chance.
const LEAST_QUARTER: usize = 5;
/// Pause after a request that this host could not send.
const LOCAL_PAUSE: Duration = Duration::from_millis(100);

/// The settings of a warm-up.
pub struct Settings {
    /// Which requests, and how many.
    pub config: config::WarmUp,
    /// The Host header; none: the address of each peer.
    pub host: Option<String>,
    /// How to speak to the peers.
    pub upstream: Arc<Upstream>,
    /// Time limit for connecting.
    pub connect_timeout: Duration,
    /// Shared with the probes.
    pub connector: Arc<Connector>,
    /// Counts the requests.
    pub metrics: Arc<PoolMetrics>,
}

/// A warm-up and its progress.
pub struct WarmUp {
    settings: Settings,
    peers: Vec<(Arc<Peer>, Mutex<Record>)>,
}

/// The requests to one peer so far.
#[derive(Default)]
struct Record {
    started: u32,
    /// Response times, in the order of the responses; failed requests have none.
    took: Vec<Duration>,
    failed: usize,
    last_failure: Option<String>,
    settled: bool,
}

/// Why a request does not count as a success.
enum Failed {
    /// The peer failed it.
    Peer(String),
    /// This host could not send it.
    Local(String),
}

impl WarmUp {
    /// A warm-up of `peers`, which are ready.
    pub fn new(settings: Settings, peers: Vec<Arc<Peer>>) -> Self {
        Self { settings, peers: peers.into_iter().map(|peer| (peer, Mutex::default())).collect() }
    }

    /// Sends the requests to all peers at the same time. Dropping the future ends it.
    ///
    /// # Errors
    /// When too many requests to a peer failed, or none was successful; with the peers and the reasons.
    pub async fn run(&self) -> Result<(), String> {
        let outcomes = join_all(self.peers.iter().map(|(peer, record)| self.warm(peer, record))).await;
        let failures: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    async fn warm(&self, peer: &Peer, record: &Mutex<Record>) -> Result<(), String> {
        let config = &self.settings.config;
        let workers = (0..config.concurrency).map(|_| async {
            // A function, so that no lock is held during the request.
            let next = || record.lock().next(config.requests);
            while let Some(number) = next() {
                let began = Instant::now();
                let path = config.paths.iter().cycle().nth(number % config.paths.len().max(1)).map_or("/", String::as_str);
                let outcome = self.get(peer, path).await;
                let is_local = matches!(outcome, Err(Failed::Local(_)));
                record.lock().ended(config.requests, began.elapsed(), outcome.map_err(|failed| failed.at(path)));
                if is_local {
                    tokio::time::sleep(LOCAL_PAUSE).await;
                }
            }
        });
        let in_time = timeout(config.within, join_all(workers)).await.is_ok();
        let verdict = record.lock().verdict(config.requests);
        verdict.map_err(|why| {
            let within = if in_time { String::new() } else { format!(" within {}", humantime::format_duration(config.within)) };
            format!("{}: {why}{within}", peer.address)
        })
    }

    /// Sends one request, and reads the whole response: an application that cannot send all of it may log an error.
    async fn get(&self, peer: &Peer, path: &str) -> Result<(), Failed> {
        let Settings { host, upstream, connect_timeout, connector, metrics, .. } = &self.settings;
        let outcome = async {
            let Some(mut http_peer) = peer.http_peer(true) else {
                return Err(Failed::Peer(peer.unresolved().unwrap_or_else(|| "its name is not resolved".to_owned())));
            };
            upstream.apply(&mut http_peer, peer);
            http_peer.options.total_connection_timeout = Some(*connect_timeout);
            let address = match &http_peer._address {
                SocketAddr::Inet(address) => *address,
                SocketAddr::Unix(_) => return Err(Failed::Peer("it has no IP address".to_owned())),
            };
            let connected = connector.get_http_session(&*http_peer).await;
            let (mut session, _) = connected.map_err(|e| match health_check::failure(&e, address) {
                ProbeFailure::Local(reason) => Failed::Local(reason),
                failure => Failed::Peer(failure.to_string()),
            })?;
            let lost = |_| Failed::Peer("closed the connection before its response was complete".to_owned());
            let host = host.clone().unwrap_or_else(|| peer.address.to_string());
            let mut request = request("GET", path, &host, upstream.is_h2()).map_err(lost)?;
            request.insert_header(HEADER, "1").map_err(lost)?;
            let response = send(&mut session, request).await.map_err(lost)?;
            while session.read_response_body().await.map_err(lost)?.is_some() {}
            // Only the application can say whether 401 or 404 is right; an error of its own is not.
            if response.status.is_server_error() { Err(Failed::Peer(response.status.as_u16().to_string())) } else { Ok(()) }
        }
        .await;
        match &outcome {
            Ok(()) => metrics.warm_up_succeeded.inc(),
            Err(Failed::Peer(_)) => metrics.warm_up_failed.inc(),
            Err(Failed::Local(_)) => {}
        }
        outcome
    }
}

impl Failed {
    fn at(self, path: &str) -> Self {
        match self {
            Self::Peer(reason) => Self::Peer(format!("GET {path}: {reason}")),
            Self::Local(reason) => Self::Local(reason),
        }
    }
}

impl Record {
    /// The number of the next request; none when the warm-up ends.
    fn next(&mut self, requests: u32) -> Option<usize> {
        if self.started == requests || self.settled || self.has_failed(requests as usize) {
            return None;
        }
        self.started += 1;
        Some(self.started as usize - 1)
    }

    fn ended(&mut self, requests: u32, took: Duration, outcome: Result<(), Failed>) {
        match outcome {
            Ok(()) => {
                self.took.push(took);
                // Not after each of thousands of requests, because that sorts half of them.
                let step = (requests as usize / 40).max(1);
                self.settled |= self.took.len().is_multiple_of(step) && is_settled(&self.took, requests);
            }
            Err(Failed::Peer(reason)) => {
                self.failed += 1;
                self.last_failure = Some(reason);
            }
            Err(Failed::Local(reason)) => self.last_failure = Some(reason),
        }
    }

    fn ended_requests(&self) -> usize {
        self.took.len() + self.failed
    }

    /// Whether more requests failed than are allowed among `requests`.
    fn has_failed(&self, requests: usize) -> bool {
        self.failed as f64 > requests as f64 * FAILURES_ALLOWED
    }

    /// The outcome at the end of the warm-up.
    fn verdict(&self, requests: u32) -> Result<(), String> {
        let reason = self.last_failure.as_deref().unwrap_or("no response");
        if self.has_failed(requests as usize) || self.has_failed(self.ended_requests()) {
            return Err(format!("{} of {} warm-up requests failed, the last one: {reason}", self.failed, self.ended_requests()));
        }
        if self.took.is_empty() { Err(format!("no warm-up request was successful: {reason}")) } else { Ok(()) }
    }
}

/// Whether the response times no longer change.
fn is_settled(took: &[Duration], requests: u32) -> bool {
    let quarter = requests as usize / 4;
    let Some(before) = took.len().checked_sub(2 * quarter).filter(|_| quarter >= LEAST_QUARTER) else { return false };
    let (before, last) = took.get(before..).unwrap_or_default().split_at(quarter);
    let (before, last) = (p95(before).as_secs_f64(), p95(last).as_secs_f64());
    (last - before).abs() <= SETTLED * before
}

/// The 95th percentile, by the nearest rank; zero of nothing.
fn p95(took: &[Duration]) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    sorted.get((took.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

/// `23 of 50 requests, p95 120 ms`; of several peers the sum, and the highest p95.
impl fmt::Display for WarmUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = self.settings.config.requests as usize;
        let (mut ended, mut failed, mut highest) = (0, 0, Duration::ZERO);
        for (_, record) in &self.peers {
            let record = record.lock();
            let last = record.took.len().saturating_sub((requests / 4).max(1));
            ended += record.ended_requests();
            failed += record.failed;
            highest = highest.max(p95(record.took.get(last..).unwrap_or_default()));
        }
        write!(f, "{ended} of {} requests, p95 {} ms", requests * self.peers.len(), highest.as_millis())?;
        if failed > 0 { write!(f, ", {failed} failed") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(took: &[u64]) -> Vec<Duration> {
        took.iter().map(|took| Duration::from_millis(*took)).collect()
    }

    #[test]
    fn it_ends_when_the_p95_of_a_quarter_is_that_of_the_quarter_before() {
        let quarters = |quarters: &[u64]| ms(&quarters.iter().flat_map(|took| [*took; 10]).collect::<Vec<_>>());
        for (took, settled) in [
            (quarters(&[]), false),
            (quarters(&[100]), false),
            (quarters(&[100, 100]), true),
            (quarters(&[100, 81]), true),
            (quarters(&[100, 79]), false),
            (quarters(&[100, 121]), false),
            (quarters(&[900, 100, 20, 19]), true),
        ] {
            assert_eq!(is_settled(&took, 40), settled, "{took:?}");
        }
        assert!(!is_settled(&ms(&[1; 19]), 19), "the p95 of four requests changes by chance");
    }

    #[test]
    fn no_request_follows_when_response_times_no_longer_change() {
        let mut record = Record::default();
        let mut sent = 0;
        while record.next(400).is_some() {
            sent += 1;
            record.ended(400, Duration::from_millis(if sent <= 100 { 500 } else { 10 }), Ok(()));
        }
        assert_eq!((sent, record.verdict(400)), (300, Ok(())), "the second and the third quarter are equal");
    }

    #[test]
    fn the_95th_percentile_is_one_of_the_values() {
        assert_eq!(p95(&[]), Duration::ZERO);
        assert_eq!(p95(&ms(&[7])), Duration::from_millis(7));
        assert_eq!(p95(&ms(&(1..=100).rev().collect::<Vec<_>>())), Duration::from_millis(95));
        assert_eq!(p95(&ms(&(1..=20).collect::<Vec<_>>())), Duration::from_millis(19));
    }

    fn record(succeeded: usize, failed: usize) -> Record {
        let last_failure = Some("GET /: 500".to_owned());
        Record { took: vec![Duration::ZERO; succeeded], failed, last_failure, ..Record::default() }
    }

    #[test]
    fn more_than_a_tenth_of_failed_requests_is_a_failure_and_no_success_is_one_too() {
        assert_eq!(record(45, 5).verdict(50), Ok(()));
        assert_eq!(record(44, 6).verdict(50), Err("6 of 50 warm-up requests failed, the last one: GET /: 500".to_owned()));
        assert_eq!(record(9, 1).verdict(50), Ok(()));
        assert_eq!(record(7, 1).verdict(50), Err("1 of 8 warm-up requests failed, the last one: GET /: 500".to_owned()));
        let nothing = Record::default().verdict(50);
        assert_eq!(nothing, Err("no warm-up request was successful: no response".to_owned()));
        assert!(record(0, 6).next(50).is_none(), "the verdict cannot change any more");
        assert_eq!(record(0, 5).next(50), Some(0));
    }
}
