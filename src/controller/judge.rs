//! Decides whether an observed pool has failed. Pure: numbers in, a verdict out.
//!
//! [`super::observation`] counts, and calls these functions after each failed request and at each tick.

use std::time::Duration;

use crate::config::{Percentage, TakeBack};

/// The least time in which no response has come until the pool counts as hanging. A pause of a garbage collector is shorter.
const SILENCE: Duration = Duration::from_secs(2);

/// How many times the share of the old pool's failures the new pool may have: the same release shows that much at random.
const TIMES_OLD: u128 = 3;

/// The same as a multiple of the old pool's average time to a response: a service of long polls is silent for as long.
const TIMES_AVERAGE: u32 = 3;

/// Requests on a pool in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub requests: u64,
    pub failed: u64,
}

impl Counts {
    /// The share of the failed requests; none without requests.
    pub(super) fn share(self) -> Option<Percentage> {
        let per_mille = (u128::from(self.failed) * 1000).checked_div(u128::from(self.requests))?;
        Some(Percentage { per_mille: u16::try_from(per_mille).unwrap_or(u16::MAX) })
    }
}

/// Whether too many of the new pool's requests have failed; `old` are those of the old pool in its last minute.
pub(super) fn has_too_many_errors(new: Counts, old: Counts, rule: &TakeBack) -> bool {
    let [new_requests, new_failed, old_requests, old_failed] =
        [new.requests, new.failed, old.requests, old.failed].map(u128::from);
    new.failed >= rule.at_least
        && new_failed * 1000 >= u128::from(rule.errors.per_mille) * new_requests
        // Without a request, the old pool had no failures either.
        && (old_requests == 0 || new_failed * old_requests > (old_failed * new_requests).saturating_mul(TIMES_OLD))
}

/// How long no response may come while `at_least` requests wait for one. `average` is the old pool's time to a response header.
pub(super) fn silence_if_hanging(average: Duration) -> Duration {
    SILENCE.max(average.saturating_mul(TIMES_AVERAGE))
}

/// The number of latest requests in which `at_least` failures are the share of `errors`.
pub(super) fn latest(rule: &TakeBack) -> u64 {
    (rule.at_least.saturating_mul(1000) / u64::from(rule.errors.per_mille).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(per_mille: u16, at_least: u64) -> TakeBack {
        TakeBack { errors: Percentage { per_mille }, at_least }
    }

    #[test]
    fn too_many_errors() {
        let of = |(failed, requests)| Counts { requests, failed };
        let default = rule(100, 20);
        for (new, old, rule, verdict) in [
            // (failed, requests) of the new and of the old pool.
            ((0, 0), (0, 0), &default, false),
            ((0, 1000), (0, 1000), &default, false),
            ((19, 19), (0, 1000), &default, false),
            ((20, 20), (0, 1000), &default, true),
            ((20, 20), (0, 0), &default, true),
            // The share has to reach `errors`.
            ((20, 200), (0, 1000), &default, true),
            ((20, 201), (0, 1000), &default, false),
            ((20, 201), (0, 1000), &rule(99, 20), true),
            ((1000, 1000), (0, 1000), &rule(1000, 20), true),
            ((999, 1000), (0, 1000), &rule(1000, 20), false),
            ((1, 1000), (0, 1000), &rule(1, 1), true),
            // It has to be more than three times the old share.
            ((30, 100), (10, 100), &default, false),
            ((31, 100), (10, 100), &default, true),
            ((2, 100), (2, 100), &rule(1, 1), false),
            ((100, 100), (100, 100), &default, false),
            ((u64::MAX, u64::MAX), (u64::MAX, u64::MAX), &default, false),
            ((u64::MAX, u64::MAX), (0, u64::MAX), &default, true),
        ] {
            assert_eq!(has_too_many_errors(of(new), of(old), rule), verdict, "{new:?} {old:?} {rule:?}");
        }
    }

    #[test]
    fn a_pool_hangs_after_two_seconds_or_three_times_the_average() {
        for (average, silence) in [(0, 2000), (666, 2000), (1000, 3000), (30_000, 90_000)] {
            assert_eq!(silence_if_hanging(Duration::from_millis(average)), Duration::from_millis(silence));
        }
        assert_eq!(silence_if_hanging(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn the_latest_requests_are_those_in_which_the_fewest_failures_are_the_share() {
        for (per_mille, at_least, requests) in [(100, 20, 200), (1000, 1, 1), (1, 1_000_000, 1_000_000_000), (999, 1, 1)] {
            assert_eq!(latest(&rule(per_mille, at_least)), requests);
        }
    }
}
