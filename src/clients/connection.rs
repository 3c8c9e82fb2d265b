//! The state of a client's connection, or of one stream of an HTTP/2 connection: its two ends, and every bounded wait on it, by
//! one timer.
//!
//! **Waiting for a peer's response header** (`timeouts.response`). Pingora's read timeout is per read and holds for the body as
//! well, so it would cut a quiet event stream or WebSocket, and a slow upload whose answer comes at its end. Here the wait
//! begins when a request has a connection to its peer, starts over with each piece of the request body, and ends with the
//! response header. When the time is up the peer's socket is shut down, which Pingora sees as closed. An HTTP/2 connection to a peer
//! is shared with other requests, so it is left alone, and the request itself is given up. The descriptor is forgotten with the
//! wait, so it is never used after its socket: requests of a connection come one after the other, and only the future that
//! [`watched`] polls can close it.
//!
//! **Waiting for the client**: for its next header ([`await_header`]), for bytes of a request body ([`waits`], [`moved`]) and for
//! room to write an answer ([`waits_to_write`], [`wrote`]). A client that drips a byte now and then would pass any bound on a
//! single read or write. It has `stall_timeout` to spend; being slower than `min_rate` spends it, being faster gives it back. At the
//! end of a wait the connection's future is polled once more, and finds out with [`expired`].
//!
//! How fast a client reads is what its kernel has acknowledged (`tcpi_bytes_acked`). Bytes that the socket accepted say little: it
//! accepts the next ones when a third of its send buffer is free, which may be megabytes.
//!
//! The timer outlives the requests that it is for. It is made when first needed and only looked at when it fires, so that a
//! request costs a few stores.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    os::fd::RawFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderValue;
use nix::sys::socket::{Shutdown, shutdown};
use pingora::protocols::SocketDigest;
use tokio::{
    sync::mpsc,
    task::unconstrained,
    time::{Sleep, sleep_until},
};

use super::{backpressure::Stall, pace::Pace, reject::Rejection};
use crate::config::Limits;

tokio::task_local! {
    /// Boxed, because it is moved into and out of the thread at every poll.
    static CONNECTION: Box<Connection>;
}

struct Connection {
    ends: Arc<ClientInfo>,
    /// When the wait for a peer's response header ends, and how long it is.
    response: Cell<Option<Instant>>,
    response_timeout: Cell<Duration>,
    /// The peer's socket, while a response header is waited for; none, if other requests share it.
    peer: Cell<Option<RawFd>>,
    /// Whether the response did not come in time.
    late: Cell<bool>,
    /// Whether the request has to end without its peer's socket.
    given_up: Cell<bool>,
    /// Ends a request whose body its peer does not take.
    give_up: Cell<Option<mpsc::Sender<Bytes>>>,
    /// When the wait for the client's next header ends.
    header: Cell<Option<Instant>>,
    /// The wait for the client that is over, until it is asked for.
    expired: Cell<Option<Wait>>,
    refused: Cell<Option<Rejection>>,
    upgraded: Cell<bool>,
    held: Cell<Option<Box<dyn Any + Send>>>,
    /// Whether its last request is running.
    last: Cell<bool>,
    /// Whether the request body may pause for as long as it likes.
    quiet_body: Cell<bool>,
    reading: Pace,
    writing: Pace,
    /// The wait for the client to take the response.
    stall: RefCell<Option<Arc<Stall>>>,
}

/// What a client is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A request's header.
    Header,
    /// Bytes of a request's body.
    Body,
    /// Room for bytes of an answer.
    Reader,
}

/// The two ends of a client's connection, as headers have them, and what its listener says of it.
#[derive(Debug)]
pub(crate) struct ClientInfo {
    /// An IPv4 client of a listener on `[::]` is still an IPv4 client.
    pub client: IpAddr,
    pub client_text: HeaderValue,
    pub local_port: HeaderValue,
    /// `TLSv1.3`; none without TLS.
    pub tls: Option<&'static str>,
    /// As configured.
    pub listener: Arc<str>,
    pub redirect_to_https: bool,
    pub limits: Arc<Limits>,
}

/// Runs the future of one connection, whose waits the functions below begin and end from within.
pub(crate) async fn watched<F: Future>(ends: Arc<ClientInfo>, connection: F) -> F::Output {
    let stall_timeout = ends.limits.stall_timeout;
    let state = Connection {
        ends,
        response: Cell::default(),
        response_timeout: Cell::default(),
        peer: Cell::default(),
        late: Cell::default(),
        given_up: Cell::default(),
        give_up: Cell::default(),
        header: Cell::default(),
        expired: Cell::default(),
        refused: Cell::default(),
        upgraded: Cell::default(),
        held: Cell::default(),
        last: Cell::default(),
        quiet_body: Cell::default(),
        reading: Pace::new(stall_timeout),
        writing: Pace::new(stall_timeout),
        stall: RefCell::default(),
    };
    CONNECTION
        .scope(Box::new(state), async move {
            let mut connection = pin!(connection);
            let mut timer = None;
            poll_fn(|cx| {
                loop {
                    if let Poll::Ready(output) = connection.as_mut().poll(cx) {
                        return Poll::Ready(output);
                    }
                    if CONNECTION.with(|connection| connection.poll(&mut timer, cx)).is_pending() {
                        return Poll::Pending;
                    }
                }
            })
            .await
        })
        .await
}

/// The request has a connection to its peer: from `now` on it waits for a response header, at most for `timeout`.
pub(crate) fn await_response(socket: Option<RawFd>, now: Instant, timeout: Duration) {
    with(|connection| {
        connection.late.set(false);
        connection.given_up.set(false);
        connection.peer.set(socket);
        connection.response_timeout.set(timeout);
        connection.response.set(Some(now + timeout));
    });
}

/// The request made progress: its wait for the response header starts over.
pub(crate) fn extend() {
    with(|connection| {
        if connection.response.get().is_some() {
            connection.response.set(Some(Instant::now() + connection.response_timeout.get()));
        }
    });
}

/// The response header is here, or will not come. The peer's socket may be closed from now on.
pub(crate) fn arrived() {
    with(|connection| {
        connection.response.set(None);
        connection.peer.set(None);
        connection.give_up.set(None);
    });
}

/// Whether a response is waited for from a peer whose connection other requests share.
pub(crate) fn shares_peer() -> bool {
    CONNECTION.try_with(|connection| connection.response.get().is_some() && connection.peer.get().is_none()).unwrap_or(false)
}

/// Gets a message when the request has to be given up, and is dropped when the response header is here.
pub(crate) fn give_up_by(sender: mpsc::Sender<Bytes>) {
    with(|connection| connection.give_up.set(Some(sender)));
}

/// Whether the connection to the peer is gone because the time was up.
pub(crate) fn late() -> bool {
    CONNECTION.try_with(|connection| connection.late.get()).unwrap_or(false)
}

/// Whether the request has to be given up: its peer is late, and other requests share the peer's connection.
pub(crate) fn given_up() -> bool {
    CONNECTION.try_with(|connection| connection.given_up.get()).unwrap_or(false)
}

/// A header is waited for until then, and not any more once it is here.
pub(crate) fn await_header(until: Option<Instant>) {
    with(|connection| connection.header.set(until));
}

/// How long a connection may be without a request.
pub(crate) fn idle_timeout() -> Duration {
    CONNECTION.try_with(|connection| connection.ends.limits.idle_timeout).unwrap_or_default()
}

/// Whether the client has used up its time for this; asked once.
pub(crate) fn expired(wait: Wait) -> bool {
    CONNECTION.try_with(|connection| connection.forget_expired(wait)).unwrap_or(false)
}

/// The body of this request may pause for as long as it likes.
pub(crate) fn allow_quiet_body() {
    with(|connection| connection.quiet_body.set(true));
}

/// The request goes on when the client sends more of its body.
pub(crate) fn waits() {
    with(|connection| {
        if connection.ends.pace().is_some() && !connection.quiet_body.get() && !connection.reading.is_waiting() {
            connection.reading.begin_wait();
        }
    });
}

/// The client sent so many bytes of a body.
pub(crate) fn moved(bytes: usize) {
    with(|connection| {
        if let Some((rate, _)) = connection.ends.pace() {
            connection.reading.end_wait(bytes as u64, rate);
        }
        connection.forget_expired(Wait::Body);
    });
}

/// The answer goes on when the client has taken more of it. `unseen` is how many bytes it may take without any sign of it.
pub(crate) fn waits_to_write(socket: &SocketDigest, unseen: u64) {
    with(|connection| {
        if let Some((rate, stall_timeout)) = connection.ends.pace()
            && !connection.writing.is_waiting()
        {
            connection.writing.begin_wait_to_write(socket, unseen, rate, stall_timeout);
        }
    });
}

/// The wait to write is over, if there was one. `granted` bytes were asked for by the client itself, as HTTP/2 does.
pub(crate) fn wrote(socket: &SocketDigest, granted: u64) {
    with(|connection| {
        if let Some((rate, _)) = connection.ends.pace() {
            connection.writing.end_wait_to_write(socket, granted, rate);
        }
        connection.forget_expired(Wait::Reader);
    });
}

/// The time to take more of the answer is up. Whether the client has really taken too little: if not, the wait goes on.
pub(crate) fn reads_too_slowly(socket: &SocketDigest) -> bool {
    let is_too_slow =
        |connection: &Connection| connection.ends.pace().is_some_and(|(rate, _)| connection.writing.is_too_slow(socket, rate));
    CONNECTION.try_with(|connection| is_too_slow(connection)).unwrap_or(false)
}

/// Notes why the connection ends; the first reason is the reason.
pub(crate) fn refuse(rejection: Rejection) {
    with(|connection| connection.refused.set(connection.refused.get().or(Some(rejection))));
}

/// Why the connection ends, if it was refused.
pub(crate) fn refused() -> Option<Rejection> {
    CONNECTION.try_with(|connection| connection.refused.get()).ok().flatten()
}

/// Drops `held` once this poll of the connection's future has done what it can.
pub(crate) fn until_idle(held: Box<dyn Any + Send>) {
    with(|connection| connection.held.set(Some(held)));
}

/// From now on bytes go both ways, whatever they mean.
pub(crate) fn upgrade() {
    with(|connection| connection.upgraded.set(true));
}

/// Whether bytes go both ways, whatever they mean.
pub(crate) fn is_upgraded() -> bool {
    CONNECTION.try_with(|connection| connection.upgraded.get()).unwrap_or(false)
}

/// No request comes after the one that runs.
pub(crate) fn end_after_this() {
    with(|connection| connection.last.set(true));
}

/// Whether the client has to be asked to leave.
pub(crate) fn ends_after_this() -> bool {
    CONNECTION.try_with(|connection| connection.last.get()).unwrap_or(false)
}

/// The two ends of this connection; none outside of [`watched`].
pub(crate) fn ends() -> Option<Arc<ClientInfo>> {
    CONNECTION.try_with(|connection| Arc::clone(&connection.ends)).ok()
}

impl ClientInfo {
    pub(crate) fn new(client: SocketAddr, local_port: u16, limits: Arc<Limits>) -> Self {
        let client = client.ip().to_canonical();
        let text = HeaderValue::from_maybe_shared(Bytes::from(client.to_string()));
        // An address is a header value.
        let client_text = text.unwrap_or(HeaderValue::from_static("unknown"));
        let local_port = HeaderValue::from(local_port);
        Self { client, client_text, local_port, tls: None, listener: Arc::from(""), redirect_to_https: false, limits }
    }

    /// Bytes per second, and how long a client may be slower.
    fn pace(&self) -> Option<(u32, Duration)> {
        self.limits.min_rate.map(|rate| (rate, self.limits.stall_timeout))
    }
}

/// Whatever is left of the poll's budget, which [`super::backpressure`] spends: a timer without budget is not set.
fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
    pin!(unconstrained(timer)).poll(cx)
}

/// Notes that the response waits for the client, or does not any more.
pub(super) fn set_stall(stall: Option<Arc<Stall>>) {
    with(|connection| {
        let mut current = connection.stall.borrow_mut();
        if current.is_some() || stall.is_some() {
            *current = stall;
        }
    });
}

/// Whether the response waits for the client.
pub(super) fn is_waiting_for_client() -> bool {
    CONNECTION.try_with(|connection| connection.stall.borrow().is_some()).unwrap_or(false)
}

/// Whether there is nothing to do before the client takes more: it has taken nothing, and its time is not up.
pub(super) fn is_stalled() -> bool {
    let is_stalled = |connection: &Connection| {
        let waits = connection.stall.borrow().as_ref().is_some_and(|stall| !stall.is_over());
        waits && connection.expired.get().is_none() && !connection.late.get() && connection.refused.get().is_none()
    };
    CONNECTION.try_with(|connection| is_stalled(connection)).unwrap_or(false)
}

/// Outside [`watched`] there is nothing to bound.
fn with(set: impl FnOnce(&Connection)) {
    CONNECTION.try_with(|connection| set(connection)).unwrap_or_default();
}

impl Connection {
    /// Whether it was this wait that is over; it is not any more.
    fn forget_expired(&self, wait: Wait) -> bool {
        let expired = self.expired.get() == Some(wait);
        if expired {
            self.expired.set(None);
        }
        expired
    }

    /// When the first wait for the client is over, and what that is for.
    fn client(&self) -> Option<(Instant, Wait)> {
        let waits = [(self.header.get(), Wait::Header), (self.reading.until(), Wait::Body), (self.writing.until(), Wait::Reader)];
        waits.into_iter().filter_map(|(until, wait)| Some((until?, wait))).min_by_key(|(until, _)| *until)
    }

    /// Ready when a wait is over that the connection's future has to look at.
    fn poll(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        drop(self.held.take());
        loop {
            let (response, client) = (self.response.get(), self.client());
            let Some(until) = response.into_iter().chain(client.map(|(until, _)| until)).min() else {
                return Poll::Pending;
            };
            let deadline = until.into();
            let mut unset = timer.is_none();
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            // The timer may have been set for an earlier request with a longer bound.
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
                unset = true;
            }
            // A timer that was polled wakes this connection's task, which is the same all its life: until it has fired there
            // is no need to poll it again.
            if !unset && !timer.is_elapsed() || poll_timer(timer.as_mut(), cx).is_pending() {
                return Poll::Pending;
            }
            if timer.deadline() < deadline {
                timer.as_mut().reset(deadline);
                if poll_timer(timer.as_mut(), cx).is_pending() {
                    return Poll::Pending;
                }
            }
            if let Some((at, wait)) = client
                && at == until
            {
                match wait {
                    Wait::Header => self.header.set(None),
                    Wait::Body => self.reading.expire(),
                    Wait::Reader => self.writing.expire(),
                }
                self.expired.set(Some(wait));
                return Poll::Ready(());
            }
            self.response.set(None);
            self.late.set(true);
            let Some(socket) = self.peer.take() else {
                self.given_up.set(true);
                if let Some(give_up) = self.give_up.take() {
                    drop(give_up.try_send(Bytes::new()));
                }
                return Poll::Ready(());
            };
            if let Err(e) = shutdown(socket, Shutdown::Both) {
                log::debug!("the socket of a late peer was closed already error={e}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
