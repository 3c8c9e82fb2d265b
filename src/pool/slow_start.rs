//! Slow start: the share of a peer that has just become ready grows from a tenth of its weight to all of it.
//!
//! A new JVM is slow while its caches are empty and its code is not compiled. Used by `selection` in each choice. Without slow start,
//! a choice reads no clock and uses the weights of the file.

use std::time::{Duration, Instant};

use super::Slot;

/// The share at the moment of readiness. Not zero: a peer without requests stays cold.
const FIRST: f64 = 0.1;
/// The whole share, so that weights stay integers.
const WHOLE: u64 = 1000;

/// The moment of a choice in a pool with slow start.
#[derive(Clone, Copy)]
pub(super) struct SlowStart {
    /// More than zero.
    pub length: Duration,
    pub now: Instant,
}

impl SlowStart {
    /// None without slow start.
    pub(super) fn now(length: Duration) -> Option<Self> {
        (!length.is_zero()).then(|| Self { length, now: Instant::now() })
    }

    /// The share of its weight that a slot gets, in thousandths. It grows linearly.
    pub(super) fn share(self, slot: &Slot) -> u64 {
        share(slot.peer.health.ready_for(self.now), self.length)
    }
}

/// The weight of a slot, in a unit that is the same for all slots of one choice.
pub(super) fn weight(slow_start: Option<SlowStart>, slot: &Slot) -> u64 {
    u64::from(slot.weight) * slow_start.map_or(1, |slow_start| slow_start.share(slot))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 100 to 1000")]
fn share(ready_for: Duration, length: Duration) -> u64 {
    let grown = FIRST + (1.0 - FIRST) * ready_for.as_secs_f64() / length.as_secs_f64();
    (grown.min(1.0) * WHOLE as f64).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_from_a_tenth_to_all() {
        let length = Duration::from_secs(20);
        for (seconds, expected) in [(0, 100), (5, 325), (10, 550), (19, 955), (20, 1000), (3600, 1000)] {
            assert_eq!(share(Duration::from_secs(seconds), length), expected, "{seconds} s");
        }
        assert_eq!(share(Duration::ZERO, Duration::from_nanos(1)), 100);
    }
}
