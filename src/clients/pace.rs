//! Measures for how long a client has been slower than its listener's `min_rate`, while it sends a body or reads a response.
//!
//! A [`super::connection::Connection`] has one [`Pace`] for each direction. Only the time in which switchover waits for the client
//! counts: being slower than `min_rate` spends `stall_timeout`, being faster gives it back. A bound on single reads and writes would
//! pass a client that sends or reads a byte now and then.
//!
//! How fast a client reads is what its kernel has acknowledged (`tcpi_bytes_acked`). Bytes that the socket accepted say little: it
//! accepts the next ones when a third of its send buffer is free, which may be megabytes.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use pingora::protocols::SocketDigest;

use super::cells::{DurationCell, InstantCell};

/// A remaining wait that is shorter counts as over.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The time budget of a client in one direction.
pub(super) struct Pace {
    /// Begin of the present wait.
    since: InstantCell,
    /// How much of `budget` earlier waits used.
    spent: DurationCell,
    budget: DurationCell,
    /// `tcpi_bytes_acked` at the last look.
    acked: AtomicU64,
}

impl Pace {
    pub(super) fn new(stall_timeout: Duration) -> Self {
        Self {
            since: InstantCell::default(),
            spent: DurationCell::default(),
            budget: DurationCell::new(stall_timeout),
            acked: AtomicU64::new(0),
        }
    }

    /// A new request begins: what earlier ones spent does not count, however many short waits a long connection adds up.
    pub(super) fn reset(&self) {
        self.since.set(None);
        self.spent.set(Duration::ZERO);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.since.get().is_some()
    }

    pub(super) fn begin_wait(&self) {
        self.since.set(Some(Instant::now()));
    }

    /// Begins to wait until the client reads more of a response. `unseen`: how many bytes it may read without a visible sign.
    pub(super) fn begin_wait_to_write(&self, socket: &SocketDigest, unseen: u64, rate: u32, stall_timeout: Duration) {
        let info = socket.tcp_info();
        self.acked.store(info.as_ref().map_or(0, |info| info.tcpi_bytes_acked), Relaxed);
        // A receiver announces a larger window only when it has room for a segment or half of its buffer (RFC 9293, section
        // 3.8.6.2.2). On the loopback interface a segment is 64 KiB, and a client at `min_rate` may need more than `stall_timeout`
        // to read one.
        let unseen = unseen.max(info.map_or(0, |info| u64::from(info.tcpi_snd_mss)));
        self.budget.set(time_for(unseen, rate).clamp(stall_timeout, stall_timeout * 2));
        self.begin_wait();
    }

    /// When the present wait times out; none without one.
    pub(super) fn until(&self) -> Option<Instant> {
        self.since.get().map(|since| since + self.budget.get().saturating_sub(self.spent.get()))
    }

    /// Ends a wait that timed out.
    pub(super) fn expire(&self) {
        self.since.set(None);
    }

    /// Ends a wait: the client sent `bytes`.
    pub(super) fn end_wait(&self, bytes: u64, rate: u32) {
        if let Some(since) = self.since.take() {
            self.spent.set((self.spent.get() + since.elapsed()).saturating_sub(time_for(bytes, rate)));
        }
    }

    /// Ends a wait to write: the client read more. `granted`: bytes of HTTP/2 flow-control window that it has opened.
    pub(super) fn end_wait_to_write(&self, socket: &SocketDigest, granted: u64, rate: u32) {
        if self.is_waiting() {
            self.end_wait(self.acknowledged(socket).max(granted), rate);
        }
    }

    /// After a wait to write timed out: whether the client has read too little. If not, continues the wait.
    pub(super) fn is_too_slow(&self, socket: &SocketDigest, rate: u32) -> bool {
        let left = time_for(self.acknowledged(socket), rate).min(self.budget.get());
        self.spent.set(self.budget.get() - left);
        self.begin_wait();
        left < SHORTEST_WAIT
    }

    /// Bytes that the client's kernel has acknowledged since the last look.
    fn acknowledged(&self, socket: &SocketDigest) -> u64 {
        let acked = socket.tcp_info().map_or(0, |info| info.tcpi_bytes_acked);
        acked.saturating_sub(self.acked.swap(acked, Relaxed))
    }
}

/// The time for `bytes` at `rate` bytes per second.
fn time_for(bytes: u64, rate: u32) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / u64::from(rate.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_request_has_the_whole_budget() {
        let budget = Duration::from_secs(30);
        let pace = Pace::new(budget);
        pace.begin_wait();
        while pace.since.get().is_none_or(|since| since.elapsed() < SHORTEST_WAIT) {}
        pace.end_wait(0, 500);
        assert!(pace.spent.get() >= SHORTEST_WAIT);
        pace.reset();
        pace.begin_wait();
        assert_eq!(pace.until().zip(pace.since.get()).map(|(until, since)| until - since), Some(budget));
    }
}
