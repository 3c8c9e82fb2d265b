//! The observation of a new pool after its promotion: what its requests and probes show, and for how long.
//!
//! Kept in its [`super::swap::Swap`]; [`super::service`] asks for the verdict and acts on it. The counts are those of the metrics,
//! compared with earlier values of them, so that a request costs no more while its pool is observed. Opens and closes no peer.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    judge::{self, Counts},
    start,
};
use crate::{
    config::{self, TakeBack},
    metrics::{Ending, PoolMetrics},
    pool::{Peer, Pool},
    status,
};

/// How often an observed pool is judged without a failed request: bounds the delay until a silent or unready pool is noticed.
const TICK: Duration = Duration::from_millis(100);
/// How many of the recent marks are kept. Four of them span the latest requests, twice that allows for their varying distance.
const MARKS: usize = 8;
/// The old pool's share of failures is taken from its last minute.
const SAMPLES: usize = 6;
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// Why a pool is taken back.
#[derive(Clone)]
pub(super) struct Fault {
    /// The label of `take_backs_total`.
    pub label: &'static str,
    /// With the numbers: `212 of 431 requests failed (500: 200, connect: 12) in 2.1 s; blue had 0.1%`.
    pub reason: String,
}

/// The observation of one promoted pool.
#[derive(Clone)]
pub(super) struct Observation {
    /// The old pool, as it was at the promotion.
    pub kept: config::Pool,
    pub until: Instant,
    /// Why the old pool cannot serve again, although the new one has failed.
    pub stuck: Option<String>,
    rule: TakeBack,
    /// The requests of the old pool before the promotion.
    old: Counts,
    /// For how long no response has to come until the pool hangs.
    silence: Duration,
    promoted: Mark,
    /// Later marks, at a distance of some requests, so that a pool that fails late is judged by its latest requests.
    recent: VecDeque<Mark>,
    headers: Headers,
    /// When it was last judged.
    judged: Instant,
    /// Its length and its counts, once it has ended.
    ended: Option<(Duration, Counts)>,
}

/// The response headers of the new pool.
#[derive(Clone)]
struct Headers {
    /// How many had come at the promotion, and how many requests ran.
    before: (u64, u64),
    seen: u64,
    /// Since when none has come although many requests wait.
    silent_since: Instant,
}

/// The requests of the active pool in the last minute.
#[derive(Default)]
pub(super) struct Samples {
    pool: String,
    marks: VecDeque<Mark>,
    metrics: Option<Arc<PoolMetrics>>,
    /// For each mark: how many response headers had come, and the sum of their times in seconds.
    headers: VecDeque<(u64, f64)>,
}

/// How the requests of some peers had ended at one time.
#[derive(Clone)]
struct Mark {
    at: Instant,
    peers: Vec<(Arc<Peer>, BTreeMap<Ending, u64>)>,
}

impl Observation {
    /// Begins to observe the `new` pool under `rules`. `old` and `average` are the requests of the old pool in the last minute, and their
    /// average time to a response header.
    pub(super) fn begin(
        new: &Pool,
        kept: config::Pool,
        (old, average): (Counts, Duration),
        rules: &config::Promotion,
        observer: &Arc<Notify>,
        now: Instant,
    ) -> Self {
        let peers: Vec<Arc<Peer>> = new.slots().iter().map(|slot| Arc::clone(&slot.peer)).collect();
        peers.iter().for_each(|peer| peer.observe(Some(Arc::clone(observer))));
        let seen = new.metrics.response_header.get_sample_count();
        let in_flight = peers.iter().map(|peer| peer.in_flight() as u64).sum();
        Self {
            kept,
            until: now + rules.observe,
            stuck: None,
            rule: rules.take_back.clone(),
            old,
            silence: judge::silence_if_hanging(average),
            promoted: Mark::new(peers, now),
            recent: VecDeque::new(),
            headers: Headers { before: (seen, in_flight), seen, silent_since: now },
            judged: now,
            ended: None,
        }
    }

    /// Observes further peers, which an edit has added to the pool.
    pub(super) fn add(&mut self, pool: &Pool, observer: &Arc<Notify>) {
        for slot in pool.slots() {
            if !self.promoted.peers.iter().any(|(peer, _)| Arc::ptr_eq(peer, &slot.peer)) {
                slot.peer.observe(Some(Arc::clone(observer)));
                let added = (Arc::clone(&slot.peer), slot.peer.metrics.endings());
                self.recent.iter_mut().chain([&mut self.promoted]).for_each(|mark| mark.peers.push(added.clone()));
            }
        }
    }

    /// Whether it has not ended.
    pub(super) fn is_on(&self) -> bool {
        self.ended.is_none()
    }

    /// Ends it; its counts stay for the report.
    pub(super) fn end(&mut self, now: Instant) {
        if self.is_on() {
            self.ended = Some((now - self.promoted.at, self.promoted.counts()));
            self.promoted.peers.drain(..).for_each(|(peer, _)| peer.observe(None));
            self.recent.clear();
        }
    }

    /// When it has to be judged again, or ends.
    pub(super) fn next_deadline(&self) -> Instant {
        self.until.min(self.judged + TICK)
    }

    /// Why the pool has failed, if it has. `old` is the name of the old pool.
    pub(super) fn fault(&mut self, active: &Pool, old: &str, now: Instant) -> Option<Fault> {
        self.judged = now;
        let failed = |mark: &&Mark| judge::has_too_many_errors(mark.counts(), self.old, &self.rule);
        if let Some(mark) = [&self.promoted].into_iter().chain(&self.recent).find(failed) {
            return Some(Fault { label: "errors", reason: self.errors(mark, old, now) });
        }
        if !start::serves(active) {
            return Some(Fault { label: "not_ready", reason: format!("no peer is ready: {}", active.missing()) });
        }
        let apart = (judge::latest(&self.rule) / 4).max(1);
        if self.recent.back().unwrap_or(&self.promoted).counts().requests >= apart {
            let mark = Mark::new(self.promoted.peers.iter().map(|(peer, _)| Arc::clone(peer)), now);
            push(&mut self.recent, MARKS, mark);
        }
        let waiting = self.waiting(active, now);
        (now - self.headers.silent_since >= self.silence).then(|| {
            let reason = format!("{waiting} requests wait, and no response has come for {} s", self.silence.as_secs());
            Fault { label: "hanging", reason }
        })
    }

    /// For how long it lasts or has lasted, and what it has seen.
    pub(super) fn status(&self, now: Instant) -> status::Observation {
        let (lasted, counts) = self.ended.unwrap_or_else(|| (now - self.promoted.at, self.promoted.counts()));
        let left = if self.is_on() { self.until.saturating_duration_since(now) } else { Duration::ZERO };
        status::Observation {
            seconds: lasted.as_secs_f64(),
            left_seconds: left.as_secs_f64(),
            requests: counts.requests,
            failed: counts.failed,
        }
    }

    /// The requests that wait for a response header. Sets since when none has come.
    ///
    /// A request that runs either waits, or its header has come and its response has not ended; a long download does not wait.
    fn waiting(&mut self, active: &Pool, now: Instant) -> u64 {
        let sum = |of: fn(&Peer) -> usize| self.promoted.peers.iter().map(|(peer, _)| of(peer) as u64).sum::<u64>();
        let (running, upgraded) = (sum(Peer::in_flight), sum(Peer::upgraded));
        let headers = active.metrics.response_header.get_sample_count();
        // 499: the client left while it waited.
        let answered = |(ending, _): &(Ending, u64)| matches!(ending, Ending::Status(status) if *status != 499);
        let ended: u64 = self.promoted.endings().into_iter().filter(answered).map(|(_, count)| count).sum();
        let (headers_before, running_before) = self.headers.before;
        let with_header = (running_before + headers).saturating_sub(headers_before + ended);
        let waiting = running.saturating_sub(upgraded).min(running.saturating_sub(with_header));
        if headers != self.headers.seen || waiting < self.rule.at_least {
            (self.headers.seen, self.headers.silent_since) = (headers, now);
        }
        waiting
    }

    fn errors(&self, mark: &Mark, old: &str, now: Instant) -> String {
        let Counts { requests, failed } = mark.counts();
        let mut kinds: Vec<(Ending, u64)> =
            mark.endings().into_iter().filter(|(ending, count)| ending.is_failure() && *count > 0).collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let kinds: Vec<String> = kinds.iter().map(|(ending, count)| format!("{ending}: {count}")).collect();
        let seconds = (now - mark.at).as_secs_f64();
        let mut reason = format!("{failed} of {requests} requests failed ({}) in {seconds:.1} s; ", kinds.join(", "));
        // Writing to a string cannot fail.
        match self.old.share() {
            None => write!(reason, "{old} had no requests before"),
            Some(share) => write!(reason, "{old} had {share}"),
        }
        .unwrap_or_default();
        reason
    }
}

impl Samples {
    /// Samples the active pool if the last sample is old enough.
    pub(super) fn take(&mut self, active: &Pool, now: Instant) {
        if self.pool != active.name {
            *self = Self { pool: active.name.clone(), metrics: Some(Arc::clone(&active.metrics)), ..Self::default() };
        }
        if self.next_deadline().is_none_or(|next| now >= next) {
            let peers = active.slots().iter().map(|slot| Arc::clone(&slot.peer));
            push(&mut self.marks, SAMPLES, Mark::new(peers, now));
            push(&mut self.headers, SAMPLES, headers(&active.metrics));
        }
    }

    /// When the next sample is due; none before the first.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.marks.back().map(|mark| mark.at + SAMPLE_INTERVAL)
    }

    /// The requests of `pool` since the oldest sample, and their average time to a response header.
    pub(super) fn since(&self, pool: &str) -> (Counts, Duration) {
        let (Some(mark), Some(before), Some(metrics)) = (self.marks.front(), self.headers.front(), &self.metrics) else {
            return Default::default();
        };
        if self.pool != pool {
            return Default::default();
        }
        let (count, seconds) = headers(metrics);
        // Far fewer than 2^52 requests in a minute.
        #[expect(clippy::cast_precision_loss, reason = "an average")]
        let average = (seconds - before.1) / (count.saturating_sub(before.0).max(1)) as f64;
        (mark.counts(), Duration::try_from_secs_f64(average).unwrap_or_default())
    }
}

impl Mark {
    fn new(peers: impl IntoIterator<Item = Arc<Peer>>, now: Instant) -> Self {
        let endings = |peer: Arc<Peer>| {
            let endings = peer.metrics.endings();
            (peer, endings)
        };
        Self { at: now, peers: peers.into_iter().map(endings).collect() }
    }

    /// How requests have ended since.
    fn endings(&self) -> BTreeMap<Ending, u64> {
        let mut since = BTreeMap::new();
        for (peer, before) in &self.peers {
            for (ending, count) in peer.metrics.endings() {
                let before = before.get(&ending).copied().unwrap_or_default();
                *since.entry(ending).or_default() += count.saturating_sub(before);
            }
        }
        since
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (ending, count) in self.endings() {
            counts.requests += count;
            counts.failed += if ending.is_failure() { count } else { 0 };
        }
        counts
    }
}

/// How many response headers have come, and the sum of their times in seconds.
fn headers(metrics: &PoolMetrics) -> (u64, f64) {
    (metrics.response_header.get_sample_count(), metrics.response_header.get_sample_sum())
}

/// Adds a value, and drops the oldest one if there are more than `most`.
fn push<T>(values: &mut VecDeque<T>, most: usize, value: T) {
    values.push_back(value);
    if values.len() > most {
        values.pop_front();
    }
}
