//! Every metric with its name, labels and help text.
//!
//! The composition root creates one [`Metrics`] and passes it down. Services, pools and peers get their handles once, when they are
//! created, so that a request looks up no metric. No label may contain data from a client.

mod handles;

pub use self::handles::{
    BrokenBy, CertificateMetrics, ErrorKind, PeerGauges, PeerMetrics, PoolMetrics, RequestCounter, ServiceMetrics,
};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use self::handles::{BROKEN_BY, ERROR_KINDS};

/// From half a millisecond, the response time of a local Spring Boot application, to the default response timeout.
const REQUEST_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A connection on one host takes microseconds; the default timeout is 2 s.
const CONNECT_BUCKETS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0];

/// From a swap between two ready pools to the defaults of `ready_timeout` and `drain.timeout`.
const SWAP_BUCKETS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// The `result` of `swaps_total`.
const SWAP_RESULTS: [&str; 5] = ["drained", "drain_timed_out", "not_ready", "superseded", "cancelled"];

/// The `task` of `task_restarts_total`.
const RESTARTED_TASKS: [&str; 6] = ["access_log", "acme", "certificates", "probe", "resolver", "token"];

/// All metrics of one process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    connect: HistogramVec,
    response_header: HistogramVec,
    in_flight: IntGaugeVec,
    upgraded: IntGaugeVec,
    upstream_errors: IntCounterVec,
    broken_responses: IntCounterVec,
    retries: IntCounterVec,
    no_ready_peer: IntCounterVec,
    peer_ready: IntGaugeVec,
    peer_draining: IntGaugeVec,
    probes: IntCounterVec,
    probe_duration: HistogramVec,
    active_pool: IntGaugeVec,
    config_drift: IntGaugeVec,
    swaps: IntCounterVec,
    swap_duration: HistogramVec,
    swap_last_success: GaugeVec,
    reloads: IntCounterVec,
    reload_successful: IntGauge,
    reload_last_success: Gauge,
    generation: IntGauge,
    /// Lines that were not written because the queue was full or writing failed.
    pub access_log_dropped: IntCounter,
    /// Labels: listener, reason.
    pub rejected: IntCounterVec,
    /// Set by the listeners' TLS.
    pub certificates: CertificateMetrics,
    /// Open client connections.
    pub downstream_connections: IntGauge,
    /// Labels: task.
    pub task_restarts: IntCounterVec,
    /// Requests that match no service.
    pub unrouted: RequestCounter,
}

struct Builder(Registry);

impl Builder {
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        let vec = IntCounterVec::new(opts(name, help), labels)?;
        self.0.register(Box::new(vec.clone()))?;
        Ok(vec)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        let vec = IntGaugeVec::new(opts(name, help), labels)?;
        self.0.register(Box::new(vec.clone()))?;
        Ok(vec)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let gauge = IntGauge::with_opts(opts(name, help))?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let counter = IntCounter::with_opts(opts(name, help))?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> prometheus::Result<HistogramVec> {
        let vec = HistogramVec::new(HistogramOpts { common_opts: opts(name, help), buckets: buckets.to_vec() }, labels)?;
        self.0.register(Box::new(vec.clone()))?;
        Ok(vec)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("switchover_{name}"), help)
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When two metrics have the same name, which is a mistake in this module.
    pub fn new() -> prometheus::Result<Self> {
        const PEER: &[&str] = &["service", "pool", "peer"];
        const POOL: &[&str] = &["service", "pool"];
        let b = Builder(Registry::new());
        let requests = b.counters(
            "http_requests_total",
            "Requests that got a response, by the peer that sent it; pool and peer are empty if switchover sent it.",
            &["service", "pool", "peer", "code", "method"],
        )?;
        let swap_last_success = GaugeVec::new(
            opts("swap_last_success_timestamp_seconds", "End of the last successful swap, in seconds since 1970."),
            &["service"],
        )?;
        b.0.register(Box::new(swap_last_success.clone()))?;
        let reload_last_success = Gauge::with_opts(opts(
            "config_last_reload_success_timestamp_seconds",
            "When a configuration was last accepted, in seconds since 1970.",
        ))?;
        b.0.register(Box::new(reload_last_success.clone()))?;
        let task_restarts = b.counters("task_restarts_total", "Tasks that panicked and were restarted, by task.", &["task"])?;
        // Create the series with 0: `increase()` does not see a series that begins at 1.
        for task in RESTARTED_TASKS {
            task_restarts.with_label_values(&[task]);
        }
        let build_info = b.gauges("build_info", "Always 1; the label is the version of switchover.", &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        b.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            unrouted: RequestCounter::new(&requests, ["", "", ""]),
            requests,
            request_duration: b.histograms(
                "http_request_duration_seconds",
                "Time from the request header to the end of the response.",
                POOL,
                REQUEST_BUCKETS,
            )?,
            connect: b.histograms(
                "upstream_connect_seconds",
                "Time to connect to a peer; reused connections do not count.",
                POOL,
                CONNECT_BUCKETS,
            )?,
            response_header: b.histograms(
                "upstream_response_header_seconds",
                "Time from the connection to the peer's response header.",
                POOL,
                REQUEST_BUCKETS,
            )?,
            in_flight: b.gauges("http_requests_in_flight", "Requests and upgraded connections that run on a peer.", PEER)?,
            upgraded: b.gauges("upgraded_connections", "Upgraded connections (WebSocket) that run on a peer.", PEER)?,
            upstream_errors: b.counters(
                "upstream_errors_total",
                "Tries that failed because of a peer, by kind.",
                &["service", "pool", "peer", "kind"],
            )?,
            broken_responses: b.counters(
                "broken_responses_total",
                "Responses that broke off after their header, by the side that broke them off; http_requests_total counts them too.",
                &["service", "pool", "peer", "by"],
            )?,
            retries: b.counters("retries_total", "Requests that were retried, by outcome.", &["service", "outcome"])?,
            no_ready_peer: b.counters("no_ready_peer_total", "Requests that got 503 because no peer was ready.", &["service"])?,
            peer_ready: b.gauges("peer_ready", "1 if the peer is ready, according to its probes.", PEER)?,
            peer_draining: b.gauges("peer_draining", "1 if the peer gets no new requests and its running requests end.", PEER)?,
            probes: b.counters("probes_total", "Probes, by result.", &["service", "pool", "peer", "result"])?,
            probe_duration: b.histograms("probe_duration_seconds", "Duration of probes.", PEER, CONNECT_BUCKETS)?,
            active_pool: b.gauges(
                "active_pool",
                "1 for the active pool of a service, 0 for its other pools.",
                &["service", "pool", "version"],
            )?,
            config_drift: b.gauges(
                "config_drift",
                "1 if the running service differs from the configuration file, because a swap failed or was cancelled.",
                &["service"],
            )?,
            swaps: b.counters("swaps_total", "Swaps, by outcome.", &["service", "result"])?,
            swap_duration: b.histograms(
                "swap_duration_seconds",
                "Duration of the phases of a swap.",
                &["service", "phase"],
                SWAP_BUCKETS,
            )?,
            swap_last_success,
            reloads: b.counters("config_reloads_total", "Reloads of the configuration file, by result.", &["result"])?,
            reload_successful: b
                .gauge("config_last_reload_successful", "1 if the last reload of the configuration was accepted.")?,
            reload_last_success,
            generation: b.gauge("config_generation", "Number of the current snapshot.")?,
            access_log_dropped: b.counter(
                "access_log_dropped_total",
                "Lines of the access log that were lost, because the queue was full or writing failed.",
            )?,
            rejected: b.counters(
                "rejected_requests_total",
                "Connections and requests rejected before a service saw them, by reason.",
                &["listener", "reason"],
            )?,
            certificates: CertificateMetrics {
                not_after: b.gauges(
                    "tls_certificate_not_after_seconds",
                    "When a certificate expires, in seconds since 1970.",
                    &["listener", "names"],
                )?,
                problem: b.gauges(
                    "tls_certificate_problem",
                    "1 if a certificate or client CA has expired or its files cannot be used, else 0.",
                    &["listener", "file"],
                )?,
            },
            downstream_connections: b.gauge("downstream_connections", "Open client connections.")?,
            task_restarts,
            registry: b.0,
        })
    }

    /// Handles of one service.
    pub fn service(&self, service: &str) -> ServiceMetrics {
        // Create the series with 0: `increase()` does not see a series that begins at 1.
        for result in SWAP_RESULTS {
            self.swaps.with_label_values(&[service, result]);
        }
        ServiceMetrics {
            retries_succeeded: self.retries.with_label_values(&[service, "success"]),
            retries_failed: self.retries.with_label_values(&[service, "failure"]),
            no_ready_peer: self.no_ready_peer.with_label_values(&[service]),
            unserved: RequestCounter::new(&self.requests, [service, "", ""]),
        }
    }

    /// Handles of one pool.
    pub fn pool(&self, service: &str, pool: &str) -> PoolMetrics {
        PoolMetrics {
            duration: self.request_duration.with_label_values(&[service, pool]),
            connect: self.connect.with_label_values(&[service, pool]),
            response_header: self.response_header.with_label_values(&[service, pool]),
        }
    }

    /// Handles of one peer.
    pub fn peer(&self, service: &str, pool: &str, peer: &str) -> PeerMetrics {
        let labels = &[service, pool, peer];
        PeerMetrics {
            requests: RequestCounter::new(&self.requests, [service, pool, peer]),
            probes_passed: self.probes.with_label_values(&[service, pool, peer, "pass"]),
            probes_failed: self.probes.with_label_values(&[service, pool, peer, "fail"]),
            probes_local: self.probes.with_label_values(&[service, pool, peer, "local"]),
            probe_duration: self.probe_duration.with_label_values(labels),
            errors: ERROR_KINDS.map(|kind| self.upstream_errors.with_label_values(&[service, pool, peer, kind.label()])),
            broken: BROKEN_BY.map(|by| self.broken_responses.with_label_values(&[service, pool, peer, by.label()])),
            in_flight: self.in_flight.with_label_values(labels),
            upgraded: self.upgraded.with_label_values(labels),
            ready: self.peer_ready.with_label_values(labels),
            draining: self.peer_draining.with_label_values(labels),
        }
    }

    /// Removes the series of a removed peer. Errors are ignored: they only say that a series does not exist.
    pub fn remove_peer(&self, service: &str, pool: &str, peer: &str, counter: &RequestCounter) {
        for (code, method) in counter.by_code.load().keys() {
            drop(self.requests.remove_label_values(&[service, pool, peer, &code.to_string(), method]));
        }
        for kind in ERROR_KINDS.map(ErrorKind::label) {
            drop(self.upstream_errors.remove_label_values(&[service, pool, peer, kind]));
        }
        for by in BROKEN_BY.map(BrokenBy::label) {
            drop(self.broken_responses.remove_label_values(&[service, pool, peer, by]));
        }
        for result in ["pass", "fail", "local"] {
            drop(self.probes.remove_label_values(&[service, pool, peer, result]));
        }
        let labels = &[service, pool, peer];
        drop(self.probe_duration.remove_label_values(labels));
        for gauge in [&self.in_flight, &self.upgraded, &self.peer_ready, &self.peer_draining] {
            drop(gauge.remove_label_values(labels));
        }
    }

    /// Removes the series of a removed pool.
    pub fn remove_pool(&self, service: &str, pool: &str) {
        for histogram in [&self.request_duration, &self.connect, &self.response_header] {
            drop(histogram.remove_label_values(&[service, pool]));
        }
    }

    /// Removes the series of a removed service.
    pub fn remove_service(&self, service: &str, counter: &RequestCounter) {
        for (code, method) in counter.by_code.load().keys() {
            drop(self.requests.remove_label_values(&[service, "", "", &code.to_string(), method]));
        }
        for outcome in ["success", "failure"] {
            drop(self.retries.remove_label_values(&[service, outcome]));
        }
        drop(self.no_ready_peer.remove_label_values(&[service]));
        drop(self.swap_last_success.remove_label_values(&[service]));
        for result in SWAP_RESULTS {
            drop(self.swaps.remove_label_values(&[service, result]));
        }
        for phase in ["prove", "drain", "total"] {
            drop(self.swap_duration.remove_label_values(&[service, phase]));
        }
    }

    /// Sets `active_pool` from `(service, pool, version, active)`.
    pub fn set_active_pools<'a>(&self, pools: impl Iterator<Item = (&'a str, &'a str, &'a str, bool)>) {
        self.active_pool.reset();
        for (service, pool, version, active) in pools {
            self.active_pool.with_label_values(&[service, pool, version]).set(i64::from(active));
        }
    }

    /// Sets `config_drift` from `(service, drift)`.
    pub fn set_config_drift<'a>(&self, services: impl Iterator<Item = (&'a str, bool)>) {
        self.config_drift.reset();
        for (service, drift) in services {
            self.config_drift.with_label_values(&[service]).set(i64::from(drift));
        }
    }

    /// Counts an ended swap.
    pub fn swap_ended(&self, service: &str, result: &str, prove: Option<Duration>, drain: Option<Duration>, total: Duration) {
        self.swaps.with_label_values(&[service, result]).inc();
        for (phase, took) in [("prove", prove), ("drain", drain), ("total", Some(total))] {
            if let Some(took) = took {
                self.swap_duration.with_label_values(&[service, phase]).observe(took.as_secs_f64());
            }
        }
        if result == "drained" {
            self.swap_last_success.with_label_values(&[service]).set(unix_seconds());
        }
    }

    /// Counts a reload.
    pub fn reloaded(&self, result: &str, successful: bool) {
        self.reloads.with_label_values(&[result]).inc();
        self.reload_successful.set(i64::from(successful));
        if successful {
            self.reload_last_success.set(unix_seconds());
        }
    }

    /// Sets `config_generation`.
    pub fn set_generation(&self, generation: u64) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// Encodes all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// When the encoder rejects a metric.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
