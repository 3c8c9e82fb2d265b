//! Handles of the metrics of one service, pool or peer, and their label values.
//!
//! [`super::Metrics`] creates them when a service, pool or peer is created, so that counting a request looks nothing up by name.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use http::Method;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// The `kind` of `upstream_errors_total`: why a peer failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The peer refused the connection or could not be reached.
    Connect,
    /// Connecting took longer than `timeouts.connect`.
    ConnectTimeout,
    /// The peer closed or reset the connection before its response was complete.
    Closed,
    /// No response header within `timeouts.response`.
    ResponseTimeout,
    /// The response was not valid HTTP.
    Protocol,
    /// switchover had no descriptor, port or memory to connect. Not a failure of the peer.
    Local,
}

pub(super) const ERROR_KINDS: [ErrorKind; 6] = [
    ErrorKind::Connect,
    ErrorKind::ConnectTimeout,
    ErrorKind::Closed,
    ErrorKind::ResponseTimeout,
    ErrorKind::Protocol,
    ErrorKind::Local,
];

impl ErrorKind {
    /// The `kind` of `upstream_errors_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Closed => "closed",
            Self::ResponseTimeout => "response_timeout",
            Self::Protocol => "protocol",
            Self::Local => "local",
        }
    }
}

/// How a try of a request on a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// With a response of this status.
    Status(u16),
    /// With an [`ErrorKind`], by its label.
    Error(&'static str),
}

impl Ending {
    /// Whether the peer failed the request. A 4xx is the client's failure.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Status(500..) | Self::Error(_))
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Error(kind) => f.write_str(kind),
        }
    }
}

/// Gauges of the listeners' certificates.
#[derive(Clone)]
pub struct CertificateMetrics {
    /// Labels: listener, names of the certificate.
    pub not_after: IntGaugeVec,
    /// Labels: listener, file.
    pub problem: IntGaugeVec,
}

/// The `by` of `broken_responses_total`: which side broke off a response after its header was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenBy {
    /// The client closed the connection or was too slow.
    Client,
    /// The peer closed or reset the connection.
    Peer,
    /// A fault of switchover.
    Switchover,
}

pub(super) const BROKEN_BY: [BrokenBy; 3] = [BrokenBy::Client, BrokenBy::Peer, BrokenBy::Switchover];

impl BrokenBy {
    /// The `by` of `broken_responses_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Switchover => "switchover",
        }
    }
}

/// Counts the requests of one service, pool and peer by code and method.
///
/// The map is copied when a new pair of code and method appears, so that counting takes no lock. It has at most 900 codes times
/// ten methods.
pub struct RequestCounter {
    vec: IntCounterVec,
    labels: [String; 3],
    pub(super) by_code: ArcSwap<BTreeMap<(u16, &'static str), IntCounter>>,
}

/// Handles of one service.
pub struct ServiceMetrics {
    /// Retried requests that got a response.
    pub retries_succeeded: IntCounter,
    /// Retried requests that failed.
    pub retries_failed: IntCounter,
    /// Requests for which no peer was ready.
    pub no_ready_peer: IntCounter,
    /// Requests that no peer responded to.
    pub unserved: RequestCounter,
}

/// Handles of the copies of requests for one pool, by their results.
pub struct MirrorMetrics {
    /// The pool responded, whatever the status.
    pub responses: IntCounter,
    /// The pool did not respond.
    pub failed: IntCounter,
    /// Not sent, because too many copies were running.
    pub dropped: IntCounter,
    /// Not sent, because no peer of the pool was ready.
    pub not_ready: IntCounter,
}

/// Handles of one pool.
pub struct PoolMetrics {
    /// From the request header to the end of the response.
    pub duration: Histogram,
    /// Time to connect.
    pub connect: Histogram,
    /// From the connection to the response header.
    pub response_header: Histogram,
    /// Requests of a warm-up that got a response other than 5xx.
    pub warm_up_succeeded: IntCounter,
    /// Requests of a warm-up that failed.
    pub warm_up_failed: IntCounter,
}

/// Handles of one peer.
pub struct PeerMetrics {
    /// Requests that the peer responded to.
    pub requests: RequestCounter,
    /// Probes that passed.
    pub probes_passed: IntCounter,
    /// Probes that failed.
    pub probes_failed: IntCounter,
    /// Probes that could not be sent, because switchover had no descriptor, port or memory.
    pub probes_local: IntCounter,
    /// Durations of probes.
    pub probe_duration: Histogram,
    pub(super) errors: [IntCounter; ERROR_KINDS.len()],
    pub(super) broken: [IntCounter; BROKEN_BY.len()],
    pub(super) in_flight: IntGauge,
    pub(super) upgraded: IntGauge,
    pub(super) ready: IntGauge,
    pub(super) draining: IntGauge,
}

/// The state of a peer at a scrape. The peer keeps it; the gauges are set from it just before each scrape.
pub struct PeerGauges {
    /// Requests and upgraded connections.
    pub in_flight: usize,
    /// Upgraded connections.
    pub upgraded: usize,
    /// Whether probes say that it is ready.
    pub ready: bool,
    /// Whether it is being drained.
    pub draining: bool,
}

impl PeerMetrics {
    /// Counts a failed try.
    pub fn error(&self, kind: ErrorKind) {
        for (k, counter) in ERROR_KINDS.iter().zip(&self.errors) {
            if *k == kind {
                counter.inc();
            }
        }
    }

    /// Counts a response that broke off.
    pub fn broke_off(&self, by: BrokenBy) {
        for (b, counter) in BROKEN_BY.iter().zip(&self.broken) {
            if *b == by {
                counter.inc();
            }
        }
    }

    /// The number of tries so far by their ending, without those that switchover itself could not send.
    pub fn endings(&self) -> BTreeMap<Ending, u64> {
        let mut endings = BTreeMap::new();
        for ((status, _), counter) in self.requests.by_code.load().iter() {
            *endings.entry(Ending::Status(*status)).or_default() += counter.get();
        }
        let errors = ERROR_KINDS.iter().zip(&self.errors).filter(|(kind, _)| **kind != ErrorKind::Local);
        endings.extend(errors.map(|(kind, counter)| (Ending::Error(kind.label()), counter.get())));
        endings
    }

    /// Sets the gauges, just before a scrape.
    pub fn set(&self, gauges: &PeerGauges) {
        self.in_flight.set(i64::try_from(gauges.in_flight).unwrap_or(i64::MAX));
        self.upgraded.set(i64::try_from(gauges.upgraded).unwrap_or(i64::MAX));
        self.ready.set(i64::from(gauges.ready));
        self.draining.set(i64::from(gauges.draining));
    }
}

impl RequestCounter {
    pub(super) fn new(vec: &IntCounterVec, labels: [&str; 3]) -> Self {
        Self { vec: vec.clone(), labels: labels.map(str::to_owned), by_code: ArcSwap::default() }
    }

    /// Counts one request.
    pub fn inc(&self, code: u16, method: &Method) {
        let key = (code, method_label(method));
        if let Some(counter) = self.by_code.load().get(&key) {
            counter.inc();
            return;
        }
        let [service, pool, peer] = &self.labels;
        let counter = self.vec.with_label_values(&[service.as_str(), pool, peer, &code.to_string(), key.1]);
        counter.inc();
        self.by_code.rcu(|map| {
            let mut map = BTreeMap::clone(map);
            map.insert(key, counter.clone());
            Arc::new(map)
        });
    }
}

/// The standard methods, or `OTHER`, so that clients cannot create series.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => "OTHER",
    }
}
