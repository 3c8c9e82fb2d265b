//! Every metric with its name, labels and help text.
//!
//! The composition root creates one [`Metrics`] and passes it down. Services, pools and peers get their handles once, when they are
//! created, so that a request looks up no metric. No label may contain data from a client.

mod families;
mod handles;

pub(crate) use self::families::REQUEST_BUCKETS;
pub use self::handles::{
    BrokenBy, CertificateMetrics, Ending, ErrorKind, MirrorMetrics, PeerGauges, PeerMetrics, PoolMetrics, RequestCounter,
    ServiceMetrics,
};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, Registry, TextEncoder};

use self::{
    families::{Builder, Configuration, Peers, Requests, Swaps},
    handles::{BROKEN_BY, ERROR_KINDS},
};

/// The `result` of `swaps_total`.
const SWAP_RESULTS: [&str; 7] = ["drained", "drain_timed_out", "taken_back", "not_ready", "refused", "superseded", "cancelled"];

/// The `reason` of `take_backs_total`.
const TAKE_BACK_REASONS: [&str; 3] = ["errors", "not_ready", "hanging"];

/// The `hook` and `result` of `hooks_total`.
const HOOK_RESULTS: [[&str; 2]; 5] =
    [["check", "success"], ["check", "failure"], ["notify", "success"], ["notify", "failure"], ["notify", "dropped"]];

/// The `result` of `mirrored_total`.
const MIRROR_RESULTS: [&str; 4] = ["response", "failed", "dropped", "not_ready"];

/// The `task` of `task_restarts_total`.
const RESTARTED_TASKS: [&str; 7] = ["access_log", "acme", "certificates", "notify", "probe", "resolver", "token"];

/// All metrics of one process.
pub struct Metrics {
    registry: Registry,
    requests: Requests,
    peers: Peers,
    swaps: Swaps,
    configuration: Configuration,
    /// Lines that were not written because the queue was full or writing failed.
    pub access_log_dropped: IntCounter,
    /// Labels: listener, reason.
    pub rejected: IntCounterVec,
    /// Set by the listeners' TLS.
    pub certificates: CertificateMetrics,
    /// Open client connections.
    pub downstream_connections: IntGauge,
    /// Labels: hook, result.
    pub hooks: IntCounterVec,
    /// Labels: task.
    pub task_restarts: IntCounterVec,
    /// Requests that match no service.
    pub unrouted: RequestCounter,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When two metrics have the same name, which is a mistake in this module.
    pub fn new() -> prometheus::Result<Self> {
        let b = Builder(Registry::new());
        let requests = Requests::new(&b)?;
        let task_restarts = b.counters("task_restarts_total", "Tasks that panicked and were restarted, by task.", &["task"])?;
        // Create the series with 0: `increase()` does not see a series that begins at 1.
        for task in RESTARTED_TASKS {
            task_restarts.with_label_values(&[task]);
        }
        let hooks = b.counters("hooks_total", "Runs of hooks, by hook and result.", &["hook", "result"])?;
        for labels in HOOK_RESULTS {
            hooks.with_label_values(&labels);
        }
        let build_info = b.gauges("build_info", "Always 1; the label is the version of switchover.", &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        b.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            unrouted: RequestCounter::new(&requests.total, ["", "", ""]),
            requests,
            peers: Peers::new(&b)?,
            swaps: Swaps::new(&b)?,
            configuration: Configuration::new(&b)?,
            certificates: CertificateMetrics::new(&b)?,
            access_log_dropped: b.counter(
                "access_log_dropped_total",
                "Lines of the access log that were lost, because the queue was full or writing failed.",
            )?,
            rejected: b.counters(
                "rejected_requests_total",
                "Connections and requests rejected before a service saw them, by reason.",
                &["listener", "reason"],
            )?,
            downstream_connections: b.gauge("downstream_connections", "Open client connections.")?,
            hooks,
            task_restarts,
            registry: b.0,
        })
    }

    /// Handles of one service.
    pub fn service(&self, service: &str) -> ServiceMetrics {
        // Create the series with 0: `increase()` does not see a series that begins at 1.
        for result in SWAP_RESULTS {
            self.swaps.total.with_label_values(&[service, result]);
        }
        for reason in TAKE_BACK_REASONS {
            self.swaps.taken_back.with_label_values(&[service, reason]);
        }
        ServiceMetrics {
            retries_succeeded: self.requests.retries.with_label_values(&[service, "success"]),
            retries_failed: self.requests.retries.with_label_values(&[service, "failure"]),
            no_ready_peer: self.requests.no_ready_peer.with_label_values(&[service]),
            unserved: RequestCounter::new(&self.requests.total, [service, "", ""]),
        }
    }

    /// Handles of one pool.
    pub fn pool(&self, service: &str, pool: &str) -> PoolMetrics {
        PoolMetrics {
            duration: self.requests.duration.with_label_values(&[service, pool]),
            connect: self.peers.connect.with_label_values(&[service, pool]),
            response_header: self.peers.response_header.with_label_values(&[service, pool]),
            warm_up_succeeded: self.swaps.warm_up_requests.with_label_values(&[service, pool, "success"]),
            warm_up_failed: self.swaps.warm_up_requests.with_label_values(&[service, pool, "failure"]),
        }
    }

    /// Handles of the copies of requests for one pool.
    pub fn mirror(&self, service: &str, pool: &str) -> MirrorMetrics {
        let [responses, failed, dropped, not_ready] =
            MIRROR_RESULTS.map(|result| self.requests.mirrored.with_label_values(&[service, pool, result]));
        MirrorMetrics { responses, failed, dropped, not_ready }
    }

    /// Removes the series of copies that end.
    pub fn remove_mirror(&self, service: &str, pool: &str) {
        for result in MIRROR_RESULTS {
            drop(self.requests.mirrored.remove_label_values(&[service, pool, result]));
        }
    }

    /// Handles of one peer.
    pub fn peer(&self, service: &str, pool: &str, peer: &str) -> PeerMetrics {
        let labels = &[service, pool, peer];
        PeerMetrics {
            requests: RequestCounter::new(&self.requests.total, [service, pool, peer]),
            probes_passed: self.peers.probes.with_label_values(&[service, pool, peer, "pass"]),
            probes_failed: self.peers.probes.with_label_values(&[service, pool, peer, "fail"]),
            probes_local: self.peers.probes.with_label_values(&[service, pool, peer, "local"]),
            probe_duration: self.peers.probe_duration.with_label_values(labels),
            errors: ERROR_KINDS.map(|kind| self.peers.errors.with_label_values(&[service, pool, peer, kind.label()])),
            broken: BROKEN_BY.map(|by| self.requests.broken_responses.with_label_values(&[service, pool, peer, by.label()])),
            in_flight: self.requests.in_flight.with_label_values(labels),
            upgraded: self.requests.upgraded.with_label_values(labels),
            ready: self.peers.ready.with_label_values(labels),
            draining: self.peers.draining.with_label_values(labels),
        }
    }

    /// Removes the series of a removed peer. Errors are ignored: they only say that a series does not exist.
    pub fn remove_peer(&self, service: &str, pool: &str, peer: &str, counter: &RequestCounter) {
        for (code, method) in counter.by_code.load().keys() {
            drop(self.requests.total.remove_label_values(&[service, pool, peer, &code.to_string(), method]));
        }
        for kind in ERROR_KINDS.map(ErrorKind::label) {
            drop(self.peers.errors.remove_label_values(&[service, pool, peer, kind]));
        }
        for by in BROKEN_BY.map(BrokenBy::label) {
            drop(self.requests.broken_responses.remove_label_values(&[service, pool, peer, by]));
        }
        for result in ["pass", "fail", "local"] {
            drop(self.peers.probes.remove_label_values(&[service, pool, peer, result]));
        }
        let labels = &[service, pool, peer];
        drop(self.peers.probe_duration.remove_label_values(labels));
        for gauge in [&self.requests.in_flight, &self.requests.upgraded, &self.peers.ready, &self.peers.draining] {
            drop(gauge.remove_label_values(labels));
        }
    }

    /// Removes the series of a removed pool.
    pub fn remove_pool(&self, service: &str, pool: &str) {
        for histogram in [&self.requests.duration, &self.peers.connect, &self.peers.response_header] {
            drop(histogram.remove_label_values(&[service, pool]));
        }
        for result in ["success", "failure"] {
            drop(self.swaps.warm_up_requests.remove_label_values(&[service, pool, result]));
        }
    }

    /// Removes the series of a removed service.
    pub fn remove_service(&self, service: &str, counter: &RequestCounter) {
        for (code, method) in counter.by_code.load().keys() {
            drop(self.requests.total.remove_label_values(&[service, "", "", &code.to_string(), method]));
        }
        for outcome in ["success", "failure"] {
            drop(self.requests.retries.remove_label_values(&[service, outcome]));
        }
        drop(self.requests.no_ready_peer.remove_label_values(&[service]));
        drop(self.swaps.last_success.remove_label_values(&[service]));
        for result in SWAP_RESULTS {
            drop(self.swaps.total.remove_label_values(&[service, result]));
        }
        for reason in TAKE_BACK_REASONS {
            drop(self.swaps.taken_back.remove_label_values(&[service, reason]));
        }
        for phase in ["prove", "drain", "total"] {
            drop(self.swaps.duration.remove_label_values(&[service, phase]));
        }
    }

    /// Sets `active_pool` from `(service, pool, version, active)`.
    pub fn set_active_pools<'a>(&self, pools: impl Iterator<Item = (&'a str, &'a str, &'a str, bool)>) {
        self.swaps.active_pool.reset();
        for (service, pool, version, active) in pools {
            self.swaps.active_pool.with_label_values(&[service, pool, version]).set(i64::from(active));
        }
    }

    /// Sets `canary_share` from `(service, pool, share)`.
    pub fn set_canary_shares<'a>(&self, shares: impl Iterator<Item = (&'a str, &'a str, f64)>) {
        self.swaps.canary_share.reset();
        for (service, pool, share) in shares {
            self.swaps.canary_share.with_label_values(&[service, pool]).set(share);
        }
    }

    /// Sets `config_drift` from `(service, drift)`.
    pub fn set_config_drift<'a>(&self, services: impl Iterator<Item = (&'a str, bool)>) {
        self.configuration.drift.reset();
        for (service, drift) in services {
            self.configuration.drift.with_label_values(&[service]).set(i64::from(drift));
        }
    }

    /// Counts an ended swap.
    pub fn swap_ended(&self, service: &str, result: &str, prove: Option<Duration>, drain: Option<Duration>, total: Duration) {
        self.swaps.total.with_label_values(&[service, result]).inc();
        for (phase, took) in [("prove", prove), ("drain", drain), ("total", Some(total))] {
            if let Some(took) = took {
                self.swaps.duration.with_label_values(&[service, phase]).observe(took.as_secs_f64());
            }
        }
        if result == "drained" {
            self.swaps.last_success.with_label_values(&[service]).set(unix_seconds());
        }
    }

    /// Counts a promoted pool that was taken back.
    pub fn taken_back(&self, service: &str, reason: &str) {
        self.swaps.taken_back.with_label_values(&[service, reason]).inc();
    }

    /// Counts a reload.
    pub fn reloaded(&self, result: &str, successful: bool) {
        self.configuration.reloads.with_label_values(&[result]).inc();
        self.configuration.reload_successful.set(i64::from(successful));
        if successful {
            self.configuration.reload_last_success.set(unix_seconds());
        }
    }

    /// Sets `config_generation`.
    pub fn set_generation(&self, generation: u64) {
        self.configuration.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
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
