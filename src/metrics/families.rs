//! The metrics by subject, with their names, labels and help texts.
//!
//! [`super::Metrics::new`] builds each of these structs once. A field is one metric; the series of a service, pool or peer are
//! created with its handles.

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

use super::handles::CertificateMetrics;

const SERVICE: &[&str] = &["service"];
const POOL: &[&str] = &["service", "pool"];
const PEER: &[&str] = &["service", "pool", "peer"];

/// From half a millisecond, the response time of a local Spring Boot application, to the default response timeout.
pub(crate) const REQUEST_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A connection on one host takes microseconds; the default timeout is 2 s.
const CONNECT_BUCKETS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0];

/// From a swap between two ready pools to the defaults of `ready_timeout` and `drain.timeout`.
const SWAP_BUCKETS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Registers metrics.
pub(super) struct Builder(pub Registry);

impl Builder {
    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        let counter = IntCounter::with_opts(opts(name, help))?;
        self.0.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        let counters = IntCounterVec::new(opts(name, help), labels)?;
        self.0.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        let gauge = IntGauge::with_opts(opts(name, help))?;
        self.0.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(opts(name, help), labels)?;
        self.0.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    /// A gauge of a time, in seconds since 1970.
    fn time(&self, name: &str, help: &str) -> Result<Gauge> {
        let time = Gauge::with_opts(opts(name, help))?;
        self.0.register(Box::new(time.clone()))?;
        Ok(time)
    }

    /// Gauges of fractions: times in seconds since 1970, or shares from 0 to 1.
    fn fractions(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        let fractions = GaugeVec::new(opts(name, help), labels)?;
        self.0.register(Box::new(fractions.clone()))?;
        Ok(fractions)
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec> {
        let histograms = HistogramVec::new(HistogramOpts { common_opts: opts(name, help), buckets: buckets.to_vec() }, labels)?;
        self.0.register(Box::new(histograms.clone()))?;
        Ok(histograms)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("switchover_{name}"), help)
}

/// Requests that matched a service.
pub(super) struct Requests {
    pub total: IntCounterVec,
    pub duration: HistogramVec,
    pub in_flight: IntGaugeVec,
    pub upgraded: IntGaugeVec,
    pub broken_responses: IntCounterVec,
    pub retries: IntCounterVec,
    pub no_ready_peer: IntCounterVec,
    pub mirrored: IntCounterVec,
}

impl Requests {
    pub(super) fn new(b: &Builder) -> Result<Self> {
        Ok(Self {
            total: b.counters(
                "http_requests_total",
                "Requests that got a response, by the peer that sent it; pool and peer are empty if switchover sent it.",
                &["service", "pool", "peer", "code", "method"],
            )?,
            duration: b.histograms(
                "http_request_duration_seconds",
                "Time from the request header to the end of the response.",
                POOL,
                REQUEST_BUCKETS,
            )?,
            in_flight: b.gauges("http_requests_in_flight", "Requests and upgraded connections that run on a peer.", PEER)?,
            upgraded: b.gauges("upgraded_connections", "Upgraded connections (WebSocket) that run on a peer.", PEER)?,
            broken_responses: b.counters(
                "broken_responses_total",
                "Responses that broke off after their header, by the side that broke them off; http_requests_total counts them too.",
                &["service", "pool", "peer", "by"],
            )?,
            retries: b.counters("retries_total", "Requests that were retried, by outcome.", &["service", "outcome"])?,
            no_ready_peer: b.counters("no_ready_peer_total", "Requests that got 503 because no peer was ready.", SERVICE)?,
            mirrored: b.counters(
                "mirrored_total",
                "Copies of requests for a pool that is not active, by result.",
                &["service", "pool", "result"],
            )?,
        })
    }
}

/// Connections to peers, and their probes.
pub(super) struct Peers {
    pub connect: HistogramVec,
    pub response_header: HistogramVec,
    pub errors: IntCounterVec,
    pub ready: IntGaugeVec,
    pub draining: IntGaugeVec,
    pub probes: IntCounterVec,
    pub probe_duration: HistogramVec,
}

impl Peers {
    pub(super) fn new(b: &Builder) -> Result<Self> {
        Ok(Self {
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
            errors: b.counters(
                "upstream_errors_total",
                "Tries that failed because of a peer, by kind.",
                &["service", "pool", "peer", "kind"],
            )?,
            ready: b.gauges("peer_ready", "1 if the peer is ready, according to its probes.", PEER)?,
            draining: b.gauges("peer_draining", "1 if the peer gets no new requests and its running requests end.", PEER)?,
            probes: b.counters("probes_total", "Probes, by result.", &["service", "pool", "peer", "result"])?,
            probe_duration: b.histograms("probe_duration_seconds", "Duration of probes.", PEER, CONNECT_BUCKETS)?,
        })
    }
}

/// Swaps between pools.
pub(super) struct Swaps {
    pub active_pool: IntGaugeVec,
    pub canary_share: GaugeVec,
    pub warm_up_requests: IntCounterVec,
    pub total: IntCounterVec,
    pub taken_back: IntCounterVec,
    pub duration: HistogramVec,
    pub last_success: GaugeVec,
}

impl Swaps {
    pub(super) fn new(b: &Builder) -> Result<Self> {
        Ok(Self {
            active_pool: b.gauges(
                "active_pool",
                "1 for the active pool of a service, 0 for its other pools.",
                &["service", "pool", "version"],
            )?,
            canary_share: b.fractions(
                "canary_share",
                "Share of the clients that a pool gets besides the active one, from 0 to 1.",
                POOL,
            )?,
            warm_up_requests: b.counters(
                "warm_up_requests_total",
                "Requests of switchover to a new pool before its promotion, by result.",
                &["service", "pool", "result"],
            )?,
            total: b.counters("swaps_total", "Swaps, by outcome.", &["service", "result"])?,
            taken_back: b.counters(
                "take_backs_total",
                "Promoted pools that failed while they were observed, so that the old pool serves again, by reason.",
                &["service", "reason"],
            )?,
            duration: b.histograms(
                "swap_duration_seconds",
                "Duration of the phases of a swap.",
                &["service", "phase"],
                SWAP_BUCKETS,
            )?,
            last_success: b.fractions(
                "swap_last_success_timestamp_seconds",
                "End of the last successful swap, in seconds since 1970.",
                SERVICE,
            )?,
        })
    }
}

/// The configuration file and its reloads.
pub(super) struct Configuration {
    pub drift: IntGaugeVec,
    pub reloads: IntCounterVec,
    pub reload_successful: IntGauge,
    pub reload_last_success: Gauge,
    pub generation: IntGauge,
}

impl Configuration {
    pub(super) fn new(b: &Builder) -> Result<Self> {
        Ok(Self {
            drift: b.gauges(
                "config_drift",
                "1 if the running service differs from the configuration file, because a swap failed or was cancelled.",
                SERVICE,
            )?,
            reloads: b.counters("config_reloads_total", "Reloads of the configuration file, by result.", &["result"])?,
            reload_successful: b
                .gauge("config_last_reload_successful", "1 if the last reload of the configuration was accepted.")?,
            reload_last_success: b.time(
                "config_last_reload_success_timestamp_seconds",
                "When a configuration was last accepted, in seconds since 1970.",
            )?,
            generation: b.gauge("config_generation", "Number of the current snapshot.")?,
        })
    }
}

impl CertificateMetrics {
    pub(super) fn new(b: &Builder) -> Result<Self> {
        Ok(Self {
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
        })
    }
}
