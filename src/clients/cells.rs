//! Shared cells for the parts of [`super::connection::Connection`], which is one value that several owners hold.
//!
//! One task at a time works on a connection, so no access competes with another one. The cells exist because the value has to be
//! `Sync`; they use relaxed atomics, which cost as much as plain fields, and no lock on the path of a usual request.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// An optional instant, in nanoseconds since the first use of one; 0 for none.
#[derive(Default)]
pub(super) struct InstantCell(AtomicU64);

/// A duration, in nanoseconds.
#[derive(Default)]
pub(super) struct DurationCell(AtomicU64);

/// A value that most requests do not have. [`Slot::take`] locks nothing while it is empty.
pub(super) struct Slot<T> {
    is_set: AtomicBool,
    value: Mutex<Option<T>>,
}

/// `Instant` has no public representation, so instants are stored as their distance from this one.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl InstantCell {
    pub(super) fn get(&self) -> Option<Instant> {
        match self.0.load(Relaxed) {
            0 => None,
            nanos => Some(*ORIGIN + Duration::from_nanos(nanos)),
        }
    }

    pub(super) fn set(&self, instant: Option<Instant>) {
        let nanos = instant.map_or(0, |instant| nanos(instant.saturating_duration_since(*ORIGIN)).max(1));
        self.0.store(nanos, Relaxed);
    }

    pub(super) fn take(&self) -> Option<Instant> {
        let instant = self.get();
        self.set(None);
        instant
    }
}

impl DurationCell {
    pub(super) fn new(duration: Duration) -> Self {
        Self(AtomicU64::new(nanos(duration)))
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }

    pub(super) fn set(&self, duration: Duration) {
        self.0.store(nanos(duration), Relaxed);
    }
}

impl<T> Slot<T> {
    pub(super) fn set(&self, value: T) {
        *self.value.lock() = Some(value);
        self.is_set.store(true, Relaxed);
    }

    pub(super) fn take(&self) -> Option<T> {
        if !self.is_set.load(Relaxed) {
            return None;
        }
        self.is_set.store(false, Relaxed);
        self.value.lock().take()
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { is_set: AtomicBool::new(false), value: Mutex::new(None) }
    }
}

/// Enough for 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_and_values_come_back_once() {
        let cell = InstantCell::default();
        assert_eq!(cell.get(), None);
        let later = Instant::now() + Duration::from_secs(3);
        cell.set(Some(later));
        assert_eq!((cell.take(), cell.get()), (Some(later), None));
        let slot = Slot::default();
        slot.set(1);
        assert_eq!((slot.take(), slot.take()), (Some(1), None));
    }
}
