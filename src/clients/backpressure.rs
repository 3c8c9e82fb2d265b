//! How far a response may run ahead of a client that does not take it.
//!
//! Pingora's proxy couples the two sides of a request by a channel of four pieces. While the client's side waits for the client, the
//! peer's side goes on reading, up to ten pieces of 64 KiB, and neither number can be set. What both sides have in common is that they
//! are one future, which is polled here. So:
//!
//! - while the client takes nothing, the future is not polled ([`bounded`]): of all that it waits for, only the wait for the client can
//!   wake it ([`writing`]);
//! - in the poll in which that wait begins the peer's side is left nothing of Tokio's cooperative budget, so that it reads no more;
//! - a poll of a long response, and of any response while others are stalled, begins with as much of that budget as one piece takes
//!   ([`ONE_PIECE`]). Tokio's `try_join!` polls either side first, in turn, so that only the future as a whole can be bounded.
//!
//! At most [`STALLED_STREAMS`] responses of an HTTP/2 connection can be in that state at a time. Nothing is polled for the others until
//! one of these is taken or ended, so that a client gets no more memory by asking for more.
//!
//! [`crate::clients`] runs every request in [`bounded`]; [`super::http1`] and [`super::http2::stream`] write through [`writing`].

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

use super::connection;

/// Responses of one HTTP/2 connection that may wait for the client at a time.
pub(super) const STALLED_STREAMS: usize = 6;
/// A usual request takes fewer polls; bounding it would only cost time.
const SHORT: usize = 4;
/// One read, and one step that hands the piece over to the client's side.
const ONE_PIECE: usize = 2;
/// More than Tokio gives a task for one poll. Outside of its budgets there is no end to it.
const BUDGET: usize = 256;

/// The wait of a response for its client.
pub(super) struct Stall {
    over: AtomicBool,
    task: Waker,
}

impl Stall {
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Acquire)
    }
}

impl Wake for Stall {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.over.store(true, Release);
        self.task.wake_by_ref();
    }
}

/// Polls something that ends when the client takes bytes. A response that has to wait for that is stalled from then on.
pub(super) fn writing<T>(cx: &mut Context<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    // What the client takes is not bounded by the budget, which is spent on account of the peer.
    let mut poll = |cx: &mut Context<'_>| pin!(unconstrained(poll_fn(&mut poll))).poll(cx);
    let mut polled = poll(cx);
    let mut stall = None;
    if polled.is_pending() {
        let wait = Arc::new(Stall { over: AtomicBool::new(false), task: cx.waker().clone() });
        // Again: it is the last waker that is woken.
        polled = poll(&mut Context::from_waker(&Waker::from(Arc::clone(&wait))));
        if polled.is_pending() {
            spend_budget(cx, 0);
            stall = Some(wait);
        }
    }
    connection::set_stall(stall);
    polled
}

/// Leaves so much, at most [`ONE_PIECE`], of the budget of this poll.
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

/// Counts stalled responses, of a listener for example.
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
pub(super) async fn bounded<F: Future>(request: F, stalled: &Stalled, streams: Option<&Arc<Semaphore>>) -> F::Output {
    let mut request = pin!(request);
    let mut places = streams.map(|streams| Places { free: PollSemaphore::new(Arc::clone(streams)), held: None, woken: None });
    let mut counted: Option<Counted<'_>> = None;
    let mut polls: usize = 0;
    poll_fn(|cx| {
        if connection::is_stalled() {
            return Poll::Pending;
        }
        let is_crowded = match &mut places {
            Some(places) => ready!(places.poll_one(cx)),
            None => false,
        };
        polls = polls.saturating_add(1);
        if connection::is_waiting_for_client() {
            spend_budget(cx, 0);
        } else if polls > SHORT || is_crowded || stalled.count() > 0 {
            spend_budget(cx, ONE_PIECE);
        }
        let polled = match &mut places {
            Some(places) => places.poll(cx, |cx| request.as_mut().poll(cx)),
            None => request.as_mut().poll(cx),
        };
        if polled.is_pending() && connection::is_waiting_for_client() {
            counted.get_or_insert_with(|| Counted::new(stalled));
        } else {
            counted = None;
        }
        polled
    })
    .await
}

/// The places of an HTTP/2 connection, as one of its streams sees them.
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
    fn poll<T>(&mut self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let new = || Arc::new(Woken { since: AtomicBool::new(false), task: cx.waker().clone() });
        let woken = Arc::clone(self.woken.get_or_insert_with(new));
        woken.since.store(false, Release);
        let polled = poll(&mut Context::from_waker(&Waker::from(Arc::clone(&woken))));
        // Without budget it is woken by the runtime, after this.
        let goes_on = connection::is_waiting_for_client() || woken.since.load(Acquire) || !has_budget_remaining();
        if polled.is_ready() || !goes_on {
            self.held = None;
        }
        polled
    }
}
