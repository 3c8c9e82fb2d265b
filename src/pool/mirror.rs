//! Copies of requests for a pool that is not active: how many may run, and how their responses compare with the originals'.
//!
//! The controller makes a [`Comparison`] for each pair of pools; the proxy sends the copies and counts both sides, and the status
//! shows them. The counts are apart from those of the pools, because no client gets a response to a copy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus::{Histogram, HistogramOpts, core::Collector};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{MirrorMetrics, REQUEST_BUCKETS};

/// How many copies of a service may run at the same time. Each holds a request header and a read buffer, less than 128 KiB.
const RUNNING: usize = 32;

/// The responses to copied requests, and to their copies.
pub struct Comparison {
    /// From the active pool.
    pub originals: Responses,
    /// From the pool that gets the copies.
    pub copies: Responses,
    /// The counters of the copies.
    pub metrics: MirrorMetrics,
    places: Arc<Semaphore>,
}

/// The responses of one pool.
pub struct Responses {
    /// By the first digit of their status, from 1 to 5.
    classes: [AtomicU64; 5],
    /// Time from the connection to the response header.
    header: Histogram,
}

impl Comparison {
    /// # Errors
    /// When the buckets of the histograms are invalid, which is a mistake in this program.
    pub fn new(metrics: MirrorMetrics) -> prometheus::Result<Self> {
        let places = Arc::new(Semaphore::new(RUNNING));
        Ok(Self { originals: Responses::new()?, copies: Responses::new()?, metrics, places })
    }

    /// A place for one copy, until it is dropped; none if too many copies are running.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }
}

impl Responses {
    fn new() -> prometheus::Result<Self> {
        let options = HistogramOpts::new("header", "Not registered.").buckets(REQUEST_BUCKETS.to_vec());
        Ok(Self { classes: Default::default(), header: Histogram::with_opts(options)? })
    }

    /// Counts a response. `header` is none if the response is switchover's own.
    pub fn count(&self, status: u16, header: Option<Duration>) {
        if let Some(class) = self.classes.get(usize::from(status / 100).wrapping_sub(1)) {
            class.fetch_add(1, Relaxed);
        }
        if let Some(header) = header {
            self.header.observe(header.as_secs_f64());
        }
    }

    /// The number of responses by the first digit of their status, from 1 to 5.
    pub fn by_class(&self) -> [u64; 5] {
        self.classes.each_ref().map(|class| class.load(Relaxed))
    }

    /// The time to the response header that the share `quantile` of the responses does not exceed, interpolated within its bucket as
    /// Prometheus does; none without a response. At most the largest bucket, 60 s.
    pub fn header_seconds(&self, quantile: f64) -> Option<f64> {
        let families = self.header.collect();
        let histogram = families.first()?.get_metric().first()?.get_histogram();
        let count = histogram.get_sample_count();
        let rank = quantile * count as f64;
        let (mut lower, mut below) = (0.0, 0);
        for bucket in histogram.get_bucket() {
            let (upper, up_to) = (bucket.upper_bound(), bucket.cumulative_count());
            if up_to as f64 >= rank && up_to > below {
                return Some(lower + (upper - lower) * (rank - below as f64) / (up_to - below) as f64);
            }
            (lower, below) = (upper, up_to);
        }
        (count > 0).then_some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_within_their_bucket() {
        let responses = Responses::new().unwrap();
        assert_eq!(responses.header_seconds(0.5), None);
        // 100 between 1 and 2.5 ms, and 100 between 10 and 25 ms.
        for milliseconds in [2, 20] {
            (0..100).for_each(|_| responses.count(200, Some(Duration::from_millis(milliseconds))));
        }
        let is = |quantile: f64, expected: f64| {
            let seconds = responses.header_seconds(quantile).unwrap();
            assert!((seconds - expected).abs() < 1e-9, "{quantile}: {seconds}");
        };
        is(0.25, 0.00175);
        is(0.5, 0.0025);
        is(0.95, 0.0235);
        (0..800).for_each(|_| responses.count(504, Some(Duration::from_secs(100))));
        is(0.95, 60.0);
    }

    #[test]
    fn responses_are_counted_by_class() {
        let responses = Responses::new().unwrap();
        for status in [101, 200, 204, 302, 404, 499, 502, 504, 599, 0, 600] {
            responses.count(status, None);
        }
        assert_eq!(responses.by_class(), [1, 2, 1, 2, 3]);
    }
}
