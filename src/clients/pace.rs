//! How slowly a client may send a body or read an answer: the time it has spent being slower than its listener's `min_rate`.
//!
//! [`super::connection`] has one for each direction. The time is spent only while the client is waited for.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use pingora::protocols::SocketDigest;

/// A wait that is shorter than this is over.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// How slow a client has been in one direction.
pub(super) struct Pace {
    /// When the wait began that goes on now.
    since: Cell<Option<Instant>>,
    /// Time that was spent before it, of `budget`.
    spent: Cell<Duration>,
    budget: Cell<Duration>,
    /// `tcpi_bytes_acked` when it was last looked at.
    acked: Cell<u64>,
}

impl Pace {
    pub(super) fn new(stall_timeout: Duration) -> Self {
        Self { since: Cell::default(), spent: Cell::default(), budget: Cell::new(stall_timeout), acked: Cell::default() }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.since.get().is_some()
    }

    pub(super) fn begin_wait(&self) {
        self.since.set(Some(Instant::now()));
    }

    /// Begins to wait until the client has taken more of an answer. `unseen` is how many bytes it may take without any sign of it.
    pub(super) fn begin_wait_to_write(&self, socket: &SocketDigest, unseen: u64, rate: u32, stall_timeout: Duration) {
        let info = socket.tcp_info();
        self.acked.set(info.as_ref().map_or(0, |info| info.tcpi_bytes_acked));
        // A receiver announces room when it has it for a segment or half of its buffer (RFC 9293, section 3.8.6.2.2). Over the
        // loopback interface a segment is 64 KiB, which a client that is fast enough may take longer to read than `stall_timeout`.
        let unseen = unseen.max(info.map_or(0, |info| u64::from(info.tcpi_snd_mss)));
        self.budget.set(time_for(unseen, rate).clamp(stall_timeout, stall_timeout * 2));
        self.begin_wait();
    }

    /// When the wait is over, if there is one.
    pub(super) fn until(&self) -> Option<Instant> {
        self.since.get().map(|since| since + self.budget.get().saturating_sub(self.spent.get()))
    }

    /// The wait is over without what was waited for.
    pub(super) fn expire(&self) {
        self.since.set(None);
    }

    /// The client sent so many bytes.
    pub(super) fn end_wait(&self, bytes: u64, rate: u32) {
        if let Some(since) = self.since.take() {
            self.spent.set((self.spent.get() + since.elapsed()).saturating_sub(time_for(bytes, rate)));
        }
    }

    /// The client took more of an answer; `granted` bytes it had asked for itself, as HTTP/2 does.
    pub(super) fn end_wait_to_write(&self, socket: &SocketDigest, granted: u64, rate: u32) {
        if self.is_waiting() {
            self.end_wait(self.acknowledged(socket).max(granted), rate);
        }
    }

    /// After a wait to write has expired: whether the client has really taken too little. If not, the wait goes on.
    pub(super) fn is_too_slow(&self, socket: &SocketDigest, rate: u32) -> bool {
        let left = time_for(self.acknowledged(socket), rate).min(self.budget.get());
        self.spent.set(self.budget.get() - left);
        self.begin_wait();
        left < SHORTEST_WAIT
    }

    /// Bytes that the client's kernel has acknowledged since this was last asked.
    fn acknowledged(&self, socket: &SocketDigest) -> u64 {
        let acked = socket.tcp_info().map_or(0, |info| info.tcpi_bytes_acked);
        acked.saturating_sub(self.acked.replace(acked))
    }
}

/// How long a client of this rate takes for so many bytes.
fn time_for(bytes: u64, rate: u32) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / u64::from(rate.max(1)))
}
