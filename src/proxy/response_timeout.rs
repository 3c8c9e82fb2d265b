//! `timeouts.response`: a bound on waiting for a peer's response header, and on nothing else.
//!
//! Pingora's read timeout is per read and holds for the body as well, so it would cut a quiet event stream or WebSocket, and a
//! slow upload whose answer comes at its end. Here a deadline is armed when the request has a connection, moved on with each
//! piece of the request body, and gone with the response header. It lives in the task of the client's connection, whose
//! requests come one after the other: what it does is shut the peer's socket, which Pingora then sees as closed, and nobody else
//! can have closed or reused that descriptor in between, because only the very future that this one polls could have.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    os::fd::RawFd,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::time::{Instant, Sleep, sleep_until};

tokio::task_local! {
    static DEADLINE: Deadline;
}

#[derive(Default)]
struct Deadline {
    waiting: Cell<Option<Waiting>>,
    expired: Cell<bool>,
}

#[derive(Clone, Copy)]
struct Waiting {
    socket: RawFd,
    bound: Duration,
    until: Instant,
}

/// Runs the future of one connection under a deadline that [`arm`], [`extend`] and [`disarm`] govern from within.
pub(super) async fn watched<F: Future>(connection: F) -> F::Output {
    DEADLINE
        .scope(Deadline::default(), async move {
            let mut connection = pin!(connection);
            let mut timer = None;
            poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                if polled.is_pending() {
                    DEADLINE.with(|deadline| deadline.poll(&mut timer, cx));
                }
                polled
            })
            .await
        })
        .await
}

/// The request has a connection: from `now` on it waits for a response header, at most for `bound`.
pub(super) fn arm(socket: RawFd, now: std::time::Instant, bound: Duration) {
    with(|deadline| {
        deadline.expired.set(false);
        deadline.waiting.set(Some(Waiting { socket, bound, until: Instant::from_std(now) + bound }));
    });
}

/// The request made progress: the wait begins anew.
pub(super) fn extend() {
    with(|deadline| deadline.waiting.set(deadline.waiting.get().map(|w| Waiting { until: Instant::now() + w.bound, ..w })));
}

/// The response header is here, or the connection is gone.
pub(super) fn disarm() {
    with(|deadline| deadline.waiting.set(None));
}

/// Whether the connection is gone because the time was up.
pub(super) fn expired() -> bool {
    DEADLINE.try_with(|deadline| deadline.expired.get()).unwrap_or(false)
}

/// Outside [`watched`] there is nothing to bound.
fn with(set: impl FnOnce(&Deadline)) {
    DEADLINE.try_with(set).unwrap_or_default();
}

impl Deadline {
    /// The timer outlives the requests that it is for: it is made when first needed and only looked at when it fires, at most
    /// once in the bound, so that a request costs two stores.
    fn poll(&self, timer: &mut Option<std::pin::Pin<Box<Sleep>>>, cx: &mut Context<'_>) {
        let Some(waiting) = self.waiting.get() else {
            return;
        };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(waiting.until)));
        // Another service may have a shorter bound.
        if waiting.until < timer.deadline() {
            timer.as_mut().reset(waiting.until);
        }
        while let Poll::Ready(()) = timer.as_mut().poll(cx) {
            if timer.deadline() < waiting.until {
                timer.as_mut().reset(waiting.until);
                continue;
            }
            self.waiting.set(None);
            self.expired.set(true);
            if let Err(e) = shutdown(waiting.socket, Shutdown::Both) {
                log::debug!("the socket of a late peer was gone already error={e}");
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn silent_peer() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_cut_when_the_time_is_up() {
        let (mut near, _far) = silent_peer().await;
        let began = Instant::now();
        let read = watched(async {
            arm(near.as_raw_fd(), std::time::Instant::now(), Duration::from_millis(50));
            let read = near.read_u8().await;
            assert!(expired());
            read
        })
        .await;
        assert!(read.is_err() && began.elapsed() >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn progress_begins_the_wait_anew_and_a_header_ends_it() {
        let (near, _far) = silent_peer().await;
        watched(async {
            arm(near.as_raw_fd(), std::time::Instant::now(), Duration::from_millis(80));
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(40)).await;
                extend();
            }
            disarm();
            tokio::time::sleep(Duration::from_millis(120)).await;
            assert!(!expired());
        })
        .await;
        assert!(near.peer_addr().is_ok());
    }
}
