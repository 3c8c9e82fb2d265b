//! Bounds how much of a response is read from the peer before the client reads it.
//!
//! Pingora's proxy connects the two sides of a request by a channel of four pieces. While the client's side waits for the client, the
//! peer's side continues to read, up to ten pieces of 64 KiB, and neither number can be set. But both sides are one future, which is
//! polled here. So:
//!
//! - while the client reads nothing, the future is not polled ([`bounded`]): of everything that it waits for, only the wait for the
//!   client can wake it ([`writing`]);
//! - in the poll in which that wait begins, the peer's side gets nothing of Tokio's cooperative budget, so that it reads no more;
//! - a poll of a long response, and of any response while others are stalled, begins with as much of that budget as one piece takes
//!   ([`ONE_PIECE`]). Tokio's `try_join!` polls either side first, in turn, so that only the future as a whole can be bounded.
//!
//! At most [`STALLED_STREAMS`] responses of an HTTP/2 connection can be stalled at a time. The others are not polled until one of
//! these continues or ends, so that a client cannot make the process hold more by sending more requests.
//!
//! [`super::edge`] and [`super::http2`] run every request in [`bounded`]; [`super::client_stream`] and [`super::http2`] write through
//! [`writing`].

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::coop::{RestoreOnPending, has_budget_remaining, poll_proceed, unconstrained},
};
use tokio_util::sync::PollSemaphore;

use super::connection::Connection;

/// Responses of one HTTP/2 connection that may wait for the client at a time.
pub(super) const STALLED_STREAMS: usize = 6;
/// A usual request takes fewer polls; bounding it would only cost time.
const SHORT: usize = 4;
/// One read, and one step that hands the piece over to the client's side.
const ONE_PIECE: usize = 2;
/// More than Tokio's budget for one poll. Without a budget, the loop would not end.
const BUDGET: usize = 256;

/// Wakes the task of a response that waits for its client.
struct StallWaker {
    connection: Arc<Connection>,
    task: Waker,
}

impl Wake for StallWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.connection.note_client_took();
        self.task.wake_by_ref();
    }
}

/// Polls a write to the client. If it has to wait, the response is stalled.
pub(super) fn writing<T>(
    connection: &Arc<Connection>,
    cx: &mut Context<'_>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    // The budget bounds what the peer's side does; writes to the client are exempt from it.
    let mut poll = |cx: &mut Context<'_>| pin!(unconstrained(poll_fn(&mut poll))).poll(cx);
    let mut polled = poll(cx);
    if polled.is_pending() {
        // Before the second poll, because the waker may be called during it.
        connection.begin_stall();
        let waker = Arc::new(StallWaker { connection: Arc::clone(connection), task: cx.waker().clone() });
        // Again: the last waker is the one that is woken.
        polled = poll(&mut Context::from_waker(&Waker::from(waker)));
    }
    if polled.is_pending() {
        spend_budget(cx, 0);
    } else {
        connection.end_stall();
    }
    polled
}

/// Spends the budget of this poll except for `left` units, at most [`ONE_PIECE`].
fn spend_budget(cx: &mut Context<'_>, left: usize) {
    let mut kept: [Option<RestoreOnPending>; ONE_PIECE] = [const { None }; ONE_PIECE];
    for _ in 0..BUDGET {
        if !has_budget_remaining() {
            break;
        }
        let Poll::Ready(unit) = poll_proceed(cx) else { break };
        // The last ones are kept.
        kept.rotate_left(1);
        if let Some(unit) = kept.last_mut().and_then(|last| last.replace(unit)) {
            unit.made_progress();
        }
    }
    // A unit that made no progress is given back: each brings the budget to what it was before.
    for (n, unit) in kept.into_iter().rev().flatten().enumerate() {
        if n >= left {
            unit.made_progress();
        }
    }
}

/// Counts the stalled responses of a listener.
#[derive(Default)]
pub(super) struct Stalled(AtomicUsize);

impl Stalled {
    pub(super) fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A response that is counted as stalled.
struct Counted<'a>(&'a Stalled);

impl<'a> Counted<'a> {
    fn new(stalled: &'a Stalled) -> Self {
        stalled.0.fetch_add(1, Relaxed);
        Self(stalled)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Runs a request, but not while its client takes nothing; `streams` are the places of an HTTP/2 connection.
pub(super) async fn bounded<F: Future>(
    connection: &Connection,
    request: F,
    stalled: &Stalled,
    streams: Option<&Arc<Semaphore>>,
) -> F::Output {
    let mut request = pin!(request);
    let mut places = streams.map(|streams| Places { free: PollSemaphore::new(Arc::clone(streams)), held: None, woken: None });
    let mut counted: Option<Counted<'_>> = None;
    let mut polls: usize = 0;
    poll_fn(|cx| {
        if connection.is_stalled() {
            return Poll::Pending;
        }
        let is_crowded = match &mut places {
            Some(places) => ready!(places.poll_one(cx)),
            None => false,
        };
        polls = polls.saturating_add(1);
        if connection.waits_for_client() {
            spend_budget(cx, 0);
        } else if polls > SHORT || is_crowded || stalled.count() > 0 {
            spend_budget(cx, ONE_PIECE);
        }
        let polled = match &mut places {
            Some(places) => places.poll(connection, cx, |cx| request.as_mut().poll(cx)),
            None => request.as_mut().poll(cx),
        };
        if polled.is_pending() && connection.waits_for_client() {
            counted.get_or_insert_with(|| Counted::new(stalled));
        } else {
            counted = None;
        }
        polled
    })
    .await
}

/// The places of an HTTP/2 connection, for one of its streams.
struct Places {
    free: PollSemaphore,
    held: Option<OwnedSemaphorePermit>,
    /// Made with the first poll.
    woken: Option<Arc<Woken>>,
}

/// Remembers whether a stream has been woken since it was polled.
struct Woken {
    since: AtomicBool,
    task: Waker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.since.store(true, Release);
        self.task.wake_by_ref();
    }
}

impl Places {
    /// Waits for a place; whether several others are taken.
    fn poll_one(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.held.is_none() {
            self.held = ready!(self.free.poll_acquire(cx));
        }
        Poll::Ready(self.free.available_permits() < STALLED_STREAMS / 2)
    }

    /// Polls, and gives the place back if there is nothing in the pipe: the stream is not stalled, and no side of it has woken the other.
    fn poll<T>(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let new = || Arc::new(Woken { since: AtomicBool::new(false), task: cx.waker().clone() });
        let woken = Arc::clone(self.woken.get_or_insert_with(new));
        woken.since.store(false, Release);
        let polled = poll(&mut Context::from_waker(&Waker::from(Arc::clone(&woken))));
        // Without budget it is woken by the runtime, after this.
        let goes_on = connection.waits_for_client() || woken.since.load(Acquire) || !has_budget_remaining();
        if polled.is_ready() || !goes_on {
            self.held = None;
        }
        polled
    }
}
