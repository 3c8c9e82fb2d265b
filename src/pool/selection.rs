//! The choice of a peer by `balance`, with Pingora's selection algorithms.
//!
//! [`super::Pool`] calls it for every try of a request, and says which slots are eligible. A choice takes no lock and allocates
//! nothing. Health and leases are the pool's.

use fnv::FnvHasher;
use pingora::lb::selection::{
    SelectionAlgorithm,
    algorithms::{Random, RoundRobin},
};

use super::{
    Slot,
    slow_start::{SlowStart, weight},
};
use crate::config::{Balance, HashBy};

/// A kind of choice, and its state.
pub(super) enum Selection {
    LeastRequests(RoundRobin),
    RoundRobin {
        turn: RoundRobin,
        /// Indices of slots, each repeated by its weight and spread evenly.
        rotation: Vec<u16>,
    },
    Random(Random),
    Hash {
        by: HashBy,
        /// The hash of each slot's address as written in the file, in the order of the slots.
        names: Vec<u64>,
        /// For requests without a key.
        turn: RoundRobin,
    },
}

/// The hash of a request's key or of a peer's address. It is the same in every process, so that several switchovers choose the
/// same peer for a client, also after a restart.
pub fn hash(bytes: &[u8]) -> u64 {
    FnvHasher::default().next(bytes)
}

impl Selection {
    pub(super) fn new(balance: Balance, by: Option<&HashBy>, slots: &[Slot]) -> Self {
        match (balance, by) {
            (Balance::RoundRobin, _) => Self::RoundRobin { turn: RoundRobin::new(), rotation: rotation(slots) },
            (Balance::Random, _) => Self::Random(Random::new()),
            (Balance::Hash, Some(by)) => {
                let names = slots.iter().map(|slot| hash(slot.peer.address.to_string().as_bytes())).collect();
                Self::Hash { by: by.clone(), names, turn: RoundRobin::new() }
            }
            // A valid configuration has `hash` with `balance: hash`.
            (Balance::Hash | Balance::LeastRequests, _) => Self::LeastRequests(RoundRobin::new()),
        }
    }

    /// What a request's key is taken from; none if the choice does not depend on the request.
    pub(super) fn hash_by(&self) -> Option<&HashBy> {
        match self {
            Self::Hash { by, .. } => Some(by),
            Self::LeastRequests(_) | Self::RoundRobin { .. } | Self::Random(_) => None,
        }
    }

    /// The next of the eligible slots; `key` is the hash of the request's key, if it has one.
    pub(super) fn next<'a>(
        &self,
        slots: &'a [Slot],
        key: Option<u64>,
        slow_start: Option<SlowStart>,
        eligible: impl Fn(&Slot) -> bool,
    ) -> Option<&'a Slot> {
        let weight = |slot: &Slot| weight(slow_start, slot);
        match (self, key, slow_start) {
            (Self::RoundRobin { turn, rotation }, _, None) => in_turn(slots, turn, rotation, eligible),
            (Self::RoundRobin { turn, rotation }, _, Some(slow)) => in_slow_turn(slots, turn, rotation, slow, eligible),
            (Self::Random(random), ..) => less_loaded_of_two(slots, random, weight, eligible),
            (Self::Hash { names, .. }, Some(key), _) => by_hash(slots, names, key, weight, eligible),
            (Self::LeastRequests(turn) | Self::Hash { turn, .. }, ..) => least_requests(slots, turn, weight, eligible),
        }
    }
}

/// The slot with the fewest requests for its weight, the new request included. The search starts at another slot each time, so that
/// equal slots share the load of a pool with few requests.
fn least_requests<'a>(
    slots: &'a [Slot],
    turn: &RoundRobin,
    weight: impl Fn(&Slot) -> u64,
    eligible: impl Fn(&Slot) -> bool,
) -> Option<&'a Slot> {
    let start = if slots.len() > 1 { position(turn, slots.len()) } else { 0 };
    let (after, before) = (slots.iter().skip(start), slots.iter().take(start));
    after.chain(before).filter(|slot| eligible(slot)).min_by(|a, b| {
        let load = |slot: &Slot, other: &Slot| (slot.peer.in_flight() as u64 + 1) * weight(other);
        load(a, b).cmp(&load(b, a))
    })
}

/// Every step moves the shared position, also past a slot that is not eligible: its share goes to all others, not only to the next one
/// in the rotation.
fn in_turn<'a>(slots: &'a [Slot], turn: &RoundRobin, rotation: &[u16], eligible: impl Fn(&Slot) -> bool) -> Option<&'a Slot> {
    rotation.iter().find_map(|_| {
        let slot = slots.get(usize::from(*rotation.get(position(turn, rotation.len()))?))?;
        eligible(slot).then_some(slot)
    })
}

/// The same, but passes over a slot in a part of its turns, so that it gets its share in comparison with the slot that has the
/// largest one. The hash of a turn's number spreads these turns evenly. If every slot was passed over, the first of them is chosen:
/// other requests have moved the position past all others.
fn in_slow_turn<'a>(
    slots: &'a [Slot],
    turn: &RoundRobin,
    rotation: &[u16],
    slow_start: SlowStart,
    eligible: impl Fn(&Slot) -> bool,
) -> Option<&'a Slot> {
    let largest = slots.iter().filter(|slot| eligible(slot)).map(|slot| slow_start.share(slot)).max()?;
    let mut passed_over = None;
    let chosen = rotation.iter().find_map(|_| {
        let number = turn.next(&[]);
        let index = usize::try_from(number).unwrap_or_default() % rotation.len();
        let slot = slots.get(usize::from(*rotation.get(index)?)).filter(|slot| eligible(slot))?;
        let is_its_turn = mixed(number) % largest < slow_start.share(slot);
        passed_over = passed_over.or(Some(slot));
        is_its_turn.then_some(slot)
    });
    chosen.or(passed_over)
}

/// Of two slots drawn by weight, the one with fewer requests for its weight. Several switchovers with the same view of a pool do not
/// all choose the same slot, as they would with the fewest requests of all.
fn less_loaded_of_two<'a>(
    slots: &'a [Slot],
    random: &Random,
    weight: impl Fn(&Slot) -> u64,
    eligible: impl Fn(&Slot) -> bool,
) -> Option<&'a Slot> {
    let first = draw(slots, random, &weight, &eligible)?;
    let second = draw(slots, random, &weight, |slot| eligible(slot) && !std::ptr::eq(slot, first));
    // Without the new request, so that idle slots are equal and get their shares by the draw.
    let load = |slot: &Slot, other: &Slot| slot.peer.in_flight() as u64 * weight(other);
    Some(second.filter(|second| load(second, first) < load(first, second)).unwrap_or(first))
}

fn draw<'a>(
    slots: &'a [Slot],
    random: &Random,
    weight: impl Fn(&Slot) -> u64,
    eligible: impl Fn(&Slot) -> bool,
) -> Option<&'a Slot> {
    let candidates = || slots.iter().filter(|slot| eligible(slot));
    let total: u64 = candidates().map(&weight).sum();
    let mut left = random.next(&[]).checked_rem(total)?;
    let drawn = candidates().find(|slot| {
        let rest = left.checked_sub(weight(slot));
        left = rest.unwrap_or(left);
        rest.is_none()
    });
    // A peer that stops being ready between the two passes leaves less weight than was summed up.
    drawn.or_else(|| candidates().next())
}

/// Weighted rendezvous hashing: each slot has a score for the key, and the highest wins. An added or removed slot changes no other
/// score, so only the clients that it wins or loses move. The score is the logarithmic method of Schindelhauer and Schomaker,
/// "Weighted Distributed Hash Tables" (2005).
fn by_hash<'a>(
    slots: &'a [Slot],
    names: &[u64],
    key: u64,
    weight: impl Fn(&Slot) -> u64,
    eligible: impl Fn(&Slot) -> bool,
) -> Option<&'a Slot> {
    let score = |slot: &Slot, name: u64| {
        // Uniform in (0, 1), from the upper 53 bits.
        let uniform = ((mixed(key ^ name) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -(weight(slot) as f64) / uniform.ln()
    };
    let scored = slots.iter().zip(names).filter(|(slot, _)| eligible(slot)).map(|(slot, name)| (score(slot, *name), slot));
    scored.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, slot)| slot)
}

/// The finalizer of MurmurHash3. The last bytes of a text change only few bits of its FNV hash; the score needs all of them to.
pub fn mixed(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn position(turn: &RoundRobin, length: usize) -> usize {
    usize::try_from(turn.next(&[])).unwrap_or_default() % length
}

/// One full turn of smooth weighted round robin (the algorithm of nginx): at each step every slot's credit grows by its weight, the
/// slot with the most credit is next, and the sum of all weights is taken from its credit.
fn rotation(slots: &[Slot]) -> Vec<u16> {
    let divisor = slots.iter().fold(0, |divisor, slot| gcd(divisor, slot.weight)).max(1);
    let weights: Vec<i64> = slots.iter().map(|slot| i64::from(slot.weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0; weights.len()];
    (0..total)
        .filter_map(|_| {
            credit.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += weight);
            // The first of equal slots, so that a turn starts in the order of the file.
            let (index, most) = credit.iter_mut().enumerate().rev().max_by_key(|(_, credit)| **credit)?;
            *most -= total;
            u16::try_from(index).ok()
        })
        .collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}
